"""The command that compares models of two halves of a training set: `halves`."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import (
    json_option,
    load_study,
    max_pixels_option,
    profile_option,
    set_option,
    store_option,
    stored,
    study_argument,
)
from diffmem.cli.tables import echo, print_json, print_table, print_wrapped
from diffmem.measures import SIMILAR
from diffmem.text import counted

if TYPE_CHECKING:
    from diffmem.analysis import HalvesAgreement
    from diffmem.measures import Bounded
    from diffmem.runs import HalfNotCompared, HalvesCompared


@click.command()
@study_argument
@profile_option
@set_option
@click.option(
    "--threshold",
    type=click.FloatRange(min=-1, max=1, min_open=True, max_open=True),
    default=SIMILAR,
    show_default=True,
    help="The similarity t: above it, two images count as the same.",
)
@store_option
@max_pixels_option
@json_option
def halves(
    study: str, profile: str | None, overrides: tuple[str, ...], threshold: float, store_path: Path, as_json: bool
) -> None:
    """Compare pairs of models that share no training image.

    Each model of a pair is trained on one half of a draw. The comparison shows whether the two generate the same images
    from the same latents.

    STUDY can be a study file with P.half = ["a", "b"] on an axis, or the name of one as for `diffmem run`. Cells that
    differ only in P.half are a pair. Each pair that has not been compared yet generates images, with the models that
    the run has kept (score.keep). If a model is not kept, the pictures in the store are compared instead.

    STUDY can also be another name of a study in the store, or the beginning of one. Then only earlier comparisons are
    shown.

    Each row is one pair of models. Both start from the same weights and see the same noise (T.seed). t is the value of
    --threshold.

    \b
    Columns:
      N       training images of each model
      pairs   latents
      cosine  mean correlation of the two images of a latent
      PSNR    peak signal-to-noise ratio between the two images, in dB
      RP      share of latents whose two images are more similar than t
      GL      share of images that are less similar than t to every training
              image of their model
      null    of cosine, PSNR and RP: the value for images of different
              latents (of the same label); of GL: the value for held-out
              images
      95%     interval over latents

    Exits with 1 if two halves could not be compared.

    Example: diffmem halves two_halves --profile laptop
    """
    from diffmem.analysis import check_compared, halves_of

    study = _file_of(study, profile, store_path)
    left_out = _compared(study, profile, overrides, store_path) if study.endswith(".toml") else []
    store, found = stored(store_path, study, profile)
    with store.snapshot():
        rows = halves_of(store, found, threshold=threshold)
    if not left_out:
        check_compared(found, rows)
    if as_json:
        print_json({"study": found.study, "threshold": threshold, "pairs": rows, "not_compared": left_out})
    else:
        _print(found.study, rows, left_out)
    if left_out:
        sys.exit(1)


def _file_of(study: str, profile: str | None, store_path: Path) -> str:
    """Return the file of a study, whose halves are to be compared; its name where the store has no study of the file's
    own name, which then is the beginning of another one's."""
    from diffmem.store import Store
    from diffmem.study import study_file, study_name

    file, store = study_file(Path(study)), Store(store_path)
    known = {each.study for each in store.studies()} if store.exists() else set()
    is_file = study.endswith(".toml") or not known or study_name(file, profile) in known
    return str(file) if is_file else study


def _print(study: str, rows: "Sequence[HalvesAgreement]", left_out: "Sequence[HalfNotCompared]") -> None:
    where = f", in {rows[0].space} with t = {rows[0].threshold:g}" if rows else ""
    print_table(f"{study}: agreement of two halves{where}", [_row(each) for each in rows], columns=["N", "cosine"])
    if rows:
        print_wrapped("both models of a row start from the same weights and see the same noise (T.seed)", indent=4)
    for reason, cells in Counter(each.reason for each in left_out).items():
        echo(f"{counted(cells, 'cell')} not compared: {reason}")


def _compared(study: str, profile: str | None, overrides: tuple[str, ...], store_path: Path) -> "list[HalfNotCompared]":
    """Compare the halves of a study file that are not compared yet; return the cells that cannot be."""
    loaded = load_study(Path(study), profile, overrides)
    from diffmem.cli.reading import shown_reading
    from diffmem.models import this_device
    from diffmem.runs import HalfNotCompared, compare_halves
    from diffmem.store import Store

    with shown_reading():
        found = list(compare_halves(loaded, Store(store_path), device=this_device()))
    for each in found:
        if not isinstance(each, HalfNotCompared):
            _say(each)
    return [each for each in found if isinstance(each, HalfNotCompared)]


def _say(compared: "HalvesCompared") -> None:
    if compared.note:
        echo(f"note: {compared.name}: {counted(compared.pairs, 'image')} compared {compared.note}", err=True)


def _row(pair: "HalvesAgreement") -> dict[str, Any]:
    found = pair.found
    curve = {"curve": pair.curve} if pair.curve else {}
    return {
        **curve,
        "N": pair.size,
        "draw": pair.draw,
        "seed": pair.seed,
        "pairs": pair.pairs,
        "cosine": found.cosine.value,
        "95%": _interval(found.cosine),
        "null": found.cosine_null and found.cosine_null.value,
        "PSNR": f"{found.psnr.value:.1f}",
        "its null": found.psnr_null and f"{found.psnr_null.value:.1f}",
        "RP": found.reproducible.value,
        "95% of RP": _interval(found.reproducible),
        "null of RP": found.reproducible_null and found.reproducible_null.value,
        "GL": found.generalization.value,
        "95% of GL": _interval(found.generalization),
        "null of GL": found.generalization_null and found.generalization_null.value,
    }


def _interval(found: "Bounded") -> str:
    return f"{found.low:z.3f} to {found.high:z.3f}"

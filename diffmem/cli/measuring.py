"""The command that measures trained models that are kept, without training: `measure`."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diffmem.cli.options import (
    StudyFile,
    all_measures_option,
    check_name,
    json_option,
    load_study,
    max_pixels_option,
    profile_option,
    set_option,
    store_option,
)
from diffmem.cli.tables import echo, print_json, print_table
from diffmem.measures import all_names
from diffmem.text import counted

if TYPE_CHECKING:
    from diffmem.runs import Later, NotMeasured, NullMeasured


@click.command()
@click.argument("study", type=StudyFile())
@profile_option
@set_option
@all_measures_option
@click.option(
    "--samples", type=click.IntRange(1, 10**9), metavar="N", help="Score the last checkpoints again, with N images."
)
@click.option(
    "--steps", type=click.IntRange(2, 10**9), metavar="N", help="Score the last checkpoints again, with N noise levels."
)
@store_option
@max_pixels_option
@json_option
def measure(
    study: Path,
    profile: str | None,
    overrides: tuple[str, ...],
    measures: tuple[str, ...],
    samples: int | None,
    steps: int | None,
    store_path: Path,
    as_json: bool,
) -> None:
    """Measure trained models that are kept, without training.

    STUDY is a study file, or the name of a study that is in the folder studies or ships with diffmem.

    The setting score.keep says which models a run keeps. The measures are those of --measure, or else those of
    score.measures in the study. They are added to every checkpoint whose model is kept. For this, the images of the
    checkpoint are generated again; they are the ones that were scored.

    Held-out images are compared with each training set that they have not been compared with yet. The share of them
    that is called copies is the null of a ratio. The images of each training set are also compared with each other,
    once, for `diffmem export images`.

    With --samples or --steps, the last checkpoints are scored again. The result is a new study, for example
    quickstart+samples=1000. Its cells are those that a run with this score.samples or score.steps, and with score.every
    = T.epochs, would have trained.

    The measures gaps and membership generate no images. They denoise training images and held-out ones at each noise
    level. The table shows the largest value, with the interval at that level alone. `diffmem gaps STUDY` and the report
    show all values.

    The measure quality compares all generated images with training images and with held-out ones. `diffmem quality
    STUDY` shows all results.

    Exits with 1 if a cell could not be measured.

    Example: diffmem measure quickstart --measure calibrated
    """
    loaded = load_study(study, profile, overrides)
    for name in measures:
        check_name(name, [*all_names(), *loaded.spaces])
    wanted = measures or loaded.cells[0].cell.score.measures
    from diffmem.cli.reading import shown_reading
    from diffmem.models import this_device
    from diffmem.runs import Later, NotMeasured, NullMeasured, measure_study
    from diffmem.store import Store

    with shown_reading():
        measured = measure_study(
            loaded, Store(store_path), measures=wanted, samples=samples, steps=steps, device=this_device()
        )
        found = list(_as_it_goes(measured))
    rows = [each for each in found if isinstance(each, Later)]
    left_out = [each for each in found if isinstance(each, NotMeasured)]
    nulls = [each for each in found if isinstance(each, NullMeasured)]
    if as_json:
        print_json({"measured": rows, "not_measured": left_out, "held_out": nulls})
    else:
        images = max((each.images for each in nulls), default=0)
        if nulls or not (rows or left_out):
            echo(f"held-out images compared with {counted(len(nulls), 'training set')}, at most {images} with each")
        _print_measured(loaded.name, rows, left_out, samples, steps)
    if left_out:
        sys.exit(1)


def _as_it_goes(
    found: "Iterator[Later | NotMeasured | NullMeasured]",
) -> "Iterator[Later | NotMeasured | NullMeasured]":
    """Pass on what is measured, and say so on stderr as it comes, for it can take long."""
    from diffmem.runs import Later

    said = None
    for each in found:
        if isinstance(each, Later) and each.new and said != (each.name, each.epoch, each.measure):
            said = (each.name, each.epoch, each.measure)
            echo(f"measured {each.name}, epoch {each.epoch}: {each.measure}", err=True)
        yield each


def _print_measured(
    name: str, rows: "Sequence[Later]", left_out: "Sequence[NotMeasured]", samples: int | None, steps: int | None
) -> None:
    if rows:
        print_table(name, [_later_row(each) for each in rows], columns=["cell_id", "measure"], cut="cell_id")
    for note in dict.fromkeys(each.note for each in rows if each.note):
        echo(f"note: {note}")
    if rows and (samples or steps):
        new = "".join(f"+{key}={value}" for key, value in (("samples", samples), ("steps", steps)) if value)
        echo(f"these cells are the study {name}{new}: `diffmem emm {name}{new}`")
    for reason, cells in Counter(each.reason for each in left_out).items():
        echo(f"{counted(cells, 'cell')} not measured: {reason}")


def _at(found: "Later") -> str:
    """Say of which quantity a value is, and at which noise level, if it is no share of copies."""
    return found.quantity if found.sigma is None else f"{found.quantity} at sigma = {found.sigma:.3g}"


def _later_row(found: "Later") -> dict[str, object]:
    return {
        "cell_id": found.cell_id,
        "cell": found.name,
        "epoch": found.epoch,
        "measure": found.measure,
        "value": found.value,
        "95%": f"{found.low:z.3f} to {found.high:z.3f}",
        "images": found.n,
        "": "; ".join(filter(None, [_at(found), "" if found.new else "had already"])),
    }

"""The commands that measure without training: `score` the images of other tools, `measure` models that are kept."""

import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import (
    StudyFile,
    all_measures_option,
    augment_option,
    check_name,
    json_option,
    load_study,
    max_pixels_option,
    measures_option,
    profile_option,
    set_option,
    space_option,
    store_option,
)
from diffmem.cli.quality import quality_rows
from diffmem.cli.tables import echo, print_json, print_table
from diffmem.measures import all_names, grouped_name
from diffmem.store import DEFAULT_STORE
from diffmem.text import counted

if TYPE_CHECKING:
    from diffmem.external import MeasureNull, Score
    from diffmem.measures import Measure
    from diffmem.runs import Later, NotMeasured, NullMeasured
    from diffmem.store import Store


@click.command()
@click.option(
    "--images",
    type=click.Path(path_type=Path),  # any bytes, unlike a which a store may have to keep
    required=True,
    help="Generated images: a folder, a .zip, .npz or Parquet file, or a pattern that matches several of these.",
)
@click.option(
    "--against",
    required=True,
    metavar="DATASET",
    help="The training set: digits, emoji, cifar10, imagenet-dogs, or a path, as in P.dataset.",
)
@click.option(
    "--resolution",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Compare all images at N x N pixels, by centre crop and Lanczos resize, even if that enlarges them.",
)
@click.option(
    "--held-out",
    metavar="IMAGES",
    help="Images of the same distribution that are not in the training set. The share of them called "
    "copies is the null.",
)
@click.option(
    "--quality",
    is_flag=True,
    help="Also compare the images as a whole with training images and with --held-out images.",
)
@measures_option
@click.option(
    "--groups",
    type=click.Choice(["exact", "near"]),
    help="Also score between groups of training images that are identical (exact) or nearly identical (near).",
)
@augment_option
@space_option
@store_option
@max_pixels_option
@json_option
def score(
    images: Path,
    against: str,
    resolution: int | None,
    held_out: str | None,
    quality: bool,
    measures: tuple[str, ...],
    groups: str | None,
    augment: tuple[str, ...],
    spaces: dict[str, dict[str, Any]],
    store_path: Path,
    as_json: bool,
) -> None:
    """Measure how many images are copies of training images.

    The images can come from any generator.

    Training images are cropped and resized to the size of the generated ones. If that would enlarge all of them, the
    command refuses; --resolution allows it. A training image is named by its position in the dataset.

    The score is stored like any checkpoint. `diffmem report NAME` shows the images beside the training images that they
    copy.

    With --quality, the generated images as a whole are also compared with the training images and with held-out ones,
    by the values of their pixels and in each --space. The results are Frechet distance, precision, recall, density,
    coverage, authentic share and C_T.

    Example: diffmem score --images samples/ --against data/train/
    """
    if augment and groups is None:
        raise click.UsageError("--augment is of groups of training images; add --groups near, or exact")
    if quality and held_out is None:
        raise click.UsageError("--quality compares with held-out images too; add --held-out IMAGES")
    from diffmem.cli.reading import shown_reading
    from diffmem.external import score_images
    from diffmem.store import Store

    by_groups = [] if groups is None else [grouped_name(groups, augment)]
    wanted = list(dict.fromkeys([*by_groups, *measures]))
    with shown_reading():
        store = Store(store_path)
        result = score_images(
            images,
            against,
            store,
            resolution=resolution,
            measures=wanted,
            held_out=held_out,
            spaces=spaces,
            quality=quality,
        )
    if as_json:
        copied = [{key: value for key, value in vars(each).items() if value is not None} for each in result.most_copied]
        print_json({**vars(result), "most_copied": copied, "ratio": result.ratio})
        return
    _print_score(result, against, store)


def _print_score(result: "Score", against: str, store: "Store") -> None:
    measures = store.study(result.study).measures
    echo(
        f"memorization ratio {result.ratio:.4f} (95% interval {result.low:.4f} to {result.high:.4f}): "
        f"{result.memorized} of {result.samples} images are memorized, which is that their nearest image of {against} "
        "is less than a third as far away as the second nearest"
    )
    if result.null_ratio is not None:
        called = round(result.null_ratio * result.null_samples)
        echo(
            f"of {counted(result.null_samples, 'held-out image')} {called} would be called that "
            f"(p {_chance(result.p_value)})"
        )
    for each in result.measurements:
        found = measures[each.measure]
        rule = found.says(f"{found.threshold:g}")
        interval = f"95% interval {each.low:.4f} to {each.high:.4f}"
        echo(f"{found.ratio} {each.value:.4f} ({interval}): an image is {found.copied} if {rule}")
        for null in (null for null in result.nulls if null.measure == each.measure):
            echo(_null_of(null, found))
    if result.quality:
        print_table("quality of the images:", quality_rows(result.quality))
    for note in result.notes:
        echo(f"note: {note}")
    if result.most_copied:
        rows = [
            {"position": each.nearest, "copies": each.copies} | ({"file": each.file} if each.file else {})
            for each in result.most_copied
        ]
        most = "" if len(rows) == result.replicated else f"; the {len(rows)} that are copied most"
        print_table(f"{result.replicated} of {result.size} training images are replicated{most}:", rows)
    named = "" if store.path == DEFAULT_STORE else f" --store {shlex.quote(str(store.path))}"
    echo(f"`diffmem report {shlex.quote(result.study)}{named}` shows them")


def _null_of(null: "MeasureNull", measure: "Measure") -> str:
    """Say how many held-out images a measure calls copies, and at which similarity they would be 1%."""
    images, called = counted(null.samples, "held-out image"), round(null.ratio * null.samples)
    at = ""
    if measure.similarity and null.threshold is not None:
        at = f"; a threshold at 1% of held-out images would be a similarity of {null.threshold:.4f}"
    return f"of {images} {called} would be called that{at}"


def _chance(p_value: float | None) -> str:
    """Return a p-value in words."""
    return "< 1e-20" if p_value is not None and p_value < 1e-20 else f"= {p_value:.2g}"


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
        "95%": f"{found.low:.3f} to {found.high:.3f}",
        "images": found.n,
        "": "; ".join(filter(None, [_at(found), "" if found.new else "had already"])),
    }

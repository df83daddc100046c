"""The command that scores images of any generator: `score`."""

import csv
import io
import shlex
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import (
    augment_option,
    json_option,
    max_pixels_option,
    measures_option,
    space_option,
    store_option,
)
from diffmem.cli.quality import quality_rows
from diffmem.cli.tables import echo, print_json, print_table
from diffmem.measures import grouped_name
from diffmem.store import DEFAULT_STORE
from diffmem.text import counted

if TYPE_CHECKING:
    from diffmem.external import MeasureNull, Score
    from diffmem.measures import Measure
    from diffmem.store import Store


@click.command()
@click.option(
    "--images",
    type=click.Path(path_type=Path),  # any bytes, unlike a which a store may have to keep
    help="Generated images: a folder, a .zip, .npz or Parquet file, or a pattern that matches several of these.",
)
@click.option(
    "--pipeline",
    metavar="NAME",
    help="Generate the images with this diffusers pipeline instead: a folder, or a name of the Hugging Face Hub.",
)
@click.option("--samples", type=click.IntRange(1, 10**7), metavar="N", help="Images that --pipeline generates. [1000]")
@click.option("--batch-size", type=click.IntRange(1, 10**5), metavar="N", help="Images it generates at once. [50]")
@click.option("--steps", type=click.IntRange(1, 10**5), metavar="N", help="Steps of its sampler. [its own default]")
@click.option(
    "--precision",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    metavar="P",
    help="Generate fewer than --samples: stop once the 95% interval of the share of copies is +- P or narrower.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    envvar="DIFFMEM_PROCESSES",
    show_envvar=True,
    help="Number of processes on this machine, each for a share of the images.  [default: one per GPU]",
)
@click.option(
    "--against",
    required=True,
    metavar="DATASET",
    help="The training set: digits, emoji, cifar10, imagenet-dogs, or a path, as in P.dataset.",
)
@click.option(
    "--name", metavar="NAME", help="What the images are called in the store and on pages. [their folder's name]"
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
    "--list",
    "list_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.csv",
    help="Write for each image whether it is a copy, and of what.",
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
    images: Path | None,
    pipeline: str | None,
    samples: int | None,
    batch_size: int | None,
    steps: int | None,
    precision: float | None,
    processes: int | None,
    against: str,
    name: str | None,
    resolution: int | None,
    held_out: str | None,
    list_path: Path | None,
    quality: bool,
    measures: tuple[str, ...],
    groups: str | None,
    augment: tuple[str, ...],
    spaces: dict[str, dict[str, Any]],
    store_path: Path,
    as_json: bool,
) -> None:
    """Tell which images are copies of training images.

    The images can come from any generator: from files (--images), or from a diffusers pipeline (--pipeline) that needs
    neither a prompt nor a class.

    Training images are cropped and resized to the size of the generated ones. If that would enlarge all of them, the
    command refuses; --resolution allows it.

    The list (--list) has a row for each image, the most similar first: the image, which kind of copy it is, the
    distance to its nearest training image divided by that to the second nearest, the nearest training image, and the
    first image of that one's group of nearly identical training images, if it has one.

    The score is stored like any checkpoint. `diffmem report NAME` shows the images beside the training images that they
    copy.

    With --quality, the generated images as a whole are also compared with the training images and with held-out ones,
    by the values of their pixels and in each --space. The results are Frechet distance, precision, recall, density,
    coverage, authentic share and C_T.

    Example: diffmem score --images samples/ --against data/train/ --list copies.csv
    """
    generation = _given(samples=samples, batch_size=batch_size, steps=steps, precision=precision)
    _check(images, pipeline, generation, augment=augment, groups=groups, quality=quality, held_out=held_out)
    from diffmem.atomic import check_writable
    from diffmem.cli.reading import shown_reading
    from diffmem.external import score_images, score_pipeline
    from diffmem.runs import join, leave
    from diffmem.store import Store

    by_groups = [] if groups is None else [grouped_name(groups, augment)]
    how: dict[str, Any] = {
        "name": name,
        "resolution": resolution,
        "measures": list(dict.fromkeys([*by_groups, *measures])),
        "held_out": held_out,
        "spaces": spaces,
        "quality": quality,
    }
    if list_path is not None:
        check_writable(list_path)
    _hand_on(processes, images, against, held_out, resolution)
    group = join()
    with shown_reading() if group.leads else nullcontext():
        store = Store(store_path)
        if images is not None:
            result = score_images(images, against, store, group=group, **how)
        else:
            result = score_pipeline(str(pipeline), against, store, group=group, **generation, **how)
    leave()
    if not group.leads:
        return
    if list_path is not None:
        _write_list(result, list_path)
    if as_json:
        print_json({key: value for key, value in vars(result).items() if key != "matches"} | {"ratio": result.ratio})
        return
    _print_score(result, against, store)
    if list_path is not None:
        echo(f"each image and what it is nearest to: {list_path}")


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that are given."""
    return {name: value for name, value in options.items() if value is not None}


def _check(
    images: Path | None,
    pipeline: str | None,
    generation: dict[str, Any],
    *,
    augment: tuple[str, ...],
    groups: str | None,
    quality: bool,
    held_out: str | None,
) -> None:
    """Refuse options that do not go together."""
    if (images is None) == (pipeline is None):
        raise click.UsageError("name the images to score with --images, or a pipeline with --pipeline, one of both")
    if generation and pipeline is None:
        named = ", ".join(f"--{key.replace('_', '-')}" for key in generation)
        raise click.UsageError(f"{named}: of a --pipeline, and none is named")
    if augment and groups is None:
        raise click.UsageError("--augment is of groups of training images; add --groups near, or exact")
    if quality and held_out is None:
        raise click.UsageError("--quality compares with held-out images too; add --held-out IMAGES")


def _hand_on(
    processes: int | None, images: Path | None, against: str, held_out: str | None, resolution: int | None
) -> None:
    """Let several processes do the same command, if they are wanted and this is none of them, and end as they do.

    The images are read first, which keeps what is decoded: what is wrong with them is then said once.
    """
    from diffmem.cli.reading import shown_reading
    from diffmem.external import read_ahead
    from diffmem.runs import OrphanWatch, default_processes, launched, start

    OrphanWatch()
    if launched():
        return
    count = processes or default_processes(1)
    if count > 1:
        with shown_reading():
            read_ahead(images, against, held_out, resolution)
        sys.exit(start(count, sys.argv[1:]))


def _write_list(result: "Score", path: Path) -> None:
    """Write what each image is nearest to, the most similar first, as CSV."""
    from diffmem.atomic import whole
    from diffmem.external import Match

    text = io.StringIO()
    names = [field.name for field in fields(Match)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(each, name) for name in names] for each in result.matches())
    with whole(path) as file:
        file.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")


def _print_score(result: "Score", against: str, store: "Store") -> None:
    measures = store.study(result.study).measures
    echo(_answer(result))
    echo(
        f"A copy is an image whose nearest image of {against} is less than a third as far away as the second nearest; "
        f"the share of copies is the memorization ratio, {result.ratio:.4f}."
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
        rows = [{"copies": each.copies, "training image": each.file} for each in result.most_copied]
        most = "" if len(rows) == result.replicated else f"; the {len(rows)} that are copied most"
        print_table(f"{result.replicated} of {result.size} training images are copied{most}:", rows)
    named = "" if store.path == DEFAULT_STORE else f" --store {shlex.quote(str(store.path))}"
    echo(f"`diffmem report {shlex.quote(result.study)}{named}` shows them")


def _answer(result: "Score") -> str:
    """Return how many images are copies, beside what is called a copy of held-out images, in a sentence or two."""
    from diffmem.external import DUPLICATED, MIRRORED, NOT_LOOKED_FOR, more_copies

    share = f"{result.ratio:.1%}, 95% interval {result.low:.1%} to {result.high:.1%}"
    copies = "is a copy of a training image" if result.memorized == 1 else "are copies of training images"
    said = f"{result.memorized} of {counted(result.samples, 'image')} {copies} ({share})"
    if result.identical == result.samples:
        said += "; all of them are training images, pixel by pixel"
        said += " (were they scored against themselves?)" if result.samples == result.size else ""
    others = ((DUPLICATED, result.duplicated), (MIRRORED, result.mirrored))
    more = [more_copies(kind, count) for kind, count in others if count]
    if result.mirrored is None:
        more.append(NOT_LOOKED_FOR)
    return f"{'; '.join([said, *more])}. {_of_held_out(result)}"


def _of_held_out(result: "Score") -> str:
    """Say how many held-out images would be called copies."""
    if result.null_ratio is None:
        return "How often images are called copies by chance, held-out images tell (--held-out IMAGES)."
    called = round(result.null_ratio * result.null_samples)
    others = [(result.null_duplicated, result.duplicated, "of those that are there more than once")]
    others += [(result.null_mirrored, result.mirrored, "of mirrored or shifted ones")]
    also = "".join(f", {null} {of}" for null, count, of in others if null is not None and (null or count))
    images = counted(result.null_samples, "held-out image")
    return f"Of {images}, {called} would be called copies{also} (p {_chance(result.p_value)})."


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

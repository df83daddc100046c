"""Scoring the images of any generator against a training set."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from diffmem.cells import Estimation
from diffmem.data import (
    Size,
    Source,
    groups_in,
    image_names,
    kept_names,
    load_source,
    note,
    read_images,
    shown_size,
    unlike_scales,
)
from diffmem.errors import DataError, SizeError, StoreError
from diffmem.external.asked import Asked, Known, replaced
from diffmem.external.compared import Enough, Pixels, compare
from diffmem.external.foreign import ForeignCell, called, pipeline_name, study_name
from diffmem.external.matches import (
    DUPLICATED,
    MIRRORED,
    MORE_COPIES,
    NOT_LOOKED_FOR,
    TRANSFORMED,
    Match,
    copies_of_others,
    counts,
    looks_for_transformed,
    matches,
    more_copies,
    near_images,
    only,
)
from diffmem.external.nulls import caveats_of_held_out, null_of, nulls_of
from diffmem.external.pipeline import Sampling, generated_by
from diffmem.external.scored import Copied, Score
from diffmem.measures import (
    GROUPED,
    MOST_COPIED,
    NEAREST,
    PIXELS,
    Evidence,
    ImageQuality,
    QualityValue,
    Spaces,
    identity_of,
    joined,
    p_value,
    spaces_of,
    wilson,
)
from diffmem.models import Group, this_device
from diffmem.store import Checkpoint, Kind, ListedCell, Listing, Null, Outcome, Store, provenance
from diffmem.text import readable

PAIRS = 32
"""Images whose pictures the store keeps."""

READ_OFF = {**Estimation().model_dump(mode="json"), "threshold": NEAREST.threshold}
"""How the ratios of images are read off: as a study does that says nothing of it."""

ORDER_SEED = 0
"""Seed of the order in which images of other tools are taken."""


def score_images(
    images: Path | str,
    against: str,
    store: Store,
    *,
    name: str | None = None,
    resolution: int | None = None,
    measures: Sequence[str] = (),
    held_out: Path | str | None = None,
    spaces: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    quality: bool = False,
    group: Group | None = None,
) -> Score:
    """Score a folder, .zip, .npz or Parquet file of generated images against all images of a dataset, and store it.

    They are stored as a study called `name`, by default as their folder or file is. The training images are cropped and
    resized to the size of the generated ones, or both to `resolution` (pixels a side). They are scored by the paper's
    measure, by `measures`, by name, and in feature `spaces`, each a table of settings by its name, as [spaces.NAME] of
    a study has them, or with a function as its features. `held_out` are images of the distribution of the training
    images, which are none of them: what is called a copy of those is the null. The `quality` of the generated images is
    measured beside training images and these. Each process of a `group` compares a share of the images, and the first
    one stores what all have found. Raises DataError where they do not compare.
    """
    generated = _advised(lambda: read_images(str(images), resolution=resolution))
    asked = Asked(measures, held_out, spaces, quality, resolution)
    label = str(images)
    known_as = Known(label, name or study_name(label), image_names(label, generated))
    return _score(generated, known_as, against, store, asked, group or Group(device=this_device()))


def read_ahead(
    images: Path | str | None, against: Path | str, held_out: Path | str | None, resolution: int | None
) -> None:
    """Read what `score_images` or `score_pipeline` will (`images` None), so that what is wrong with it is said before
    hours of work, or before several processes start; DataError as they raise."""
    size: Size | int | None = resolution
    if images is not None:
        generated = _advised(lambda: read_images(str(images), resolution=resolution))
        size = (generated.images.shape[3], generated.images.shape[2])
    for each in map(str, filter(None, (against, held_out))):
        read = partial(load_source, each, size, enlarge=resolution is not None)
        if images is not None:
            _advised(read)
        else:
            with suppress(SizeError):  # the size of the generated ones is not known yet
                read()


def score_pipeline(
    pipeline: str,
    against: str,
    store: Store,
    *,
    samples: int = 1000,
    batch_size: int = 50,
    steps: int | None = None,
    precision: float | None = None,
    name: str | None = None,
    resolution: int | None = None,
    measures: Sequence[str] = (),
    held_out: Path | str | None = None,
    spaces: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    quality: bool = False,
    group: Group | None = None,
) -> Score:
    """Score `samples` images that a diffusers pipeline generates, of a local folder or of the Hugging Face Hub.

    They are generated in batches, with so many `steps` of its sampler, and are not written to files. With a
    `precision`, it generates fewer, as soon as the ratio's 95% Wilson interval is +- this or narrower. Each process of
    a `group` generates a share; all else is as in `score_images`. Raises DataError where the pipeline cannot be loaded,
    or needs a prompt or a class.
    """
    group = group or Group(device=this_device())
    asked = Asked(measures, held_out, spaces, quality, resolution)
    known_as = Known(pipeline, name or pipeline_name(pipeline), [f"{pipeline}:{number}" for number in range(samples)])
    asked.spaces_and_measures()  # what is wrong with these is said before hours of generation
    known_as.refuse_trained(store)
    read_ahead(None, against, held_out, resolution)
    sampling = Sampling(samples, batch_size, steps, resolution)
    enough = None if precision is None else _enough_for(precision, against, resolution, group)
    generated = generated_by(pipeline, sampling, group, enough)
    return _score(generated, known_as, against, store, asked, group)


def _enough_for(precision: float, against: str, resolution: int | None, group: Group) -> Callable[[Pixels], bool]:
    """Return what tells of images after images whether the ratio of all so far is known to a precision."""

    @cache
    def ratio_of(size: Size) -> Enough:
        source = _advised(lambda: load_source(against, size, enlarge=resolution is not None))
        return Enough(source.images, precision, group)

    return lambda images: ratio_of((images.shape[3], images.shape[2]))(images)


def _score(generated: Source, known_as: Known, against: str, store: Store, asked: Asked, group: Group) -> Score:
    """Score generated images with all processes of a group, and store what is found in the first one."""
    declared, measures = asked.spaces_and_measures()
    in_spaces = {each: space.measure for each, space in declared.items()}
    label, name = known_as.label, readable(known_as.study)
    size = (generated.images.shape[3], generated.images.shape[2])
    enlarge = asked.resolution is not None
    source = _advised(lambda: load_source(against, size, enlarge=enlarge))
    if len(source.images) < 2:
        raise DataError(f"{against}: one image; a second nearest training image needs two")
    cell = ForeignCell(source.fingerprint or against, len(source.images), size, {"images": generated.fingerprint})
    at = f" at {shown_size(size)}" if enlarge else ""  # the same files at other sizes are another curve
    curve = readable(f"{called(label, generated)} against {called(against, source)}{at}")
    known_as.refuse_trained(store)
    groups = groups_in(source)
    unseen = None if asked.held_out is None else _read_held_out(asked.held_out, source, size, asked.resolution)
    shape = (max(each.images.shape[1] for each in (generated, source)), *size[::-1])
    identities = [identity_of(each, shape, group.device) for each in declared.values()]
    if identities and group.leads:
        store.add_spaces(identities)
    compared = len(generated.images) + (0 if unseen is None else len(unseen.images))
    also = [TRANSFORMED] * looks_for_transformed(compared, source.images.shape, group.device)
    looked_for = list(dict.fromkeys([*measures, *also]))
    null = None if unseen is None else compare(unseen.images, source.images, looked_for, in_spaces, group=group)
    notes = tuple(_notes(label, generated, against, source, note(groups)))
    notes += () if unseen is None else tuple(f"{asked.held_out}: {each}" for each in unseen.notes)
    # which follow from what is stored
    caveats = caveats_of_held_out(asked, null, store, name, cell, against) + known_as.beside(store)
    if group.leads:
        _register(store, name, label, cell, curve, notes)
    order = np.random.default_rng(ORDER_SEED).permutation(len(generated.images))
    started = time.monotonic()
    evidence = compare(generated.images, source.images, looked_for, in_spaces, group=group, order=order, pairs=PAIRS)
    files = image_names(against, source)
    found: list[QualityValue] = []
    if group.leads:
        names = kept_names(label, [known_as.names[i] for i in order[: len(evidence.pairs)]])
        shown = zip(evidence.pairs, names, copies_of_others(evidence, against, files, len(names)), strict=True)
        evidence = replace(evidence, pairs=[pair._replace(name=name, copy_of=of) for pair, name, of in shown])
        _keep(cell, only(evidence, measures), store, time.monotonic() - started)
        store.add_training_images(cell.cell_id, near_images(only(evidence, measures), against, files, groups.widest))
        for said in _other_copies(evidence):
            store.add_note(cell.cell_id, f"{label}: {said}")
        if null is not None and (before := store.add_held_out(cell.cell_id, only(null, measures), newest=True)):
            caveats += (replaced(str(asked.held_out), before, null.samples),)
        found, more = _quality(cell, store, generated, source, unseen if asked.quality else None, in_spaces)
        caveats += tuple(more)
    group.any(flag=False)  # the others read the store after this
    return _result(
        *(name, cell, evidence, null, store),
        files=files,
        matched=partial(matches, evidence, order, samples=known_as.names, training=files, groups=groups.widest),
        twins=groups.identical,
        notes=(*notes, *caveats),
        asked=measures,
        quality=found,
    )


def _other_copies(evidence: Evidence) -> list[str]:
    """Return in sentences how many images are copies of another kind, or that these were not looked for."""
    if TRANSFORMED not in evidence.others:
        return [NOT_LOOKED_FOR]
    return [more_copies(kind, count) for kind, count in counts(evidence).items() if kind in MORE_COPIES]


def _register(store: Store, name: str, images: str, cell: ForeignCell, curve: str, notes: Sequence[str]) -> None:
    """Make the images a study, or a curve of one: other images of this name, or another training set, are another."""
    store.register(
        Listing(name, f"Images called {name}", readable(images), READ_OFF),
        [ListedCell(cell, curve, f"{curve}, N = {cell.size}", {})],
        kind=Kind.IMAGES,
        notes={cell.cell_id: notes},
        keep=True,
    )


def _quality(
    cell: ForeignCell, store: Store, generated: Source, source: Source, unseen: Source | None, in_spaces: Spaces
) -> tuple[list[QualityValue], list[str]]:
    """Measure generated images beside training images and unseen ones, and store that; return it with its notes."""
    if unseen is None:
        return [], []
    order = np.random.default_rng(ORDER_SEED).permutation(len(generated.images))
    sets = generated.images[order], source.images, unseen.images
    channels = max(each.shape[1] for each in sets)
    of, training, held_out = (np.broadcast_to(each, (len(each), channels, *each.shape[2:])) for each in sets)
    spaces = [PIXELS, *spaces_of(in_spaces)]
    found = joined([ImageQuality(training, held_out, space=each, device=this_device()).of(of) for each in spaces])
    store.add_quality(cell.cell_id, 0, found.values, anew=True)
    notes = [*found.notes, *filter(None, [found.reason])]
    for said in notes:
        store.add_note(cell.cell_id, said)
    return found.values, notes


def _result(
    name: str,
    cell: ForeignCell,
    evidence: Evidence,
    of_null: Evidence | None,
    store: Store,
    *,
    files: Sequence[str],
    matched: Callable[[], list[Match]],
    twins: int,
    notes: tuple[str, ...],
    asked: Sequence[str],
    quality: list[QualityValue],
) -> Score:
    """Return what was found of a study's images, by the measures `asked` and those that the store has; `files` are
    the names of the training images."""
    found = {each.measure: each for each in store.measurements(cell.cell_id, 0) if each.measure != NEAREST.name}
    low, high = wilson(evidence.ratio, evidence.samples).tolist()
    replicated, null = store.replicated(cell.cell_id), null_of(store, name, cell, NEAREST)
    kinds, looked_for = counts(evidence), TRANSFORMED in evidence.others
    null_kinds = counts(of_null) if of_null is not None and looked_for else None
    return Score(
        name,
        evidence.samples,
        evidence.memorized,
        low,
        high,
        size=cell.size,
        mirrored=kinds[MIRRORED] if looked_for else None,
        duplicated=kinds[DUPLICATED] if looked_for else None,
        identical=int((evidence.d1 == 0).sum()),
        matches=matched,
        replicated=len(replicated),
        most_copied=[Copied(each.nearest, each.copies, files[each.nearest]) for each in replicated[:MOST_COPIED]],
        twins=twins,
        notes=notes,
        null_ratio=None if null is None else null.ratio,
        null_samples=0 if null is None else null.samples,
        null_mirrored=None if null_kinds is None else null_kinds[MIRRORED],
        null_duplicated=None if null_kinds is None else null_kinds[DUPLICATED],
        p_value=None if null is None else _chance(evidence, null),
        measurements=list(found.values()),
        grouped_ratio=next((found[measure].value for measure in asked if measure in GROUPED), None),
        nulls=list(nulls_of(store, name, cell, asked)),
        quality=quality,
    )


def _chance(found: Evidence, null: Null) -> float:
    return p_value(found.memorized, found.samples, null.copies, null.samples)


def _read_held_out(images: Path | str, source: Source, size: Size, resolution: int | None) -> Source:
    """Return held-out images at the size at which others are compared; DataError where they have other channels."""
    found = _advised(lambda: load_source(str(images), size, enlarge=resolution is not None))
    if found.images.shape[1] > source.images.shape[1]:
        raise DataError(f"{images}: held-out images in colour, but the training images are grey")
    return found


def _advised(read: Callable[[], Source]) -> Source:
    """Read images; where they have no common size, say which option gives them one."""
    try:
        return read()
    except SizeError as error:
        raise DataError(f"{error}; --resolution N compares all images at N x N pixels") from error


def _notes(images: str, generated: Source, against: str, source: Source, duplicates: str) -> Iterator[str]:
    """Yield what was done to generated and training images, and what makes them unlike each other."""
    yield from (f"{images}: {each}" for each in generated.notes)
    yield from (f"{against}: {each}" for each in (*source.notes, duplicates) if each)
    if generated.images.shape[1] != source.images.shape[1]:
        kinds = ["grey" if kind.images.shape[1] == 1 else "RGB" for kind in (generated, source)]
        yield f"{images}: {kinds[0]} images, those of {against} are {kinds[1]}; grey was repeated as RGB"
    if generated.fingerprint and generated.fingerprint == source.fingerprint:
        yield f"{images}: the same images as those of {against}, each of which is its own nearest one"
    if scale := unlike_scales(generated.images, source.images):
        yield f"{images}: {scale}"


def _keep(cell: ForeignCell, evidence: Evidence, store: Store, seconds: float) -> None:
    """Append what was found of images, in a random order, to the store.

    The first ones then stand for all in galleries and figures, where an order by file names may go by what they show.
    """
    attempt = store.start_attempt(cell.cell_id, provenance(this_device()))
    checkpoint = Checkpoint.of(
        evidence,
        cell_id=cell.cell_id,
        attempt_id=attempt,
        epoch=0,
        step=0,
        loss=None,
        train_seconds=0.0,
        score_seconds=seconds,
    )
    if not store.append(checkpoint, outcome=Outcome.FINISHED):
        memorized, samples = store.counted(cell.cell_id, checkpoint.epoch)
        if (samples, memorized) != (checkpoint.samples, checkpoint.memorized):
            raise StoreError(
                f"{store.path}: has another score of the same images, {memorized} of {samples} "
                f"instead of {checkpoint.memorized} of {checkpoint.samples} memorized; name another store"
            )
        for name, other in checkpoint.others.items():  # which an earlier score may lack
            store.add_measure(cell.cell_id, checkpoint.epoch, name, other)

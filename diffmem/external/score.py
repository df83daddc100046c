"""Scoring the images of any generator against a training set."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffmem.cells import Estimation
from diffmem.data import (
    Size,
    Source,
    groups_in,
    image_names,
    kept_names,
    load_source,
    note,
    progress,
    read_images,
    shown_size,
    unlike_scales,
)
from diffmem.errors import DataError, SizeError, StoreError
from diffmem.external.asked import Asked, Known, held_out_caveats, replaced
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
from diffmem.external.pipeline import generated_by
from diffmem.external.scored import Copied, MeasureNull, Score
from diffmem.measures import (
    GROUPED,
    MOST_COPIED,
    NEAREST,
    NO_SPACES,
    PIXELS,
    Comparison,
    DeclaredSpace,
    Evidence,
    ImageQuality,
    Measure,
    QualityValue,
    Spaces,
    identity_of,
    joined,
    p_value,
    spaces_of,
    wilson,
)
from diffmem.models import ALONE, this_device
from diffmem.store import Checkpoint, Kind, ListedCell, Listing, Null, Outcome, Store, provenance
from diffmem.text import readable

BATCH = 1000

PAIRS = 32

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
) -> Score:
    """Score a folder, .zip, .npz or Parquet file of generated images against all images of a dataset, and store it.

    They are stored as a study called `name`, by default as their folder or file is. The training images are cropped and
    resized to the size of the generated ones, or both to `resolution` (pixels a side). They are scored by the paper's
    measure, by `measures`, by name, and in feature `spaces`, each a table of settings by its name, as [spaces.NAME] of
    a study has them, or with a function as its features. `held_out` are images of the distribution of the training
    images, which are none of them: what is called a copy of those is the null. The `quality` of the generated images is
    measured beside training images and these. Raises DataError where they do not compare.
    """
    generated = _advised(lambda: read_images(str(images), resolution=resolution))
    asked = Asked(measures, held_out, spaces, quality, resolution)
    label = str(images)
    return _score(
        generated, Known(label, name or study_name(label), image_names(label, generated)), against, store, asked
    )


def score_pipeline(
    pipeline: str,
    against: str,
    store: Store,
    *,
    samples: int = 1000,
    batch_size: int = 50,
    steps: int | None = None,
    name: str | None = None,
    resolution: int | None = None,
    measures: Sequence[str] = (),
    held_out: Path | str | None = None,
    spaces: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    quality: bool = False,
) -> Score:
    """Score `samples` images that a diffusers pipeline generates, of a local folder or of the Hugging Face Hub.

    They are generated in batches, with so many `steps` of its sampler, and are not written to files; all else is as
    in `score_images`. Raises DataError where the pipeline cannot be loaded, or needs a prompt or a class.
    """
    asked = Asked(measures, held_out, spaces, quality, resolution)
    known_as = Known(pipeline, name or pipeline_name(pipeline), [f"{pipeline}:{number}" for number in range(samples)])
    asked.spaces_and_measures()  # what is wrong with these is said before hours of generation
    known_as.refuse_trained(store)
    for images in filter(None, (against, held_out)):
        with suppress(SizeError):  # the size of the generated ones is not known yet
            load_source(str(images), resolution, enlarge=resolution is not None)
    generated = generated_by(pipeline, samples=samples, batch_size=batch_size, steps=steps, resolution=resolution)
    return _score(generated, known_as, against, store, asked)


def _score(generated: Source, known_as: Known, against: str, store: Store, asked: Asked) -> Score:
    """Score generated images and store what is found."""
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
    _know(store, declared.values(), (max(each.images.shape[1] for each in (generated, source)), *size[::-1]))
    looked_for = [*measures]
    compared = len(generated.images) + (0 if unseen is None else len(unseen.images))
    if looks_for_transformed(compared, source.images.shape, this_device()):
        looked_for = list(dict.fromkeys([*measures, TRANSFORMED]))
    null = None if unseen is None else _compared(unseen.images, source.images, looked_for, in_spaces)
    notes = tuple(_notes(label, generated, against, source, note(groups)))
    caveats: tuple[str, ...] = ()  # which follow from what is stored
    if unseen is not None and null is not None:
        notes += tuple(f"{asked.held_out}: {each}" for each in unseen.notes)
        caveats = held_out_caveats(str(asked.held_out), null.samples, int((null.d1 == 0).sum()), against)
    elif store.exists() and (stored := null_of(store, name, cell, NEAREST)) is not None:
        caveats = held_out_caveats("held-out images given before", stored.samples, stored.trained_on, against)
    caveats += known_as.beside(store)
    _register(store, name, label, cell, curve, notes)
    order = np.random.default_rng(ORDER_SEED).permutation(len(generated.images))
    started = time.monotonic()
    evidence = _compared(generated.images, source.images, looked_for, in_spaces, order=order, pairs=PAIRS)
    names = kept_names(label, [known_as.names[i] for i in order[: len(evidence.pairs)]])
    files = image_names(against, source)
    pairs = zip(evidence.pairs, names, copies_of_others(evidence, against, files, len(names)), strict=True)
    evidence = replace(evidence, pairs=[pair._replace(name=name, copy_of=of) for pair, name, of in pairs])
    _keep(cell, only(evidence, measures), store, time.monotonic() - started)
    store.add_training_images(cell.cell_id, near_images(only(evidence, measures), against, files, groups.widest))
    others = [more_copies(kind, count) for kind, count in counts(evidence).items() if kind in MORE_COPIES]
    for said in others if TRANSFORMED in looked_for else [NOT_LOOKED_FOR]:
        store.add_note(cell.cell_id, f"{label}: {said}")
    if null is not None and (before := store.add_held_out(cell.cell_id, only(null, measures), newest=True)):
        caveats += (replaced(str(asked.held_out), before, null.samples),)
    found, more = _quality(cell, store, generated, source, unseen if asked.quality else None, in_spaces)
    return _result(
        *(name, cell, evidence, null, store),
        files=files,
        matched=partial(matches, evidence, order, samples=known_as.names, training=files, groups=groups.widest),
        twins=groups.identical,
        notes=(*notes, *caveats, *more),
        asked=measures,
        quality=found,
    )


def _know(store: Store, declared: Iterable[DeclaredSpace], shape: tuple[int, int, int]) -> None:
    """Record what the names of feature spaces stand for; StoreError where the store knows another of a name."""
    if identities := [identity_of(each, shape, this_device()) for each in declared]:
        store.add_spaces(identities)


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
        nulls=list(_nulls(store, name, cell, asked)),
        quality=quality,
    )


def null_of(store: Store, study: str, cell: ForeignCell, measure: Measure) -> Null | None:
    """Return what a measure says of the held-out images that the store has of a cell's training set, None of none."""
    positions = [each.position for each in store.cells(study) if each.cell_id == cell.cell_id]
    nulls = store.nulls(study, measure, measure.threshold)
    return next((nulls[position] for position in positions if position in nulls), None)


def _chance(found: Evidence, null: Null) -> float:
    return p_value(found.memorized, found.samples, null.copies, null.samples)


def _nulls(store: Store, study: str, cell: ForeignCell, asked: Sequence[str]) -> Iterator[MeasureNull]:
    """Yield what the measures asked for, but for the paper's, say of the held-out images that the store has."""
    measures = store.study(study).measures
    for measure in (measures[name] for name in asked if name != NEAREST.name):
        if (null := null_of(store, study, cell, measure)) is not None:
            at = None if math.isinf(null.at_one_percent) else measure.shown(null.at_one_percent)
            yield MeasureNull(measure.name, null.ratio, null.samples, at)


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


def _compared(
    images: npt.NDArray[np.uint8],
    training_images: npt.NDArray[np.uint8],
    measures: Sequence[str],
    spaces: Spaces = NO_SPACES,
    *,
    order: npt.NDArray[np.int64] | None = None,
    pairs: int = 0,
) -> Evidence:
    """Compare images with a training set, in their own order or another one."""
    device, channels = this_device(), max(images.shape[1], training_images.shape[1])
    comparison = Comparison(_on(device, training_images, channels), pairs=pairs, others=measures, spaces=spaces)
    tell = progress.get()
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH] if order is None else images[order[start : start + BATCH]]
        comparison.add(_on(device, part, channels))
        tell("scoring", min(start + BATCH, len(images)), len(images))
    comparison.gather(ALONE, len(images))
    return comparison.evidence()


def _on(device: torch.device, images: npt.NDArray[np.uint8], channels: int) -> Tensor:
    """Return images as a tensor on a device, grey ones repeated to so many channels, without copying on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that those of a mapped file must not be written to, which nothing does
        tensor = torch.from_numpy(images)
    return tensor.to(device).expand(-1, channels, -1, -1)

"""Measures computed later: from trained models that are kept, without training."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from diffmem.cells import Cell, epoch_of
from diffmem.data import training_set
from diffmem.errors import RunError
from diffmem.measures import (
    DENOISER_MEASURES,
    GENERATED_IMAGES,
    QUALITY,
    Evidence,
    asks_for_quality,
    check_measure,
    of_copies,
    of_denoisers,
)
from diffmem.models import Group, set_precision
from diffmem.networks import UntrainedModel
from diffmem.runs.checkpoint_model import CheckpointModel, Device
from diffmem.runs.denoising import Denoised, measure_denoiser
from diffmem.runs.kept_models import Made, find_model
from diffmem.runs.nulls import NullMeasured, measure_null
from diffmem.runs.quality import CellQuality, add_quality, stored_distances
from diffmem.runs.spaces import check_spaces
from diffmem.runs.training_images import look_through
from diffmem.store import Checkpoint, Listing, Measurement, Outcome, Store, StoredLevel, provenance
from diffmem.study import Study, StudyCell


@dataclass(frozen=True)
class Later:
    """What was measured of a trained model, with its 95% interval: the share of copies by one measure, or the largest
    value of a measure of its denoiser at any noise level."""

    cell_id: str
    name: str  # its axis values
    epoch: float  # a part of one where the checkpoint is inside an epoch
    measure: str
    value: float
    low: float
    high: float
    n: int  # images behind it
    new: bool  # whether the store did not have it yet
    note: str  # in what the images are not those that were scored
    quantity: str = ""  # of a measure of the denoiser, and the noise level at which it is largest; of the quality
    sigma: float | None = None


@dataclass(frozen=True)
class NotMeasured:
    """A cell of which nothing is measured."""

    cell_id: str
    name: str
    reason: str


NOT_KEPT = 'no trained model is kept; score.keep = "last" keeps it, in a run with another --store'
NOT_LAST = "the model that is kept is not that of the last checkpoint (score.keep)"
NOT_RUN = "nothing is in the store yet; run the study first"


def measure_study(
    study: Study,
    store: Store,
    *,
    measures: Sequence[str] = (),
    samples: int | None = None,
    steps: int | None = None,
    device: Device = "cpu",
) -> Iterator[Later | NotMeasured | NullMeasured]:
    """Add measures, by name, to every checkpoint of a study whose trained model is kept, and yield what is measured.

    First it computes what takes no model: the null of each training set, and how alike its images are. With `samples`
    or `steps`, the last checkpoint of each cell is scored again, with that many images or noise levels. These scores
    become cells of another study, whose name ends in what is new. Raises DataError for a measure that diffmem does not
    know.
    """
    for name in measures:
        check_measure(name, study.space_measures)
    check_spaces(study, store, Group(device=torch.device(device)))
    entries = measured_entries(study, store)
    yield from _nulls(entries, store, measures, device)
    if samples or steps:
        yield from _scored_anew(study, entries, store, measures, samples=samples, steps=steps, device=device)
        return
    kept = store.kept_weights()
    for entry in entries if measures else []:
        cell, measured = entry.cell, store.measured_epochs(entry.cell.cell_id)
        epochs = measured if isinstance(cell.M, UntrainedModel) else kept.get(cell.cell_id, {}).keys()
        if not epochs & measured:
            yield NotMeasured(cell.cell_id, entry.name, NOT_KEPT if measured else NOT_RUN)
        beside = CellQuality(cell, device, in_spaces=entry.spaces) if asks_for_quality(measures) else None
        yield from _once(
            found
            for epoch in sorted(epochs & measured)
            for found in chain(
                _added(entry, store, epoch, of_copies(measures, entry.spaces), device, beside),
                _denoised(entry, cell, store, epoch, of_denoisers(measures), device),
            )
        )


def _once(found: Iterator[Later | NotMeasured]) -> Iterator[Later | NotMeasured]:
    """Yield a reason that holds at every checkpoint of a cell once."""
    said = set()
    for each in found:
        if each not in said:
            yield each
        said.add(each)


def measured_entries(study: Study, store: Store) -> list[StudyCell]:
    """Return the cells of a study; of a search, those of each size that anything is measured of."""
    if study.estimation.search != "bisect":
        return study.distinct
    sizes = sorted({*study.search_range, *store.measured_sizes(*study.search_range)})
    draws = [None] if study.one_more_draw is None else [None, study.one_more_draw]
    had = store.checkpoint_counts()
    entries = (entry for size in sizes for draw in draws for entry in study.at(size, draw=draw))
    return [entry for entry in entries if entry.cell.cell_id in had]


def _nulls(
    entries: Sequence[StudyCell], store: Store, measures: Sequence[str], device: Device
) -> Iterator[NullMeasured]:
    """Compare held-out images with the training sets of the cells that are measured, and look through these."""
    measured = store.checkpoint_counts()
    for entry in entries:
        if not measured.get(entry.cell.cell_id):
            continue
        names = tuple(dict.fromkeys([*entry.cell.score.measures, *measures]))
        scoring = entry.cell.score.model_copy(update={"measures": names})
        cell = entry.cell.model_copy(update={"score": scoring})

        def images(cell: Cell = cell) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(training_set(cell).images)).to(device)

        look_through(cell, store, images, Group(device=torch.device(device)))
        if count := measure_null(cell, store, images, Group(device=torch.device(device)), entry.spaces):
            yield NullMeasured(cell.cell_id, entry.name, count)


def _added(
    entry: StudyCell, store: Store, epoch: int, measures: Sequence[str], device: Device, beside: CellQuality | None
) -> Iterator[Later | NotMeasured]:
    """Add measures, and the quality if there are images to measure it `beside`, to a checkpoint that the store has."""
    cell = entry.cell
    had = {each.measure: each for each in store.measurements(cell.cell_id, epoch)}
    yield from (_later(entry, had[name], new=False) for name in measures if name in had)
    missing = [name for name in measures if name not in had]
    new = beside.missing(store.quality(cell.cell_id, epoch)) if beside else set()
    note = ""
    if missing or new:
        _, count = store.counted(cell.cell_id, epoch)
        model = CheckpointModel(cell, store, epoch, device, entry.spaces)
        found, images = model.evidence(count, cell.score, missing, keep=GENERATED_IMAGES if new else 0)
        note = _difference(store, cell.cell_id, epoch, found, model)
        if note:
            store.add_note(cell.cell_id, f"{', '.join([*missing, *[QUALITY] * bool(new)])}: {note}")
        for name in missing:
            store.add_measure(cell.cell_id, epoch, name, found.others[name])
        if beside and new:
            reasons = add_quality(store, cell.cell_id, epoch, beside.of(images, new))
            yield from (NotMeasured(cell.cell_id, entry.name, reason) for reason in reasons)
    yield from (
        _later(entry, each, new=True, note=note)
        for each in store.measurements(cell.cell_id, epoch)
        if each.measure in missing
    )
    if beside:
        yield from _distances(entry, store, epoch, new=new, note=note)


def _distances(entry: StudyCell, store: Store, epoch: int, *, new: set[str], note: str = "") -> Iterator[Later]:
    """Yield the Frechet distances to training and held-out images that the store has of a checkpoint."""
    for quantity, each in stored_distances(store, entry.cell.cell_id, epoch):
        about = entry.cell.cell_id, entry.name, epoch_of(entry.cell.configuration, epoch), QUALITY
        yield Later(*about, each.value, each.low, each.high, each.n, each.space in new, note, quantity)


def _later(entry: StudyCell, found: Measurement, *, new: bool, note: str = "") -> Later:
    interval, epoch = (found.low, found.high), epoch_of(entry.cell.configuration, int(found.epoch))
    return Later(entry.cell.cell_id, entry.name, epoch, found.measure, found.value, *interval, found.n, new, note)


def _difference(store: Store, cell_id: str, epoch: int, found: Evidence, model: CheckpointModel) -> str:
    """Say how many images are not those that were scored, and why; empty where all are. RunError where the evidence
    of the checkpoint is damaged."""
    stored = store.distances(cell_id, epoch)
    if len(stored["nearest"]) != found.samples:
        raise RunError(
            f"{store.path}: {cell_id} at checkpoint {epoch} has evidence of {len(stored['nearest'])} images instead of "
            f"{found.samples}; `diffmem store check` lists what else is wrong"
        )
    same = (stored["nearest"] == found.nearest) & (stored["d1"] == found.d1) & (stored["d2"] == found.d2)
    differing = int((~same).sum())
    if not differing:
        return ""
    made, here = model.made or "another device", Made.here(model.device)
    return f"{differing} of {len(same)} images differ from those scored, which were made on {made}, these on {here}"


def _denoised(
    entry: StudyCell, trained: Cell, store: Store, epoch: int, names: Sequence[str], device: Device
) -> Iterator[Later | NotMeasured]:
    """Add measures of a denoiser to a checkpoint that the store has, from the model of the cell that was trained."""
    if not names:
        return
    cell_id = entry.cell.cell_id
    had = {each.measure for each in store.levels(cell_id, epoch)}
    found = Denoised()
    if missing := [name for name in names if name not in had]:
        model = CheckpointModel(trained, store, epoch, device)
        set_precision(trained.T)
        found = measure_denoiser(trained, model.denoiser, model.data, missing, group=Group(device=torch.device(device)))
    for note in found.notes:
        store.add_note(cell_id, note)
    for name, values in found.values.items():
        store.add_levels(cell_id, epoch, name, values)
    yield from (NotMeasured(cell_id, entry.name, reason) for reason in found.reasons.values())
    for name in names:
        headline = DENOISER_MEASURES[name].headline
        stored = [each for each in store.levels(cell_id, epoch) if (each.measure, each.quantity) == (name, headline)]
        if stored:
            yield _largest(entry, stored, new=name not in had)


def _largest(entry: StudyCell, values: Sequence[StoredLevel], *, new: bool) -> Later:
    """Return the value of the noise level at which it is largest."""
    found = max(values, key=lambda each: each.value)
    interval = found.low, found.high
    about = entry.cell.cell_id, entry.name, epoch_of(entry.cell.configuration, found.epoch), found.measure
    return Later(*about, found.value, *interval, found.n, new, "", found.quantity, found.sigma)


# --- scored anew ---------------------------------------------------------------------------------------


def _scored_anew(
    study: Study,
    entries: Sequence[StudyCell],
    store: Store,
    measures: Sequence[str],
    *,
    samples: int | None,
    steps: int | None,
    device: Device,
) -> Iterator[Later | NotMeasured]:
    given = {key: value for key, value in (("samples", samples), ("steps", steps)) if value}
    if any(entry.cell.score.precision for entry in entries):
        raise RunError("score.precision ends generating by itself; --samples and --steps are for studies without it")
    there = [entry for entry in entries if _is_there(entry.cell, store)]
    for entry in entries:
        if entry not in there:
            yield NotMeasured(entry.cell.cell_id, entry.name, _why_not(entry.cell, store))
    anew = [replace(entry, cell=_anew(entry.cell, given)) for entry in there]
    if not anew:
        return
    models = [entry for entry in there if not isinstance(entry.cell.M, UntrainedModel)]
    for entry in models:
        find_model(store, entry.cell.cell_id, entry.cell.checkpoints[-1][0])  # before anything is written
    texts = " ".join(f"{key}={value}" for key, value in given.items())
    listing = Listing(
        f"{study.name}+{texts.replace(' ', '+')}",
        f"{study.title}, scored anew with {texts.replace(' ', ', ')}",
        study.path,
        study.estimated,
        figure=study.figure,
        axes=study.axes,
        overrides=[*study.overrides, *(f"score.{key}={value}" for key, value in given.items())],
    )
    store.register(listing, anew, folder=study.folder)
    for entry, old in zip(anew, there, strict=True):
        asked = [*dict.fromkeys([*entry.cell.score.measures, *measures])]
        yield from _one_checkpoint(entry, old.cell, store, asked, device)
        epoch, _ = entry.cell.checkpoints[-1]
        yield from _denoised(entry, old.cell, store, epoch, of_denoisers(asked), device)


def _is_there(cell: Cell, store: Store) -> bool:
    """Return whether the model of a cell's last checkpoint can be had."""
    last = cell.checkpoints[-1][0]
    kept = last in store.kept_weights().get(cell.cell_id, {})
    return kept or (isinstance(cell.M, UntrainedModel) and last in store.measured_epochs(cell.cell_id))


def _why_not(cell: Cell, store: Store) -> str:
    if not store.measured_epochs(cell.cell_id):
        return NOT_RUN
    return NOT_LAST if store.kept_weights().get(cell.cell_id) else NOT_KEPT


def _anew(cell: Cell, given: dict[str, int]) -> Cell:
    """Return the cell of the same training with another scoring, and its last checkpoint alone."""
    # log-spaced checkpoints are known by their step, and so is one of them alone
    one = {"every": max(1, cell.epochs)} if cell.score.points is None else {"points": 1}
    scoring = cell.score.model_copy(update={**given, **one})
    return cell.model_copy(update={"score": scoring})


def _one_checkpoint(
    entry: StudyCell, old: Cell, store: Store, asked: Sequence[str], device: Device
) -> Iterator[Later | NotMeasured]:
    """Append the one checkpoint of a cell that is scored anew, from the model of the old one."""
    cell, (epoch, step) = entry.cell, entry.cell.checkpoints[-1]
    had = {each.measure for each in store.measurements(cell.cell_id, epoch)}
    missing = [name for name in of_copies(asked, entry.spaces) if name not in had]
    beside = CellQuality(old, device, in_spaces=entry.spaces)
    new = beside.missing(store.quality(cell.cell_id, epoch)) if asks_for_quality(asked) else set()
    keep = GENERATED_IMAGES if new else 0
    images = None
    if had and (missing or new):
        model = CheckpointModel(old, store, epoch, device, entry.spaces)
        found, images = model.evidence(cell.score.samples, cell.score, missing, keep=keep)
        for name in missing:
            store.add_measure(cell.cell_id, epoch, name, found.others[name])
    elif not had:
        started = time.monotonic()
        with _attempt(store, cell.cell_id, device) as attempt:
            model = CheckpointModel(old, store, epoch, device, entry.spaces)
            found, images = model.evidence(cell.score.samples, cell.score, missing, pairs=cell.score.pairs, keep=keep)
            checkpoint = Checkpoint.of(
                found,
                cell_id=cell.cell_id,
                attempt_id=attempt,
                epoch=epoch,
                step=step,
                loss=None,
                train_seconds=0.0,
                score_seconds=time.monotonic() - started,
            )
            store.append(checkpoint, outcome=Outcome.FINISHED)
    for each in store.measurements(cell.cell_id, epoch):
        yield _later(entry, each, new=each.measure not in had)
    if new and images is not None:
        reasons = add_quality(store, cell.cell_id, epoch, beside.of(images, new))
        yield from (NotMeasured(cell.cell_id, entry.name, reason) for reason in reasons)
    if asks_for_quality(asked):
        yield from _distances(entry, store, epoch, new=new)


@contextmanager
def _attempt(store: Store, cell_id: str, device: Device) -> Iterator[str]:
    """Record an attempt, and how it ended where the block fails."""
    attempt = store.start_attempt(cell_id, provenance(torch.device(device)))
    try:
        yield attempt
    except BaseException as error:
        store.end_attempt(attempt, Outcome.INTERRUPTED, str(error).partition("\n")[0] or type(error).__name__)
        raise

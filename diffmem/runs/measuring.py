"""Measures computed later: from trained models that are kept, without training."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from diffmem.cells import Scoring
from diffmem.data import training_set
from diffmem.errors import RunError
from diffmem.measures import Comparison, Evidence
from diffmem.models import ALONE
from diffmem.runs.kept_models import KeptModel, Made, find_model, images_of
from diffmem.store import Checkpoint, Measurement, Outcome, Store, provenance
from diffmem.study import Study, StudyCell


@dataclass(frozen=True)
class Later:
    """What was measured of a kept model: the share of copies by one measure, with its 95% interval."""

    cell_id: str
    name: str  # its axis values
    epoch: int
    measure: str
    value: float
    low: float
    high: float
    n: int  # generated images
    new: bool  # whether the store did not have it yet
    note: str  # in what the images are not those that were scored


@dataclass(frozen=True)
class NotKept:
    """A cell without a trained model to measure."""

    cell_id: str
    name: str


def measure_study(
    study: Study,
    store: Store,
    *,
    measures: Sequence[str] = (),
    samples: int | None = None,
    steps: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Later | NotKept]:
    """Compute `measures` (names) of every kept checkpoint of a study, and append them to its checkpoints.

    With `samples` or `steps`, the last checkpoint of each cell is scored anew by that many images or noise levels: as
    the cell that a study with this scoring, and one checkpoint, would have trained, listed beside those of the study.
    """
    if samples or steps:
        yield from _scored_anew(study, store, measures, samples=samples, steps=steps, device=device)
        return
    kept = store.kept_weights()
    for entry in study.distinct:
        if entry.cell.cell_id not in kept:
            yield NotKept(entry.cell.cell_id, entry.name)
        for epoch in sorted(kept.get(entry.cell.cell_id, ())):
            yield from _added(entry, store, epoch, measures, device)


def _added(
    entry: StudyCell, store: Store, epoch: int, measures: Sequence[str], device: torch.device | str
) -> Iterator[Later]:
    """Add measures to a checkpoint that the store has."""
    cell = entry.cell
    if epoch not in store.measured_epochs(cell.cell_id):
        return
    had = {each.measure: each for each in store.measurements(cell.cell_id, epoch)}
    yield from (_later(entry, had[name], new=False) for name in measures if name in had)
    missing = [name for name in measures if name not in had]
    if not missing:
        return
    kept = find_model(store, cell.cell_id, epoch)
    _, count = store.counted(cell.cell_id, epoch)
    found = _evidence(entry, kept, count, missing, device=device)
    note = _difference(store, cell.cell_id, epoch, found, kept, device)
    for name in missing:
        store.add_measure(cell.cell_id, epoch, name, found.others[name])
    for each in store.measurements(cell.cell_id, epoch):
        if each.measure in missing:
            yield _later(entry, each, new=True, note=note)


def _later(entry: StudyCell, found: Measurement, *, new: bool, note: str = "") -> Later:
    interval = found.low, found.high
    return Later(entry.cell.cell_id, entry.name, found.epoch, found.measure, found.value, *interval, found.n, new, note)


def _evidence(
    entry: StudyCell,
    kept: KeptModel,
    count: int,
    measures: Sequence[str],
    *,
    device: torch.device | str,
    scoring: Scoring | None = None,
    pairs: int = 0,
) -> Evidence:
    """Generate the first `count` images of a kept model again, and compare them with its training set."""
    images = torch.from_numpy(np.ascontiguousarray(training_set(entry.cell).images)).to(device)
    comparison = Comparison(images, pairs=pairs, others=measures)
    for batch in images_of(kept, count, scoring=scoring, device=device):
        comparison.add(batch.images.to(device))
    comparison.gather(ALONE, count)
    return comparison.evidence()


def _difference(
    store: Store, cell_id: str, epoch: int, found: Evidence, kept: KeptModel, device: torch.device | str
) -> str:
    """Say how many images are not those that were scored, and why; empty where all are."""
    stored = store.distances(cell_id, epoch)
    same = (stored["nearest"] == found.nearest) & (stored["d1"] == found.d1) & (stored["d2"] == found.d2)
    differing = int((~same).sum())
    if not differing:
        return ""
    made, here = kept.made or "what an older diffmem has not said", Made.here(device)
    return f"{differing} of {len(same)} images differ from those scored, which were made on {made}, these on {here}"


def _scored_anew(
    study: Study,
    store: Store,
    measures: Sequence[str],
    *,
    samples: int | None,
    steps: int | None,
    device: torch.device | str,
) -> Iterator[Later | NotKept]:
    kept = store.kept_weights()
    for entry in study.distinct:
        cell = entry.cell
        last = cell.checkpoints[-1][0]
        if last not in kept.get(cell.cell_id, ()):
            yield NotKept(cell.cell_id, entry.name)
            continue
        scoring = cell.score.model_copy(
            update={"samples": samples or cell.score.samples, "steps": steps or cell.score.steps, "every": last}
        )
        anew = _labelled(replace(entry, cell=cell.model_copy(update={"score": scoring})), cell.score)
        store.register(study, [anew], folder=study.folder, keep=True)
        yield from _one_checkpoint(anew, find_model(store, cell.cell_id, last), store, measures, device)


def _labelled(entry: StudyCell, before: Scoring) -> StudyCell:
    """Return a cell that is scored anew, with what is new in its name and its curve."""
    scoring = entry.cell.score
    pairs = (("samples", scoring.samples, before.samples), ("steps", scoring.steps, before.steps))
    texts = [f"score.{key} = {value}" for key, value, old in pairs if value != old]
    curve = ", ".join(filter(None, [entry.curve, *texts]))
    return replace(entry, name=", ".join([entry.name, *texts]), curve=curve)


def _one_checkpoint(
    entry: StudyCell, kept: KeptModel, store: Store, measures: Sequence[str], device: torch.device | str
) -> Iterator[Later]:
    """Append the one checkpoint of a cell that is scored anew."""
    cell, scoring = entry.cell, entry.cell.score
    if scoring.precision:
        raise RunError("score.precision ends generating by itself; --samples and --steps are for studies without it")
    epoch, step = cell.checkpoints[-1]
    names = list(dict.fromkeys([*scoring.measures, *measures]))
    new = epoch not in store.measured_epochs(cell.cell_id)
    if new:
        started = time.monotonic()
        attempt = store.start_attempt(cell.cell_id, provenance(torch.device(device)))
        found = _evidence(entry, kept, scoring.samples, names, device=device, scoring=scoring, pairs=scoring.pairs)
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
        yield _later(entry, each, new=new)

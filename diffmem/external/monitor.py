"""A monitor of anybody's training loop: its samples scored while the model trains, and kept in the store."""

import hashlib
import logging
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from diffmem.data import Size, load_source
from diffmem.errors import DataError, ImageWarning, SizeError
from diffmem.external.arrays import Images, as_generated_images, as_training_images, duplicates_in, has_negative
from diffmem.external.compared import BATCH
from diffmem.external.foreign import ForeignCell
from diffmem.external.monitor_run import MonitorRun, Setting
from diffmem.external.pending import Pending
from diffmem.external.score import PAIRS
from diffmem.measures import Comparison, DeclaredSpace, Evidence, identity_of, measure_named
from diffmem.models import ALONE, this_device
from diffmem.store import DEFAULT_STORE, Checkpoint, Store, provenance

SEED = 0
"""Seed of the samples of every checkpoint, so that checkpoints differ by the model alone."""

LAST_STEP = 2**31 - 1

logger = logging.getLogger("diffmem")


class Monitor:
    """Comparison samples of a model while it trains, and appends each score to the store under the study `name`.

    `training_images` are all images that the model trains on: uint8, in any form of `Images`, or what `score_images`
    takes to compare with, a folder, .zip, .npz or Parquet file or the name of a dataset. Those are read at their own
    size, or cropped and resized to `resolution` (pixels a side). `settings` say what tells this training from others of
    the same name: each combination is a curve of its own. Each monitor is a new run; with `resume`, it goes on with the
    last run of this name, these settings and this training set, and what that has measured already is skipped. Beside
    the paper's measure, samples are scored by `measures`, by name, and in feature `spaces`, as `score_images` has them.
    `held_out` are images of the same distribution that the model does not train on, in the same forms: `null_ratio`,
    the share of them that is called memorized, stands beside each ratio. Nothing is trained or generated here. Raises
    DiffmemError, before the training begins, where the images are no training set or the store cannot be written. Once
    it has begun, nothing that befalls the store ends the training or makes it wait: what cannot be written stays
    pending until the next call or `close`.
    """

    def __init__(
        self,
        training_images: Images | Path | str,
        *,
        name: str,
        store: Store | Path | str = DEFAULT_STORE,
        resume: bool = False,
        every: int = 1000,
        samples: int = 500,
        batch_size: int = 100,
        resolution: int | None = None,
        settings: Mapping[str, Setting] | None = None,
        measures: Sequence[str] = (),
        held_out: Images | Path | str | None = None,
        spaces: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        device: torch.device | str | None = None,
    ) -> None:
        numbers = {"every": every, "samples": samples, "batch_size": batch_size}
        _check_whole(numbers if resolution is None else {**numbers, "resolution": resolution})
        self.name, self.every, self.samples, self.batch_size = name, every, samples, batch_size
        declared = {each: DeclaredSpace.of(each, table) for each, table in spaces.items()}
        self._spaces = {each: space.measure for each, space in declared.items()}
        self.measures = tuple(dict.fromkeys([*measures, *declared]))
        for measure in self.measures:
            measure_named(measure, self._spaces)
        plain = _plain(settings or {})
        store = store if isinstance(store, Store) else Store(store)
        self.device = torch.device(device) if device else this_device()
        if resolution is not None and not isinstance(training_images, Path | str):
            raise DataError(f"{name}: resolution is for images that are read from a path; resize arrays beforehand")
        given, notes = _read(training_images, resolution, resolution)
        images = as_training_images(given)
        self._signed = has_negative(given)
        self._images = images.to(self.device)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        null = None
        if held_out is not None:
            unseen, more = _read(held_out, (shape[2], shape[1]), resolution)
            null, notes = self._null(unseen), [*notes, *more]
        notes += filter(None, [duplicates_in(images)])
        for said in notes:
            warnings.warn(f"{name}: {said}", ImageWarning, stacklevel=2)
        origin = {"monitor": name, "settings": plain}
        self._run = MonitorRun(
            ForeignCell(_fingerprint(images), len(images), (shape[2], shape[1]), origin, checkpoints=()),
            name=name,
            settings=plain,
            resume=resume,
            held_out=null,
            spaces=[identity_of(each, shape, self.device) for each in declared.values()],
            notes=notes,
            where=provenance(self.device),
        )
        self._pending = Pending(store.path, name, [self._run.open])
        self._pending.open()
        self._measured_at = time.monotonic()
        self._close = self._at_exit()

    @property
    def cell(self) -> ForeignCell:
        """Return the cell of the run."""
        return self._run.cell

    @property
    def null_ratio(self) -> float | None:
        """Return the share of held-out images that is called memorized, also of those that a run that is resumed was
        given before; None without any."""
        return self._run.null_ratio

    def _at_exit(self) -> "weakref.finalize[..., Any]":
        """Return what ends the monitor, at the latest where the process ends."""
        return weakref.finalize(self, self._pending.close, self._run.end)

    def __call__(self, step: int, generate: Callable[[int], Images], *, loss: float | None = None) -> float | None:
        """Measure at every `every`-th step, and return the memorization ratio; None at the steps between.

        `generate(count)` returns so many images of the model, in any form of `Images`; it is called without gradients
        and with a random stream of its own, so that the training goes on as it would without. A step that the store
        has is not measured again: its ratio is returned.
        """
        if step % self.every and float(step).is_integer():
            self._pending.retry()
            return None
        known = self._known(step)
        return self._measure(self._generated(generate), step, loss) if known is None else known

    def score(self, images: Images, step: int, *, loss: float | None = None) -> float:
        """Measure images that the model has generated at `step`, whichever it is, and return their ratio.

        A step that the store has is not measured again: its ratio is returned.
        """
        known = self._known(step)
        return self._measure([self._as_generated(images)], step, loss) if known is None else known

    def close(self) -> None:
        """Write what is pending, and record that the training has ended; what is measured later is stored all the same.

        What cannot be written goes into a file of its own, which a warning names.
        """
        self._close()

    def _known(self, step: int) -> float | None:
        """Return the ratio of a step that is measured already, and say so as a warning."""
        if not 0 <= step <= LAST_STEP or not float(step).is_integer():
            raise DataError(f"{self.name}: a step is a whole number from 0 to {LAST_STEP}, not {step}")
        ratio = self._run.ratios.get(int(step))
        if ratio is None:
            return None
        logger.warning(
            "%s: step %d of this run is measured already (ratio %.3f), so it is skipped; a monitor without resume=True "
            "is a new run",
            self.name,
            step,
            ratio,
        )
        return ratio

    def _null(self, held_out: Images) -> Evidence:
        """Compare held-out images with the training set; DataError where they are of another shape."""
        images = as_training_images(held_out)
        if images.shape[1:] != self._images.shape[1:]:
            raise DataError(
                f"{self.name}: held_out has images of {_shape(images)}, the training images are {_shape(self._images)}"
            )
        return self._compared([images], pairs=0)

    def _generated(self, generate: Callable[[int], Images]) -> Iterator[Tensor]:
        """Yield the samples of a step, batch by batch."""
        for first in range(0, self.samples, self.batch_size):
            count = min(self.batch_size, self.samples - first)
            with torch.no_grad(), _own_random_stream(SEED + first):
                images = generate(count)
            batch = self._as_generated(images)
            if len(batch) != count:
                raise DataError(
                    f"{self.name}: generate({count}) has returned {len(batch)} images; "
                    "let it return as many as it is asked for"
                )
            yield batch

    def _as_generated(self, images: Images) -> Tensor:
        """Return generated images as uint8, on one scale from the first floating-point ones on."""
        if self._signed is None and has_negative(images):
            self._signed = True
        return as_generated_images(images, self._images, signed=self._signed)

    def _measure(self, batches: Iterable[Tensor], step: int, loss: float | None) -> float:
        """Append the score of the images of a step to the store."""
        started = time.monotonic()
        evidence = self._compared(batches, pairs=PAIRS)
        ended = time.monotonic()
        checkpoint = Checkpoint.of(
            evidence,
            cell_id=self.cell.cell_id,
            attempt_id=self._run.attempt_id,
            epoch=step,
            step=step,
            loss=None if loss is None else float(loss),
            train_seconds=started - self._measured_at,
            score_seconds=ended - started,
        )
        self._run.ratios[int(step)] = checkpoint.ratio
        if not self._close.alive:
            self._close = self._at_exit()
        self._pending.add(self._run.appending(checkpoint))
        self._measured_at = ended
        return checkpoint.ratio

    def _compared(self, batches: Iterable[Tensor], *, pairs: int) -> Evidence:
        """Compare images, batch by batch, with the training set."""
        comparison, count = Comparison(self._images, pairs=pairs, others=self.measures, spaces=self._spaces), 0
        for batch in batches:
            for part in torch.split(batch, BATCH):
                comparison.add(part.to(self.device))
                count += len(part)
        comparison.gather(ALONE, count)
        return comparison.evidence()


def _shape(images: Tensor) -> str:
    _, channels, height, width = images.shape
    return f"{channels} x {height} x {width}"


def _check_whole(numbers: Mapping[str, int]) -> None:
    for key, value in numbers.items():
        if not isinstance(value, SupportsIndex) or value < 1:
            raise DataError(f"Monitor: {key} must be a whole number, at least 1, not {value!r}")


def _read(images: Images | Path | str, size: Size | int | None, resolution: int | None) -> tuple[Images, list[str]]:
    """Return images, those of a path or of a dataset at `size`, and what was done to them; they are enlarged only where
    a `resolution` is asked for."""
    if not isinstance(images, Path | str):
        return images, []
    try:
        source = load_source(str(images), size, enlarge=resolution is not None)
    except SizeError as error:
        advice = "resolution=N reads all images at N x N pixels"
        if isinstance(size, tuple) and resolution is None:  # of training images, which may be arrays
            advice = "held-out images must be as large as the training images, or larger"
        raise DataError(f"{error}; {advice}") from error
    return source.images, [f"{images}: {each}" for each in source.notes]


def _plain(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return settings as they come back from the store; DataError where they would not."""
    for key, value in settings.items():
        if not isinstance(key, str) or not isinstance(value, Setting):
            raise DataError(f"Monitor: settings are texts, numbers, true or false by name, not {key!r}: {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise DataError(f"Monitor: the setting {key!r} must be a finite number, not {value}")
    return dict(settings)


def _fingerprint(images: Tensor) -> str:
    """Return the hash of the content of a training set [N, c, h, w], in its order."""
    digest = hashlib.sha256(str(list(images.shape)).encode())
    digest.update(images.cpu().contiguous().numpy().data)
    return f"sha256:{digest.hexdigest()[:32]}"


@contextmanager
def _own_random_stream(seed: int) -> Iterator[None]:
    """Draw from a seed of its own for the while of a block, and then go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield

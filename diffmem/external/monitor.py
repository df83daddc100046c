"""A monitor of anybody's training loop: its samples scored while the model trains, and kept in the store."""

import hashlib
import json
import logging
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from diffmem.errors import DataError, ImageWarning, StoreError
from diffmem.external.arrays import Images, as_generated_images, as_training_images, duplicates_in, has_negative
from diffmem.external.foreign import ForeignCell
from diffmem.external.pending import Pending, Write
from diffmem.external.score import BATCH, PAIRS, READ_OFF
from diffmem.measures import Comparison, DeclaredSpace, Evidence, SpaceIdentity, identity_of, measure_named
from diffmem.models import ALONE, this_device
from diffmem.store import Checkpoint, Kind, ListedCell, Listing, Outcome, Provenance, Store, new_attempt_id, provenance

PATH = "diffmem.Monitor"
"""What the store says of where a monitored study is from."""
SEED = 0
"""Seed of the samples of every checkpoint, so that checkpoints differ by the model alone."""

LAST_STEP = 2**31 - 1

Setting = str | int | float | bool | None

logger = logging.getLogger("diffmem")


class Monitor:
    """Comparison samples of a model while it trains, and appends each score to the store under the study `name`.

    `training_images` are all images that the model trains on, uint8, in any form of `Images`. `settings` say what tells
    this training from others of the same name: each combination, and each training set, is a cell of its own, and one
    that the store has already is gone on with. Beside the paper's measure, samples are scored by `measures`, by name,
    and in feature `spaces`, as `score_images` has them. `held_out` are images of the same distribution that the model
    does not train on: `null_ratio`, the share of them that is called memorized, stands beside each ratio. Nothing is
    trained or generated here. Raises DiffmemError, before the training begins, where the images are no training set or
    the store cannot be written. Once it has begun, nothing that befalls the store ends the training or makes it wait:
    what cannot be written stays pending until the next call or `close`.
    """

    def __init__(
        self,
        training_images: Images,
        *,
        store: Store | Path | str,
        name: str,
        every: int = 1000,
        samples: int = 500,
        batch_size: int = 100,
        settings: Mapping[str, Setting] | None = None,
        measures: Sequence[str] = (),
        held_out: Images | None = None,
        spaces: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        device: torch.device | str | None = None,
    ) -> None:
        for key, value in {"every": every, "samples": samples, "batch_size": batch_size}.items():
            if not isinstance(value, SupportsIndex) or value < 1:
                raise DataError(f"Monitor: {key} must be a whole number, at least 1, not {value!r}")
        declared = {each: DeclaredSpace.of(each, table) for each, table in spaces.items()}
        self._spaces = {each: space.measure for each, space in declared.items()}
        self.measures = tuple(dict.fromkeys([*measures, *declared]))
        for measure in self.measures:
            measure_named(measure, self._spaces)
        images = as_training_images(training_images)
        plain = _plain(settings or {})
        self.name, self.every, self.samples, self.batch_size = name, every, samples, batch_size
        store = store if isinstance(store, Store) else Store(store)
        self.device = torch.device(device) if device else this_device()
        self.cell = ForeignCell(
            _fingerprint(images),
            len(images),
            (images.shape[3], images.shape[2]),
            {"monitor": name, "settings": plain},
            checkpoints=(),
        )
        duplicates = duplicates_in(images)
        if duplicates:
            warnings.warn(f"{name}: {duplicates}", ImageWarning, stacklevel=2)
        self._images = images.to(self.device)
        channels, height, width = self._images.shape[1:]
        identities = [identity_of(each, (channels, height, width), self.device) for each in declared.values()]
        null = None if held_out is None else self._null(held_out)
        self.null_ratio = None if null is None else null.ratio
        self._signed = has_negative(training_images)
        self._attempt = new_attempt_id()
        self._ratios: dict[int, float] = {}  # of each step that is measured
        where = provenance(self.device)
        opening: list[Write] = [
            *([partial(_add_spaces, spaces=identities)] if identities else []),
            partial(_register, name=name, cell=self.cell, curve=_as_text(plain), said=duplicates),
            partial(_start, cell_id=self.cell.cell_id, where=where, attempt_id=self._attempt),
            partial(_recall, cell_id=self.cell.cell_id, ratios=self._ratios),
        ]
        if null is not None:
            opening.append(partial(_add_held_out, cell_id=self.cell.cell_id, evidence=null))
        self._pending = Pending(store.path, name, opening)
        self._pending.open()
        self._measured_at = time.monotonic()
        self._close = self._at_exit()

    def _at_exit(self) -> "weakref.finalize[..., Any]":
        """Return what ends the monitor, at the latest where the process ends."""
        return weakref.finalize(self, self._pending.close, partial(_end, attempt_id=self._attempt))

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
        ratio = self._ratios.get(int(step))
        if ratio is None:
            return None
        logger.warning(
            "%s: step %d is measured already (ratio %.3f), so it is skipped; other settings, or another name, make "
            "a cell of their own",
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
            attempt_id=self._attempt,
            epoch=step,
            step=step,
            loss=None if loss is None else float(loss),
            train_seconds=started - self._measured_at,
            score_seconds=ended - started,
        )
        self._ratios[int(step)] = checkpoint.ratio
        if not self._close.alive:
            self._close = self._at_exit()
        self._pending.add(partial(_append, checkpoint=checkpoint))
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


def _plain(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return settings as they come back from the store; DataError where they would not."""
    for key, value in settings.items():
        if not isinstance(key, str) or not isinstance(value, Setting):
            raise DataError(f"Monitor: settings are texts, numbers, true or false by name, not {key!r}: {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise DataError(f"Monitor: the setting {key!r} must be a finite number, not {value}")
    return dict(settings)


def _as_text(settings: Mapping[str, Setting]) -> str:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return ", ".join(f"{key} = {text}" for key, text in texts.items())


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


# --- what is written, to the store or in the end to a file of its own ----------------------------------


def _register(store: Store, *, name: str, cell: ForeignCell, curve: str, said: str) -> None:
    """Add a cell to the study of a monitor; StoreError where the name is another study's."""
    if store.exists():
        taken = [each for each in store.studies() if each.study == name and each.kind is not Kind.MONITOR]
        if taken:
            raise StoreError(f"{store.path}: {name!r} is a study of {taken[0].path}; give the monitor another name")
    store.register(
        Listing(name, f"{name}, monitored", PATH, READ_OFF),
        [ListedCell(cell, curve, ", ".join(filter(None, [curve, f"N = {cell.size}"])), {})],
        kind=Kind.MONITOR,
        notes={cell.cell_id: [said] if said else []},
        keep=True,
    )


def _add_spaces(store: Store, *, spaces: Sequence[SpaceIdentity]) -> None:
    store.add_spaces(spaces)


def _start(store: Store, *, cell_id: str, where: Provenance, attempt_id: str) -> None:
    store.start_attempt(cell_id, where, attempt_id=attempt_id)


def _recall(store: Store, *, cell_id: str, ratios: dict[int, float]) -> None:
    """Take note of the steps that the store has already, unless they were measured again meanwhile."""
    for step, ratio in store.ratios(cell_id).items():
        ratios.setdefault(step, ratio)


def _add_held_out(store: Store, *, cell_id: str, evidence: Evidence) -> None:
    store.add_held_out(cell_id, evidence, newest=True)


def _append(store: Store, *, checkpoint: Checkpoint) -> None:
    store.append(checkpoint)


def _end(store: Store, *, attempt_id: str) -> None:
    store.end_attempt(attempt_id, Outcome.FINISHED)

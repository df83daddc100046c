"""A monitor of anybody's training loop: its samples scored while the model trains, and kept in the store."""

import hashlib
import json
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from diffmem.config import Estimation
from diffmem.errors import DataError, DiffmemError, StoreError
from diffmem.group import ALONE, this_device
from diffmem.provenance import provenance
from diffmem.ratio import Images, as_generated_images, as_training_images
from diffmem.scoring import BATCH, PAIRS, ForeignCell, Scores
from diffmem.store import Store

PATH = "diffmem.Monitor"
"""What the store says of where a monitored study is from."""
SEED = 0
"""Seed of the samples of every checkpoint, so that checkpoints differ by the model alone."""

LAST_STEP = 2**31 - 1

Setting = str | int | float | bool | None

logger = logging.getLogger("diffmem")


class Monitor:
    """Scores samples of a model while it trains, and appends each score to the store under the study `name`.

    `training_images` are all images that the model trains on, uint8, in any form of `Images`. `settings` say what
    tells this training from others of the same name: each combination, and each training set, is a cell of its own,
    and one that the store has already is gone on with. Nothing is trained or generated here. Raises DiffmemError,
    before the training begins, where the images are no training set or the store cannot be written.
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
        device: torch.device | str | None = None,
    ) -> None:
        for key, value in {"every": every, "samples": samples, "batch_size": batch_size}.items():
            if value < 1:
                raise DataError(f"Monitor: {key} must be at least 1, not {value}")
        images = as_training_images(training_images)
        plain = _plain(settings or {})
        self.name, self.every, self.samples, self.batch_size = name, every, samples, batch_size
        self.store = store if isinstance(store, Store) else Store(store)
        self.device = torch.device(device) if device else this_device()
        self.cell = ForeignCell(
            _fingerprint(images), len(images), images.shape[-1], {"monitor": name, "settings": plain}, checkpoints=()
        )
        self._register(_as_text(plain))
        self._images = images.to(self.device)
        self._attempt = self.store.start_attempt(self.cell.cell_id, provenance(self.device))
        self._measured_at = time.monotonic()
        self._close = weakref.finalize(self, _end, self.store, self._attempt)  # at the latest where the process ends

    def _register(self, curve: str) -> None:
        """Add the cell to the study; StoreError where the name is another study's."""
        if self.store.exists():
            taken = [row for row in self.store.studies() if row["study"] == self.name and row["path"] != PATH]
            if taken:
                raise StoreError(
                    f"{self.store.path}: {self.name!r} is a study of {taken[0]['path']}; give the monitor another name"
                )
        self.store.register(
            self.name,
            title=f"{self.name}, monitored",
            figure="",
            path=PATH,
            axes=[],
            estimation=Estimation().model_dump(mode="json"),
            cells=[(self.cell, curve, ", ".join(filter(None, [curve, f"N = {self.cell.size}"])), {})],
            keep=True,
        )

    def __call__(self, step: int, generate: Callable[[int], Images], *, loss: float | None = None) -> float | None:
        """Measure at every `every`-th step, and return the memorization ratio; None at the steps between.

        `generate(count)` returns so many images of the model, in any form of `Images`; it is called without gradients
        and with a random stream of its own, so that the training goes on as it would without. A step that the store
        has is not measured again: its ratio is returned.
        """
        if step % self.every and float(step).is_integer():
            return None
        known = self._known(step)
        return self._measure(self._generated(generate), step, loss) if known is None else known

    def score(self, images: Images, step: int, *, loss: float | None = None) -> float:
        """Measure images that the model has generated at `step`, whichever it is, and return their ratio.

        A step that the store has is not measured again: its ratio is returned.
        """
        known = self._known(step)
        return self._measure([as_generated_images(images, self._images)], step, loss) if known is None else known

    def close(self) -> None:
        """Record that the training has ended; what is measured later is stored all the same."""
        self._close()

    def _known(self, step: int) -> float | None:
        """Return the ratio that the store has of a step, and say so as a warning."""
        if not 0 <= step <= LAST_STEP or not float(step).is_integer():
            raise DataError(f"{self.name}: a step is a whole number from 0 to {LAST_STEP}, not {step}")
        rows = self.store.read(
            "SELECT ratio FROM checkpoints WHERE cell_id = ? AND epoch = ?", [self.cell.cell_id, step]
        )
        if not rows:
            return None
        ratio: float = rows[0]["ratio"]
        logger.warning(
            "%s: step %d is measured already (ratio %.3f), so it is skipped; other settings, or another name, make "
            "a cell of their own",
            self.name,
            step,
            ratio,
        )
        return ratio

    def _generated(self, generate: Callable[[int], Images]) -> Iterator[Tensor]:
        """Yield the samples of a step, batch by batch."""
        for first in range(0, self.samples, self.batch_size):
            count = min(self.batch_size, self.samples - first)
            with torch.no_grad(), _own_random_stream(SEED + first):
                images = generate(count)
            batch = as_generated_images(images, self._images)
            if len(batch) != count:
                raise DataError(
                    f"{self.name}: generate({count}) has returned {len(batch)} images; "
                    "let it return as many as it is asked for"
                )
            yield batch

    def _measure(self, batches: Iterable[Tensor], step: int, loss: float | None) -> float:
        """Append the score of the images of a step to the store."""
        started = time.monotonic()
        scores, count = Scores(self._images, pairs=PAIRS), 0
        for batch in batches:
            for part in torch.split(batch.to(self.device), BATCH):
                scores.add(part)
                count += len(part)
        scores.gather(ALONE, count)
        ended = time.monotonic()
        checkpoint = scores.checkpoint(
            self.cell.cell_id,
            self._attempt,
            epoch=step,
            step=step,
            loss=None if loss is None else float(loss),
            train_seconds=started - self._measured_at,
            score_seconds=ended - started,
        )
        self.store.append(checkpoint)
        self._measured_at = ended
        return checkpoint.ratio


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


def _end(store: Store, attempt: str) -> None:
    with suppress(DiffmemError):  # where the store is gone or held, the attempt stays open and counts as lost
        store.end_attempt(attempt, "finished")

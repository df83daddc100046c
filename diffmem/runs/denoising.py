"""The measures of a denoiser at a checkpoint of a cell: on images of its training set and on held-out ones."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffmem.cells import Cell
from diffmem.data import Indices, TrainingSet, held_out_set
from diffmem.errors import RunError
from diffmem.measures import (
    DENOISER_MEASURES,
    DENOISING_IMAGES,
    LEVELS,
    LevelErrors,
    LevelValue,
    SetErrors,
    denoising_errors,
)
from diffmem.models import ALONE, DenoiserFunction, Group, sampler_levels
from diffmem.networks import OptimalDenoiser
from diffmem.text import counted

FEW_MEMBERS = 20
"""Training images below which the halves of `membership` are too few for their intervals."""


@dataclass(frozen=True)
class Denoised:
    """What the measures of a denoiser have found of a checkpoint, by measure, and what is to be said of it."""

    values: dict[str, list[LevelValue]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # why nothing is found, by measure
    notes: list[str] = field(default_factory=list)


def measure_denoiser(
    cell: Cell,
    denoiser: DenoiserFunction,
    data: TrainingSet,
    names: Sequence[str],
    group: Group = ALONE,
) -> Denoised:
    """Measure a denoiser of a cell by measures (names), each process of a group its share of the images.

    Images are some of the training set at random and some held-out ones, at most DENOISING_IMAGES of either. Where
    there are too few, it is said why nothing is found.
    """
    if not names:
        return Denoised()
    unseen, notes = _of_known_labels(held_out_set(cell, DENOISING_IMAGES), data.labels)
    sets = {"training": _some(data, cell.T.seed), "held_out": unseen}
    sizes = {"training": len(data.images), "held_out": len(unseen.images)}
    reasons = {name: reason for name in names if (reason := _too_few(name, **sizes))}
    possible = [name for name in names if name not in reasons]
    if not possible:
        return Denoised(reasons=reasons, notes=notes)
    with group.memory():
        optimum = OptimalDenoiser(*_on_device(data, group.device))
    errors = {name: _errors(cell, denoiser, optimum, each, name, group) for name, each in sets.items()}
    found = LevelErrors(sampler_levels(denoiser, LEVELS), **errors, seed=cell.T.seed)
    values = {name: DENOISER_MEASURES[name].values(found) for name in possible}
    return Denoised(values, reasons, [*notes, *_notes(cell, possible, sizes["held_out"])])


def _errors(
    cell: Cell, denoiser: DenoiserFunction, optimum: OptimalDenoiser, images: TrainingSet, name: str, group: Group
) -> SetErrors:
    """Return the errors of all images of a set, of which this process finds its share."""
    with group.memory():
        found = denoising_errors(
            denoiser,
            optimum,
            *_on_device(images, group.device),
            name=name,
            seed=cell.T.seed,
            rows=range(len(images.images))[group.share(len(images.images))],
            at_once=cell.score.batch_size,
        )
    together = group.gather(found, len(images.images)).numpy()
    if not np.isfinite(together).all():
        raise RunError("the denoiser gives images with values that are no numbers, so its loss cannot be measured")
    return SetErrors(loss=together[..., 0], optimum_loss=together[..., 1], to_optimum=together[..., 2])


def _some(data: TrainingSet, seed: int) -> TrainingSet:
    """Return some images of a training set at random: the first ones may be of one class or dataset."""
    order = np.random.default_rng([zlib.crc32(b"denoised training images"), seed]).permutation(len(data.images))
    chosen = np.sort(order[:DENOISING_IMAGES])
    return TrainingSet(data.images[chosen], None if data.labels is None else data.labels[chosen])


def _on_device(data: TrainingSet, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return images in -1..1 and labels."""
    images = torch.from_numpy(np.ascontiguousarray(data.images)).to(device).float() / 127.5 - 1
    return images, None if data.labels is None else torch.from_numpy(data.labels).to(device)


def _of_known_labels(unseen: TrainingSet, known: Indices | None) -> tuple[TrainingSet, list[str]]:
    """Leave out held-out images of classes without a training image, which have no optimum, and say how many."""
    if known is None or unseen.labels is None:
        return unseen, []
    kept = np.isin(unseen.labels, known)
    left_out = int((~kept).sum())
    if not left_out:
        return unseen, []
    note = f"{counted(left_out, 'held-out image')} of classes without a training image not denoised"
    return TrainingSet(unseen.images[kept], unseen.labels[kept]), [note]


def _too_few(name: str, training: int, held_out: int) -> str:
    """Say why a measure cannot be had of so few images; empty if it can."""
    least = DENOISER_MEASURES[name].least
    if min(training, held_out) >= least:
        return ""
    return (
        f"{name} needs {least} training images and {least} held-out ones, and there are {training} and {held_out}; a "
        "smaller P.size leaves more of the dataset held out"
    )


def _notes(cell: Cell, names: Sequence[str], held_out: int) -> list[str]:
    """Return what is to be said of the images that measures were computed on."""
    said = []
    if held_out < DENOISING_IMAGES:
        said.append(f"only {counted(held_out, 'held-out image')} instead of {DENOISING_IMAGES}, so intervals are wide")
    if "membership" in names and cell.P.size < FEW_MEMBERS:
        few = counted(cell.P.size, "training image")
        said.append(f"only {few}, half of them to choose sigma and threshold by, so intervals are too narrow")
    if cell.M.condition == "unique":
        said.append("held-out images have no label of their own, so each has that of a training image drawn at random")
    return [f"{', '.join(names)}: {each}" for each in said]

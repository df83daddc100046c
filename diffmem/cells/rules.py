"""What settings get wrong together, each of which is valid on its own; what those of a network do, its file says."""

from collections.abc import Sequence

from diffmem.cells.datasets import DATASETS, Facts
from diffmem.cells.settings import (
    MOST,
    MOST_CHECKPOINTS,
    DataDistribution,
    ModelConfiguration,
    Scoring,
    TrainingProcedure,
)
from diffmem.networks import Fault as Fault
from diffmem.text import counted


def impossible_pairs(
    P: DataDistribution, M: ModelConfiguration, T: TrainingProcedure, score: Scoring, facts: Facts = DATASETS
) -> list[Fault]:
    """Return what cannot be done although each setting is valid on its own; `facts` has the datasets of P."""
    resolution = P.resolution or facts[P.dataset].resolution
    return [
        *impossible_data(P, facts),
        *impossible_labels(P, M),
        *(M.faults(resolution) if resolution else []),
        *impossible_checkpoints(T, score, P.size),
        *impossible_groups(score),
    ]


def impossible_labels(P: DataDistribution, M: ModelConfiguration) -> list[Fault]:
    """Return what is wrong with the labels that the model is conditioned on."""
    faults = []
    if M.condition == "random" and M.labels is None:
        faults.append(Fault(("M.labels", "M.condition"), "missing; condition = random needs a number of labels"))
    if M.condition == "true" and P.blend:
        faults.append(Fault(("M.condition", "P.blend.dataset"), "true labels of two blended datasets do not agree"))
    return faults


def impossible_checkpoints(T: TrainingProcedure, score: Scoring, size: int) -> list[Fault]:
    """Return what is wrong with the checkpoints of a training on `size` images."""
    steps, epochs, budget = T.last_step(size), T.epochs_begun(size), f"T.{T.budget}"
    by_step = score.points is not None or T.resolved(size).steps is not None
    if by_step and steps > MOST:
        most = f"{steps} optimizer steps; a checkpoint inside an epoch is at step {MOST} at most"
        return [Fault((budget, "P.size"), most)]
    if score.points is not None and score.points > steps:
        few = f"{score.points} checkpoints, but the training has {counted(steps, 'optimizer step')}"
        return [Fault(("score.points", budget), few)]
    if not score.every or epochs <= MOST_CHECKPOINTS * score.every:
        return []
    between = f"{epochs} epochs with a checkpoint every {score.every}"
    return [Fault(("score.every", budget), f"{between} are more than {MOST_CHECKPOINTS} checkpoints")]


def impossible_groups(score: Scoring) -> list[Fault]:
    """Return what is wrong with how training images are grouped."""
    if score.augment and score.groups == "none":
        advice = 'is of groups of training images; add groups = "near", or "exact"'
        return [Fault(("score.augment", "score.groups"), advice)]
    return []


def impossible_data(P: DataDistribution, facts: Facts) -> list[Fault]:
    """Return what is wrong with the training images, which `facts` describe."""
    faults = []
    dataset = facts[P.dataset]
    for number, (name, wanted, count) in enumerate(P.parts):
        classes_key = "P.blend.classes" if number else "P.classes"
        sizes = facts[name].class_sizes
        unknown = [c for c in wanted or () if c >= len(sizes)]
        if unknown:
            message = f"{name} has {len(sizes)} classes, 0 to {len(sizes) - 1}, and no class {unknown[0]}"
            faults.append(Fault((classes_key,), message))
            continue
        taken = [sizes[c] for c in (range(len(sizes)) if wanted is None else wanted)]
        most = _most_images(taken, P)
        if count > most:
            faults.append(
                Fault(
                    ("P.size", classes_key, "P.dataset", "P.blend.share", "P.half"),
                    _too_few(name, sizes, most, count, P, classes_key),
                )
            )
        if wanted and len(set(wanted)) < len(wanted):
            faults.append(Fault((classes_key,), f"names a class twice: {list(wanted)}"))
    if P.blend and P.blend.dataset == P.dataset:
        taken_by = [set(range(dataset.classes) if wanted is None else wanted) for _, wanted, _ in P.parts]
        if both := sorted(taken_by[0] & taken_by[1]):
            message = (
                f"class {both[0]} of {P.dataset} is in both parts of the blend, and an image must not be there twice"
            )
            faults.append(Fault(("P.blend.classes", "P.classes", "P.blend.dataset", "P.dataset"), message))
    if P.resolution and dataset.resolution and P.resolution > dataset.resolution:
        side = dataset.resolution
        faults.append(Fault(("P.resolution", "P.dataset"), f"{P.dataset} has {side}x{side} pixels, not {P.resolution}"))
    if not (P.resolution or dataset.resolution):
        message = f"missing; the images of {P.dataset} differ in size, so a common one must be chosen"
        faults.append(Fault(("P.resolution", "P.dataset"), message))
    return faults


def _most_images(sizes: Sequence[int], P: DataDistribution) -> int:
    """Return the images of the largest set that classes of these sizes have, or of the larger of two alike halves."""
    if P.half is None:
        return len(sizes) * min(sizes) if P.balance else sum(sizes)
    return len(sizes) * (min(sizes) // 2) if P.balance else sum(sizes) // 2


def _too_few(name: str, sizes: Sequence[int], most: int, count: int, P: DataDistribution, classes_key: str) -> str:
    """Return why a dataset has too few images, and what to write instead."""
    empty = [number for number, size in enumerate(sizes) if not size]
    if P.balance and empty and P.classes is None:
        there = [number for number, size in enumerate(sizes) if size]
        named = ", ".join(map(str, there[:20])) + (", ..." if len(there) > 20 else "")
        which = f"class {empty[0]}" if len(empty) == 1 else f"classes {', '.join(map(str, empty[:5]))}"
        return f"{name} has no images of {which}; take those that there are with {classes_key} = [{named}]"
    if P.half is not None:
        halves = (
            f"balanced halves of up to {most}; take a smaller size, or P.balance = false for halves of up to "
            f"{sum(sizes) // 2}"
            if P.balance
            else f"halves of up to {most}; take a smaller size"
        )
        return f"two halves of {count} images need {2 * count}, and {name} has images for {halves}"
    if P.balance and sum(sizes) >= count:
        return (
            f"{name} has images for balanced sets of up to {most}, not {count}; P.balance = false takes any of its "
            f"{sum(sizes)}"
        )
    return f"{name} has images for {'balanced ' if P.balance else ''}sets of up to {most}, not {count}"

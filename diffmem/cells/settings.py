"""The settings of a cell: the data distribution P, the training procedure T and the scoring; M is its network's.

The defaults are the basic set-up of Gu et al. 2023, Appendix B. Every setting is checked on its own by its type;
`rules` checks what only two settings together can get wrong.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from diffmem.cells.datasets import Dataset
from diffmem.cells.grouping import Augmentation
from diffmem.networks import ModelConfiguration as ModelConfiguration
from diffmem.settings import MOST as MOST
from diffmem.settings import ClassList, Names, Pair, as_tuple
from diffmem.settings import Settings as Settings

MOST_CLASSES = 100_000
"""Classes of a dataset; class numbers are below."""
MOST_IMAGES = 10**12
"""Training images of a budget, each counted as often as it is seen."""
MOST_CHECKPOINTS = 10_000
"""Checkpoints of a cell."""
BUDGETS = ("epochs", "steps", "images")
"""The keys of T that say how long a model is trained: one of them does."""

Half = Literal["a", "b"]
"""One of two training sets of the same draw that share no image."""

Classes = Annotated[int, Field(ge=1, le=MOST_CLASSES)] | ClassList


class Blend(Settings):
    """Images of another dataset that take a share of the training set (Gu et al. 2023, Fig. 2c)."""

    dataset: str = Field(description="Where the other images come from.")
    share: float = Field(ge=0, le=1, description="alpha, their share of the training set; the count is rounded.")
    classes: Classes | None = Field(None, description="Only these classes of it, as in P.classes; default: all.")


class Part(NamedTuple):
    """What one dataset gives to a training set."""

    dataset: str
    classes: tuple[int, ...] | None  # None: all
    size: int  # images


class DataDistribution(Settings):
    """P: which training images, and how many (Gu et al. 2023, Section 3)."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {"balance": True, "labels": None, "half": None}

    dataset: str = Field(
        description="Where the images come from: digits or emoji (ship with diffmem), cifar10, imagenet-dogs, or a "
        "folder of images (one sub-folder per class), a .zip of one, a .npz, a Parquet file, or a pattern of files."
    )
    size: int = Field(ge=2, le=MOST, description="N, the number of training images; the axis of EMM.")
    draw: Annotated[int, Field(ge=0, lt=2**63)] | Literal["first"] = Field(
        0, description="Which balanced, nested draw of training images; `first`: in file order."
    )
    resolution: int | None = Field(
        None, ge=4, le=4096, description="Side in pixels, by centre crop and Lanczos resize; default: the source's own."
    )
    classes: Classes | None = Field(
        None, description="How many classes, from the first on, or a list of class numbers from 0; default: all."
    )
    blend: Blend | None = Field(None, description="Another dataset and its share of the training set; default: none.")
    balance: bool = Field(
        True,
        description="Equal shares of all classes; false: any images, so all of an unbalanced set can be used.",
    )
    labels: str | None = Field(
        None,
        description="The column of a Parquet file with the classes; default: the first one called label or the like.",
    )
    half: Half | None = Field(
        None,
        description="a or b: the first or the second of every two images in the draw's order, so halves of any size "
        "share no image; default: all.",
    )

    def resolved(self, dataset: "Dataset") -> Self:
        """Return the same distribution with what `dataset` decides written out, and no blend without a share."""
        wanted = _listed(self.classes) or tuple(range(dataset.classes))
        return self.model_copy(
            update={
                "resolution": self.resolution or dataset.resolution or 0,
                "classes": len(wanted) if wanted == tuple(range(len(wanted))) else wanted,
                "blend": self.blend if self.blend and self.blend.share else None,
            }
        )

    @property
    def parts(self) -> list[Part]:
        """Return what each dataset gives; a blend's share is rounded to whole images."""
        if self.blend is None:
            return [Part(self.dataset, _listed(self.classes), self.size)]
        blended = round(self.blend.share * self.size)
        return [
            Part(self.dataset, _listed(self.classes), self.size - blended),
            Part(self.blend.dataset, _listed(self.blend.classes), blended),
        ]


def _listed(classes: int | tuple[int, ...] | None) -> tuple[int, ...] | None:
    return tuple(range(classes)) if isinstance(classes, int) else classes


class TrainingProcedure(Settings):
    """T: how the model is trained (Gu et al. 2023, Section 5 and Appendix B)."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {"steps": None, "images": None}

    epochs: int | None = Field(40_000, ge=1, le=MOST, description="Passes over the training set.")
    steps: int | None = Field(None, ge=1, le=MOST, description="Optimizer steps, instead of T.epochs.")
    images: int | None = Field(
        None,
        ge=1,
        le=MOST_IMAGES,
        description="Training images seen, instead of T.epochs; the last batch is a whole one.",
    )
    batch_size: int = Field(512, ge=1, le=MOST, description="Images per optimizer step, over all processes.")
    lr: float = Field(2e-4, gt=0, description="Learning rate after the warm-up.")
    warmup_epochs: int = Field(200, ge=0, le=MOST, description="Epochs over which learning rate and EMA warm up.")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="Adam (0.9, 0.999), or SGD with momentum.")
    momentum: float | None = Field(None, ge=0, lt=1, description="Momentum of SGD; default 0.9.")
    weight_decay: float = Field(0.0, ge=0, description="Added to the gradient as weight_decay * weight.")
    ema: float = Field(
        0.99929, ge=0, lt=1, description="Decay of the running average of the weights, which generates the images."
    )
    shuffle: Literal["once", "epoch"] = Field(
        "once", description="Batch order: always the same (the paper's code), or a new one per epoch."
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="Arithmetic of the training: float32, TF32 products on CUDA, or bfloat16 by autocast."
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of initial weights, batch order, noise and generated images."
    )

    @model_validator(mode="before")
    @classmethod
    def _no_default_beside_another_budget(cls, values: Any) -> Any:
        given = isinstance(values, dict) and any(values.get(key) is not None for key in BUDGETS)
        return {"epochs": None, **values} if given else values

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"one of {', '.join(BUDGETS)} says how long a model is trained, not {len(given)} of them")
        return self

    @property
    def budget(self) -> str:
        """Return the key that says how long the model is trained."""
        return next(key for key in BUDGETS if getattr(self, key) is not None)

    def resolved(self, size: int, *, trained: bool = True) -> Self:
        """Return the same procedure on `size` images, without what has no effect.

        The momentum is written out for SGD and left out for Adam. A training whose last step ends an epoch is one of
        epochs, any other one of steps, so that the same training has one name. Of a model that is not trained, the
        seed alone is kept.
        """
        if not trained:
            return type(self)(epochs=1, seed=self.seed)
        momentum = None if self.optimizer == "adam" else 0.9 if self.momentum is None else self.momentum
        return self.model_copy(update={"momentum": momentum, **self._budget_on(size)})

    def _budget_on(self, size: int) -> dict[str, int | None]:
        if self.epochs is not None:
            return {}
        steps = self.last_step(size)
        seen = steps * self.batch_size if self.images is None or self.images % size else self.images
        epochs = seen // size  # of several that end at this step, the most, or those that T.images counts
        if 1 <= epochs <= MOST and self.steps_of(epochs, size) == steps:
            return {"epochs": epochs, "steps": None, "images": None}
        return {"epochs": None, "steps": steps, "images": None}

    def steps_of(self, epochs: int, size: int) -> int:
        """Return the optimizer steps of so many epochs on `size` images."""
        return -(-epochs * size // self.batch_size)

    def last_step(self, size: int) -> int:
        """Return the optimizer steps of the whole training on `size` images."""
        if self.epochs is not None:
            return self.steps_of(self.epochs, size)
        return self.steps or -(-(self.images or 0) // self.batch_size)

    def epochs_begun(self, size: int) -> int:
        """Return the epochs on `size` images that the training begins."""
        return self.epochs or -(-self.last_step(size) * self.batch_size // size)


Augmentations = Annotated[tuple[Augmentation, ...], BeforeValidator(as_tuple)]


class Scoring(Settings):
    """How a checkpoint's memorization ratio is measured, and what is kept of it."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {"precision": None, "points": None}
    NO_NUMBERS: ClassVar[frozenset[str]] = frozenset(
        {"batch_size", "pairs", "keep", "measures", "held_out", "groups", "augment"}
    )

    samples: int = Field(10_000, ge=1, le=MOST, description="Images generated per checkpoint.")
    every: int | None = Field(
        None, ge=1, le=MOST, description="Epochs between checkpoints; default: a sixteenth of the training."
    )
    points: int | None = Field(
        None,
        ge=1,
        le=MOST_CHECKPOINTS,
        description="Instead of score.every: how many checkpoints, log-spaced in steps over the last three decades of "
        "the training.",
    )
    steps: int = Field(18, ge=2, le=MOST, description="Noise levels of the Heun sampler.")
    precision: float | None = Field(
        None,
        gt=0,
        lt=0.5,
        description="Stop generating once the ratio's 95% Wilson interval is +- this or narrower; default: never.",
    )
    batch_size: int = Field(500, ge=1, le=MOST, description="Images generated at once; changes speed only.")
    pairs: int = Field(
        32, ge=0, le=MOST, description="Generated images kept for the gallery, 0: no pictures; changes looks only."
    )
    held_out: int = Field(
        10_000,
        ge=0,
        le=MOST,
        description="Held-out images, at most, whose share of copies is the null; changes no numbers.",
    )
    measures: Names = Field(
        (),
        description="Measures beside the paper's that a checkpoint is scored by (docs/measures.md lists them); changes "
        "no numbers.",
    )
    groups: Literal["none", "exact", "near"] = Field(
        "none",
        description="Adds the ratio between groups of training images, of identical or of nearly identical ones; "
        "changes no numbers.",
    )
    augment: Augmentations = Field(
        (), description="How the training augmented its images, which then join the groups; changes no numbers."
    )
    keep: Literal["last", "best", "all", "none"] = Field(
        "last",
        description="The checkpoints whose averaged weights are kept: the last, the one with the highest ratio, all or "
        "none; changes no numbers.",
    )

    @property
    def at_once(self) -> int:
        """Return after how many generated images it is looked whether the ratio is as precise as asked: of all, if it
        is not asked. More looks would bias it."""
        return PRECISION_CHECK if self.precision else self.samples

    @model_validator(mode="after")
    def _one_spacing(self) -> Self:
        if self.every is not None and self.points is not None:
            raise ValueError("one of every, points says where the checkpoints are, not both")
        return self

    def resolved(self, epochs: int, *, trained: bool = True) -> Self:
        """Return the same scoring with the epochs between checkpoints written out, for a training of `epochs`.

        A model that is not trained has one checkpoint.
        """
        if self.points is not None and trained:
            return self
        return self.model_copy(update={"every": min(self.every or math.ceil(epochs / 16), epochs), "points": None})


PRECISION_CHECK = 500
"""Generated images between two looks whether a ratio is as precise as asked."""


class Estimation(Settings):
    """How the EMM is read off the measured ratios; never part of a cell."""

    epsilon: float = Field(0.1, gt=0, lt=1, description="EMM is the largest N with ratio >= 1 - epsilon.")
    measure: str = Field(
        "nearest", description="The measure of the ratio: nearest (the paper's), or one of score.measures."
    )
    threshold: float | None = Field(
        None,
        gt=0,
        description="An image is a copy below this share of the yardstick (by the paper's measure: the second nearest "
        "distance); default: the measure's own.",
    )
    search: Literal["grid", "bisect"] = Field(
        "grid", description="grid: the sizes of an axis; bisect: a search for the EMM chooses them one after another."
    )
    range: Pair | None = Field(
        None, description="Smallest and largest size of the search; needed with search = bisect."
    )
    tolerance: float = Field(
        0.1, ge=0.001, le=1, description="The search ends when the EMM is known to within this share."
    )
    stop: Literal["crossed", "end"] = Field(
        "crossed",
        description="A cell of a search ends at the first checkpoint above the line, or is trained to its end.",
    )


def leaves(configuration: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return the settings of a configuration by the keys that lead to them."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in configuration.items():
        inner = leaves(value) if isinstance(value, dict) else {(): value}
        found |= {(key, *rest): leaf for rest, leaf in inner.items()}
    return found


def dotted(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration by dotted keys, as a study file names them."""
    return {".".join(keys): value for keys, value in leaves(configuration).items()}

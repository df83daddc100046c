"""What a cell is made of: the data distribution P, the model M, the training procedure T and the scoring.

The defaults are the basic set-up of Gu et al. 2023, Appendix B. Every setting is checked on its own by its
type; `impossible_pairs` checks what only two settings together can get wrong.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from diffmem.layout import Layer, layers

REPLICATES = frozenset({"P.draw", "T.seed"})
"""Keys over which the ratio is averaged; all others but the size tell one EMM curve from another."""

RESULTS_VERSION = 1
"""Part of every `cell_id`; raise it when the same settings come to mean other numbers."""


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    NEUTRAL: ClassVar[Mapping[str, Any]] = {}
    """Keys that came later, each with the value at which all is as it was before: then it is no part of a name."""

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Return the settings that change numbers, as plain data made once: not to be changed."""
        dumped = self.model_dump(mode="json")
        return {key: value for key, value in dumped.items() if key not in self.NEUTRAL or value != self.NEUTRAL[key]}

    @cached_property
    def as_json(self) -> str:
        """Return `numbers` as JSON with sorted keys, the text that goes into a `cell_id`."""
        return json.dumps(self.numbers, sort_keys=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some settings changed, without what was worked out from the old ones."""
        copied = super().model_copy(update=update, deep=deep)
        for key in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[key]
        return copied


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_mask(value: Any) -> Any:
    """Write a mask given as a list of 0 and 1 as the string that study files use."""
    if isinstance(value, list | tuple) and all(bit in (0, 1) for bit in value):
        return "".join(str(int(bit)) for bit in value)
    return value


MOST = 10**9
"""The largest whole number of a setting: more is a slip of the pen, and its products are still numbers that the store
can hold."""
MOST_CLASSES = 100_000
"""Classes of a dataset; class numbers are below."""

Integers = tuple[Annotated[int, Field(ge=1, le=MOST)], ...]
List = Annotated[Integers, BeforeValidator(_as_tuple)]
NonEmptyList = Annotated[Integers, Field(min_length=1), BeforeValidator(_as_tuple)]
Pair = Annotated[Integers, Field(min_length=2, max_length=2), BeforeValidator(_as_tuple)]
ClassList = Annotated[tuple[Annotated[int, Field(ge=0, le=MOST)], ...], Field(min_length=1), BeforeValidator(_as_tuple)]
Classes = Annotated[int, Field(ge=1, le=MOST_CLASSES)] | ClassList
Mask = Annotated[str, Field(pattern=r"^[01 ]+$"), BeforeValidator(_as_mask)]


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

    NEUTRAL: ClassVar[Mapping[str, Any]] = {"balance": True, "labels": None}

    dataset: str = Field(
        description="Where the images come from: digits (ships with diffmem), cifar10, imagenet-dogs, or a folder of "
        "images (one sub-folder a class), a .zip of one, a .npz, a Parquet file or a pattern of them."
    )
    size: int = Field(ge=2, le=MOST, description="N, the number of training images; the axis of EMM.")
    draw: Annotated[int, Field(ge=0, lt=2**63)] | Literal["first"] = Field(
        0, description="Which balanced, nested draw of training images; `first`: in file order."
    )
    resolution: int | None = Field(
        None, ge=4, le=4096, description="Side in pixels, by centre crop and Lanczos resize; default: the source's own."
    )
    classes: Classes | None = Field(
        None, description="Only the first so many classes, or a list of class numbers from 0; default: all."
    )
    blend: Blend | None = Field(None, description="Another dataset and its share of the training set; default: none.")
    balance: bool = Field(
        True,
        description="Equal shares of all classes; false: any images, so that all of an unbalanced set can be used.",
    )
    labels: str | None = Field(
        None, description="The column of a Parquet file that has the classes; default: the first called label."
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


class ModelConfiguration(Settings):
    """M: the network, its preconditioning and its conditioning (Gu et al. 2023, Section 4 and Appendix B)."""

    network: Literal["ddpm++", "ncsn++", "optimum"] = Field(
        "ddpm++", description="The U-Net; `optimum`: the closed-form optimal denoiser, which is not trained."
    )
    precondition: Literal["vp", "ve", "edm"] = Field(
        "vp", description="How network and noise are scaled, and how noise levels are drawn in training."
    )
    width: int = Field(128, ge=1, le=MOST, description="Channel multiplier.")
    channel_mult: NonEmptyList = Field(
        (2, 2, 2), description="Channels of each resolution as a multiple of width, highest resolution first."
    )
    blocks: int = Field(2, ge=1, le=1000, description="Residual blocks per resolution.")
    attention: List | None = Field(None, description="Resolutions with self-attention; default: the second one.")
    embedding: Literal["positional", "fourier"] | None = Field(
        None, description="Noise-level embedding; default: positional for ddpm++, fourier for ncsn++."
    )
    skips: Mask | None = Field(
        None,
        description="Skip connections, 1 kept and 0 zero-filled, blocks + 1 for each resolution, highest first: "
        "`111 100 000`; default: all kept.",
    )
    dropout: float = Field(0.13, ge=0, lt=1, description="Share of activations dropped in training.")
    condition: Literal["none", "true", "random", "unique"] = Field(
        "none", description="Labels: none, the true classes, random ones, or one per training image."
    )
    labels: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="C, the number of random labels; needed with condition = random, else without effect.",
    )

    def resolved(self, resolution: int) -> Self:
        """Return the same model with every default that depends on `resolution` (pixels) written out."""
        if self.network == "optimum":
            return type(self)(network="optimum", condition=self.condition, labels=self._labels_if_random)
        return self.model_copy(
            update={
                "attention": self._attends_at(resolution),
                "embedding": self.embedding or ("fourier" if self.network == "ncsn++" else "positional"),
                "skips": self._grouped_skips(),
                "labels": self._labels_if_random,
            }
        )

    def layers(self, resolution: int, *, channels: int) -> list[Layer]:
        """Return the layers of the network on images of `resolution` pixels a side."""
        return layers(
            resolution=resolution,
            channels=channels,
            width=self.width,
            channel_mult=self.channel_mult,
            blocks=self.blocks,
            attention=self._attends_at(resolution),
            residual_encoder=self.network == "ncsn++",
        )

    def _attends_at(self, resolution: int) -> tuple[int, ...]:
        if self.attention is None:
            return (resolution // 2,) if len(self.channel_mult) > 1 else ()
        return tuple(sorted(set(self.attention), reverse=True))

    @property
    def _labels_if_random(self) -> int | None:
        return self.labels if self.condition == "random" else None

    @property
    def skip_mask(self) -> tuple[bool, ...]:
        """Return which skip connections are kept, in encoder order."""
        return tuple(bit == "1" for bit in self._grouped_skips() if bit != " ")

    def _grouped_skips(self) -> str:
        per_level = self.blocks + 1
        bits = (self.skips or "1" * per_level * len(self.channel_mult)).replace(" ", "")
        return " ".join(bits[i : i + per_level] for i in range(0, len(bits), per_level))


class TrainingProcedure(Settings):
    """T: how the model is trained (Gu et al. 2023, Section 5 and Appendix B)."""

    epochs: int = Field(40_000, ge=1, le=MOST, description="Passes over the training set.")
    batch_size: int = Field(512, ge=1, le=MOST, description="Images per optimizer step, over all processes.")
    lr: float = Field(2e-4, gt=0, description="Learning rate after the warm-up.")
    warmup_epochs: int = Field(200, ge=0, le=MOST, description="Epochs over which learning rate and EMA warm up.")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="Adam (0.9, 0.999), or SGD with momentum.")
    momentum: float | None = Field(None, ge=0, lt=1, description="Momentum of SGD; default 0.9.")
    weight_decay: float = Field(0.0, ge=0, description="Added to the gradient as weight_decay * weight.")
    ema: float = Field(0.99929, ge=0, lt=1, description="Decay of the weights' running average, which generates.")
    shuffle: Literal["once", "epoch"] = Field(
        "once", description="Batch order: one order for ever (the paper's code), or a new one per epoch."
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="Arithmetic of the training: float32, TF32 products on CUDA, or bfloat16 by autocast."
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of initial weights, batch order, noise and generated images."
    )

    def resolved(self, network: str = "ddpm++") -> Self:
        """Return the same procedure with the momentum written out for SGD and left out for Adam.

        Of the optimum, which is not trained, the seed alone is kept.
        """
        if network == "optimum":
            return type(self)(epochs=1, seed=self.seed)
        momentum = None if self.optimizer == "adam" else 0.9 if self.momentum is None else self.momentum
        return self.model_copy(update={"momentum": momentum})


class Scoring(Settings):
    """How a checkpoint's memorization ratio is measured."""

    samples: int = Field(10_000, ge=1, le=MOST, description="Images generated per checkpoint.")
    every: int | None = Field(
        None, ge=1, le=MOST, description="Epochs between checkpoints; default: a sixteenth of the training."
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

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Return the settings that change numbers, as plain data made once: not to be changed."""
        without = NO_NUMBERS | ({"precision"} if self.precision is None else set())
        return self.model_dump(mode="json", exclude=set(without))

    def resolved(self, epochs: int) -> Self:
        """Return the same scoring with the epochs between checkpoints written out, for a training of `epochs`."""
        return self.model_copy(update={"every": min(self.every or math.ceil(epochs / 16), epochs)})


NO_NUMBERS = frozenset({"batch_size", "pairs"})
"""Settings of the scoring that change only speed or looks, and are not part of a cell."""


THRESHOLD = 1 / 3
"""Memorized: the nearest training image is nearer than this times the second nearest (Gu et al. 2023, Sec. 2)."""


class Estimation(Settings):
    """How the EMM is read off the measured ratios; never part of a cell."""

    epsilon: float = Field(0.1, gt=0, lt=1, description="EMM is the largest N with ratio >= 1 - epsilon.")
    threshold: float = Field(
        THRESHOLD, gt=0, le=1, description="Memorized: nearest distance < threshold * second nearest."
    )
    search: Literal["grid", "bisect"] = Field(
        "grid", description="The sizes of an axis, or those that a search for the EMM chooses one after another."
    )
    range: Pair | None = Field(
        None, description="Smallest and largest size of the search; needed with search = bisect."
    )
    tolerance: float = Field(0.1, ge=0.001, le=1, description="The search ends when the EMM is known to this share.")
    stop: Literal["crossed", "end"] = Field(
        "crossed",
        description="A cell of a search ends at the first checkpoint above the line, or is trained to its end.",
    )


class Dataset(NamedTuple):
    """The facts of a dataset that a study is checked against."""

    class_sizes: tuple[int, ...]  # images of each class
    resolution: int | None  # pixels; None: images of many sizes, which need P.resolution
    channels: int  # 1 grey, 3 RGB
    fingerprint: str = ""  # hash of the content, where the images are a user's own files

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_sizes)


DATASETS = {
    "digits": Dataset((178, 182, 177, 183, 181, 182, 181, 179, 174, 180), resolution=8, channels=1),
    "cifar10": Dataset((5000,) * 10, resolution=32, channels=3),
    # ImageNet's classes hold at most 1,300 training images each; how many, only the files tell
    "imagenet-dogs": Dataset((1300,) * 123, resolution=32, channels=3),
}
"""The datasets that have a name. imagenet-dogs are classes 151 to 273 of ImageNet-1k, cropped and resized."""

Facts = Mapping[str, Dataset]
"""The facts of each dataset that a cell draws from, by the name or path that the study file gives it."""


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


def content_hash(configuration: dict[str, Any]) -> str:
    """Return 16 hex digits that name what a configuration gives, under this version's meaning of it."""
    return _hash(json.dumps([RESULTS_VERSION, configuration], sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprints_of(P: DataDistribution, facts: Facts) -> dict[str, str]:
    """Return the content hash of each dataset of P that is a user's own files, by its path."""
    return {part.dataset: print_ for part in P.parts if (print_ := facts[part.dataset].fingerprint)}


def channels_of(P: DataDistribution, facts: Facts) -> int:
    """Return the colour channels of a training set: 3 where any of its datasets is RGB."""
    return max(facts[part.dataset].channels for part in P.parts)


class Cell(Settings):
    """One model to train and measure: P, M, T and the scoring, with every default written out."""

    P: DataDistribution
    M: ModelConfiguration
    T: TrainingProcedure
    score: Scoring

    channels: int  # colour channels of the images: 1 grey, 3 RGB
    fingerprints: dict[str, str]  # content hash of each dataset that is a user's own files, by its path

    @classmethod
    def resolve(
        cls, P: DataDistribution, M: ModelConfiguration, T: TrainingProcedure, score: Scoring, facts: Facts = DATASETS
    ) -> Self:
        """Write out all defaults, and drop what has no effect, so that equal cells compare equal."""
        dataset = facts[P.dataset]
        P, T = P.resolved(dataset), T.resolved(M.network)
        return cls(
            P=P,
            M=M.resolved(P.resolution or 0),
            T=T,
            score=score.resolved(T.epochs),
            channels=channels_of(P, facts),
            fingerprints=fingerprints_of(P, facts),
        )

    @property
    def configuration(self) -> dict[str, Any]:
        """Return the settings that change numbers, as plain data; the hash of it is the cell's name.

        A user's own files stand in it by their content, so that the same images at another place are the same cell.
        """
        return {
            "P": self._by_content.numbers,
            "M": self.M.numbers,
            "T": self.T.numbers,
            "score": self.score.numbers,
        }

    @property
    def _by_content(self) -> DataDistribution:
        """Return P with the hash of the content in place of the path of a user's own files."""
        if not self.fingerprints:
            return self.P
        P, blend = self.P, self.P.blend
        return P.model_copy(
            update={
                "dataset": self.fingerprints.get(P.dataset, P.dataset),
                "blend": blend
                and blend.model_copy(update={"dataset": self.fingerprints.get(blend.dataset, blend.dataset)}),
            }
        )

    @cached_property
    def cell_id(self) -> str:
        """Return the cell's name: 16 hex digits, equal exactly when all numbers must be equal.

        It is the `content_hash` of the configuration, from texts that cells of the same settings share.
        """
        P, M, T, score = (each.as_json for each in (self._by_content, self.M, self.T, self.score))
        return _hash(f'[{RESULTS_VERSION}, {{"M": {M}, "P": {P}, "T": {T}, "score": {score}}}]')

    @property
    def labels(self) -> int:
        """Return the number of labels C that the model is conditioned on; 0: none."""
        return {
            "none": 0,
            "true": len(self.P.parts[0].classes or ()),
            "random": self.M.labels or 0,
            "unique": self.P.size,
        }[self.M.condition]

    @property
    def checkpoints(self) -> list[tuple[int, int]]:
        """Return (epoch, optimizer step) of every checkpoint; the untrained model is not one of them."""
        if self.M.network == "optimum":
            return [(0, 0)]
        every = self.score.every or self.T.epochs
        epochs = [*range(every, self.T.epochs, every), self.T.epochs]
        return [(epoch, self.steps(epoch)) for epoch in epochs]

    @property
    def checkpoint_count(self) -> int:
        """Return how many checkpoints a finished one has."""
        return math.ceil(self.T.epochs / (self.score.every or self.T.epochs))

    def steps(self, epochs: int) -> int:
        """Return the optimizer steps of the first epochs."""
        return math.ceil(epochs * self.P.size / self.T.batch_size)


class Fault(NamedTuple):
    """One thing that two or more settings get wrong together; the first key is the one to change."""

    keys: tuple[str, ...]
    message: str


MOST_CHECKPOINTS = 10_000


def impossible_pairs(
    P: DataDistribution, M: ModelConfiguration, T: TrainingProcedure, score: Scoring, facts: Facts = DATASETS
) -> list[Fault]:
    """Return what cannot be done although each setting is valid on its own; `facts` has the datasets of P."""
    resolution = P.resolution or facts[P.dataset].resolution
    return [
        *impossible_data(P, facts),
        *impossible_labels(P, M),
        *(impossible_network(M, resolution) if resolution else []),
        *impossible_checkpoints(T, score),
    ]


def impossible_labels(P: DataDistribution, M: ModelConfiguration) -> list[Fault]:
    """Return what is wrong with the labels that the model is conditioned on."""
    faults = []
    if M.condition == "random" and M.labels is None:
        faults.append(Fault(("M.labels", "M.condition"), "missing; condition = random needs a number of labels"))
    if M.condition == "true" and P.blend:
        faults.append(Fault(("M.condition", "P.blend.dataset"), "true labels of two blended datasets do not agree"))
    return faults


def impossible_checkpoints(T: TrainingProcedure, score: Scoring) -> list[Fault]:
    """Return what is wrong with the number of checkpoints."""
    if not score.every or T.epochs <= MOST_CHECKPOINTS * score.every:
        return []
    epochs = f"{T.epochs} epochs with a checkpoint every {score.every}"
    return [Fault(("score.every", "T.epochs"), f"{epochs} are more than {MOST_CHECKPOINTS} checkpoints")]


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
        most = len(taken) * min(taken) if P.balance else sum(taken)
        if count > most:
            faults.append(
                Fault(
                    ("P.size", classes_key, "P.dataset", "P.blend.share"),
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


def _too_few(name: str, sizes: Sequence[int], most: int, count: int, P: DataDistribution, classes_key: str) -> str:
    """Return why a dataset has too few images, and what to write instead."""
    empty = [number for number, size in enumerate(sizes) if not size]
    if P.balance and empty and P.classes is None:
        there = [number for number, size in enumerate(sizes) if size]
        named = ", ".join(map(str, there[:20])) + (", ..." if len(there) > 20 else "")
        which = f"class {empty[0]}" if len(empty) == 1 else f"classes {', '.join(map(str, empty[:5]))}"
        return f"{name} has no images of {which}; take those that there are with {classes_key} = [{named}]"
    if P.balance and sum(sizes) >= count:
        return (
            f"{name} has images for balanced sets of up to {most}, not {count}; P.balance = false takes any of its "
            f"{sum(sizes)}"
        )
    return f"{name} has images for {'balanced ' if P.balance else ''}sets of up to {most}, not {count}"


def impossible_network(M: ModelConfiguration, resolution: int) -> list[Fault]:
    """Return what is wrong with the network on images of `resolution` pixels a side."""
    if M.network == "optimum":
        return []
    faults = []
    levels = len(M.channel_mult)
    sides = [resolution >> level for level in range(levels)]
    halved = resolution % (1 << (levels - 1)) == 0
    if not halved:
        message = f"{levels} levels halve the side {levels - 1} times, which {resolution} pixels do not allow"
        faults.append(Fault(("M.channel_mult", "P.resolution"), message))
    for side in M.attention or ():
        if halved and side not in sides:
            known = ", ".join(map(str, sides))
            message = f"the net has no resolution {side}; it has {known}"
            faults.append(Fault(("M.attention", "M.channel_mult", "P.resolution"), message))
    expected = levels * (M.blocks + 1)
    if M.skips is not None and len(M.skip_mask) != expected:
        message = f"{levels} levels of {M.blocks} blocks have {expected} skips, not {len(M.skip_mask)}"
        faults.append(Fault(("M.skips", "M.blocks", "M.channel_mult"), message))
    odd = M.width % 2 and M.network == "ddpm++"
    if odd:
        faults.append(Fault(("M.width",), f"the noise embedding is half sines and half cosines; {M.width} is odd"))
    if odd or not halved:  # there are no layers to look at
        return faults
    uneven = sorted(c for c in normalised_channels(M, resolution) if c < 4 or c % group_count(c))
    if uneven:
        message = f"group norm cannot split {uneven[0]} channels evenly; take a multiple of 4 (of 32 from 64 on)"
        faults.append(Fault(("M.width", "M.channel_mult"), message))
    return faults


def group_count(channels: int) -> int:
    """Return the number of groups of a group norm over `channels` channels."""
    return min(32, channels // 4)


def normalised_channels(M: ModelConfiguration, resolution: int) -> set[int]:
    """Return the channel counts that some group norm of the network sees."""
    plan = M.layers(resolution, channels=3)
    return {c for layer in plan if layer.kind in ("block", "norm") for c in (layer.inputs, layer.outputs)}

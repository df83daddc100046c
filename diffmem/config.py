"""What a cell is made of: the data distribution P, the model M, the training procedure T and the scoring.

The defaults are the basic set-up of Gu et al. 2023, Appendix B. Every setting is checked on its own by its
type; `impossible_pairs` checks what only two settings together can get wrong.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from diffmem.layout import Layer, layers

REPLICATES = frozenset({"P.draw", "T.seed"})
"""Keys over which the ratio is averaged; all others but the size tell one EMM curve from another."""

RESULTS_VERSION = 1
"""Part of every `cell_id`; raise it when the same settings come to mean other numbers."""


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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

    dataset: str = Field(
        description="Where the images come from: digits (ships with diffmem), cifar10, imagenet-dogs, or a folder of "
        "images (one sub-folder a class), a .npz, a Parquet file or a pattern of them."
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

    def resolved(self) -> Self:
        """Return the same procedure with the momentum written out for SGD and left out for Adam."""
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
    text = json.dumps([RESULTS_VERSION, configuration], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
        resolution = P.resolution or dataset.resolution or 0
        wanted = P.parts[0].classes or tuple(range(dataset.classes))
        P = P.model_copy(
            update={
                "resolution": resolution,
                "classes": len(wanted) if wanted == tuple(range(len(wanted))) else wanted,
                "blend": P.blend if P.blend and P.blend.share else None,
            }
        )
        M = M.resolved(resolution)
        if M.network == "optimum":
            T, every = TrainingProcedure(epochs=1, seed=T.seed), 1
        else:
            T, every = T.resolved(), score.every or math.ceil(T.epochs / 16)
        return cls(
            P=P,
            M=M,
            T=T,
            score=score.model_copy(update={"every": min(every, T.epochs)}),
            channels=dataset.channels,
            fingerprints={part.dataset: print_ for part in P.parts if (print_ := facts[part.dataset].fingerprint)},
        )

    @property
    def configuration(self) -> dict[str, Any]:
        """Return the settings that change numbers, as plain data; the hash of it is the cell's name.

        A user's own files stand in it by their content, so that the same images at another place are the same cell.
        """
        without = NO_NUMBERS | ({"precision"} if self.score.precision is None else set())
        data = self.model_dump(mode="json", include={"P", "M", "T", "score"}, exclude={"score": set(without)})
        for part in (data["P"], data["P"]["blend"] or {}):
            if part.get("dataset") in self.fingerprints:
                part["dataset"] = self.fingerprints[part["dataset"]]
        return data

    @cached_property
    def cell_id(self) -> str:
        """Return the cell's name: 16 hex digits, equal exactly when all numbers must be equal."""
        return content_hash(self.configuration)

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
        return [(epoch, math.ceil(epoch * self.P.size / self.T.batch_size)) for epoch in epochs]


class Fault(NamedTuple):
    """One thing that two or more settings get wrong together; the first key is the one to change."""

    keys: tuple[str, ...]
    message: str


MOST_CHECKPOINTS = 10_000


def impossible_pairs(
    P: DataDistribution, M: ModelConfiguration, T: TrainingProcedure, score: Scoring, facts: Facts = DATASETS
) -> list[Fault]:
    """Return what cannot be done although each setting is valid on its own; `facts` has the datasets of P."""
    dataset = facts[P.dataset]
    faults = _impossible_data(P, facts)
    if M.condition == "random" and M.labels is None:
        faults.append(Fault(("M.labels", "M.condition"), "missing; condition = random needs a number of labels"))
    if M.condition == "true" and P.blend:
        faults.append(Fault(("M.condition", "P.blend.dataset"), "true labels of two blended datasets do not agree"))
    resolution = P.resolution or dataset.resolution
    if resolution is None:
        message = f"missing; the images of {P.dataset} differ in size, so a common one must be chosen"
        faults.append(Fault(("P.resolution", "P.dataset"), message))
    elif M.network != "optimum":
        faults += _impossible_network(M, resolution)
    if score.every and T.epochs > MOST_CHECKPOINTS * score.every:
        epochs = f"{T.epochs} epochs with a checkpoint every {score.every}"
        faults.append(Fault(("score.every", "T.epochs"), f"{epochs} are more than {MOST_CHECKPOINTS} checkpoints"))
    return faults


def _impossible_data(P: DataDistribution, facts: Facts) -> list[Fault]:
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
        most = len(taken) * min(taken)
        if count > most:
            message = f"{name} has images for balanced sets of up to {most}, not {count}"
            faults.append(Fault(("P.size", classes_key, "P.dataset", "P.blend.share"), message))
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
    if P.blend and facts[P.blend.dataset].channels != dataset.channels:
        message = f"{P.blend.dataset} and {P.dataset} differ: one is grey, the other RGB"
        faults.append(Fault(("P.blend.dataset", "P.dataset"), message))
    return faults


def _impossible_network(M: ModelConfiguration, resolution: int) -> list[Fault]:
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

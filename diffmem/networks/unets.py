"""The U-Nets DDPM++ and NCSN++ (Song et al. 2021): their settings, what these get wrong together, and their cost.

A multiplication and an addition are two operations; normalisations, activations and resampling filters, a few per
cent together, are left out.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field

from diffmem.networks.layers import Layer, group_count, layers
from diffmem.networks.member import Fault, TrainedModel, Work
from diffmem.settings import MOST, List, NonEmptyList

if TYPE_CHECKING:
    from diffmem.networks.unet import UNet

SMALL_LAYER = 1 << 15
"""Activations of a layer below which a second CPU thread gains nothing, and beside another program loses much."""


def _as_mask(value: Any) -> Any:
    """Write a mask given as a list of 0 and 1 as the string that study files use."""
    if isinstance(value, list | tuple) and all(bit in (0, 1) for bit in value):
        return "".join(str(int(bit)) for bit in value)
    return value


Mask = Annotated[str, Field(pattern=r"^[01 ]+$"), BeforeValidator(_as_mask)]


class UNetModel(TrainedModel):
    """M of a U-Net, whose members differ in the noise embedding, the resampling filter and the encoder's input."""

    PAPER: ClassVar[Mapping[str, str]] = {
        "width": "Fig. 3a, 7a, 7c, 7e",
        "channel_mult": "App. B",
        "blocks": "Fig. 3b, 3c, 7b, 7d, 7f",
        "attention": "App. B",
        "embedding": "Fig. 3d",
        "skips": "Fig. 4, 8a, 8b",
        "dropout": "its code",
    }
    own_embedding: ClassVar[Literal["positional", "fourier"]]
    """The noise-level embedding where none is chosen."""
    taps: ClassVar[Sequence[float]]
    """The filter that resamples."""
    residual_encoder: ClassVar[bool]
    """Whether the halved image is joined to each level of the encoder."""

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

    @property
    def noise_channels(self) -> int:
        """Return the channels of the noise embedding as it enters."""
        return 2 * self.width if self.residual_encoder else self.width

    @property
    def embedded_channels(self) -> int:
        """Return the channels of the noise embedding as the blocks see it."""
        return 4 * self.width

    @property
    def skip_mask(self) -> tuple[bool, ...]:
        """Return which skip connections are kept, in encoder order."""
        return tuple(bit == "1" for bit in self._grouped_skips() if bit != " ")

    def _grouped_skips(self) -> str:
        per_level = self.blocks + 1
        bits = (self.skips or "1" * per_level * len(self.channel_mult)).replace(" ", "")
        return " ".join(bits[i : i + per_level] for i in range(0, len(bits), per_level))

    def attends_at(self, resolution: int) -> tuple[int, ...]:
        """Return the sides in pixels that have self-attention, of images of `resolution` pixels a side."""
        if self.attention is None:
            return (resolution // 2,) if len(self.channel_mult) > 1 else ()
        return tuple(sorted(set(self.attention), reverse=True))

    def resolved(self, resolution: int) -> Self:
        """Return the same model with every default that depends on `resolution` (pixels) written out."""
        return (
            super()
            .resolved(resolution)
            .model_copy(
                update={
                    "attention": self.attends_at(resolution),
                    "embedding": self.embedding or self.own_embedding,
                    "skips": self._grouped_skips(),
                }
            )
        )

    def faults(self, resolution: int) -> list[Fault]:
        """Return what its settings get wrong together, or with images of `resolution` pixels a side."""
        faults = []
        levels = len(self.channel_mult)
        sides = [resolution >> level for level in range(levels)]
        halved = resolution % (1 << (levels - 1)) == 0
        if not halved:
            message = f"{levels} levels halve the side {levels - 1} times, which {resolution} pixels do not allow"
            faults.append(Fault(("M.channel_mult", "P.resolution"), message))
        for side in self.attention or ():
            if halved and side not in sides:
                known = ", ".join(map(str, sides))
                message = f"the net has no resolution {side}; it has {known}"
                faults.append(Fault(("M.attention", "M.channel_mult", "P.resolution"), message))
        expected = levels * (self.blocks + 1)
        if self.skips is not None and len(self.skip_mask) != expected:
            message = f"{levels} levels of {self.blocks} blocks have {expected} skips, not {len(self.skip_mask)}"
            faults.append(Fault(("M.skips", "M.blocks", "M.channel_mult"), message))
        odd = self._embedding_faults()
        return [*faults, *odd, *([] if odd or not halved else self._uneven_channels(resolution))]

    def _embedding_faults(self) -> list[Fault]:
        """Return what is wrong with the width of the noise embedding."""
        if self.noise_channels % 2 == 0:
            return []
        message = f"the noise embedding is half sines and half cosines; {self.width} is odd"
        return [Fault(("M.width",), message)]

    def _uneven_channels(self, resolution: int) -> list[Fault]:
        """Return what is wrong with the channels that a group norm sees."""
        uneven = sorted(c for c in self.normalised_channels(resolution) if c < 4 or c % group_count(c))
        if not uneven:
            return []
        message = f"group norm cannot split {uneven[0]} channels evenly; take a multiple of 4 (of 32 from 64 on)"
        return [Fault(("M.width", "M.channel_mult"), message)]

    def normalised_channels(self, resolution: int) -> set[int]:
        """Return the channel counts that some group norm of the network sees."""
        plan = layers(self, resolution=resolution, channels=3)
        return {c for layer in plan if layer.kind in ("block", "norm") for c in (layer.inputs, layer.outputs)}

    def work(self, *, resolution: int, channels: int, labels: int, size: int) -> Work:
        """Return its parameters and operations, counted layer by layer."""
        counted = _counted(self, resolution, channels)
        of_labels = (labels + 1) * self.noise_channels if labels else 0
        return Work(counted.parameters + of_labels, counted.forward)

    def is_small(self, *, resolution: int, batch: int) -> bool:
        """Return whether one CPU thread trains it best: its first layers have the most activations."""
        return batch * resolution**2 * self.width * self.channel_mult[0] < SMALL_LAYER

    def build(self, *, resolution: int, channels: int, labels: int = 0, seed: int = 0) -> "UNet":
        """Return the network for images [channels, resolution, resolution], with weights drawn from `seed`."""
        from diffmem.networks.unet import UNet  # which loads torch

        return UNet(self, resolution=resolution, channels=channels, labels=labels, seed=seed)


@lru_cache(maxsize=1000)
def _counted(M: UNetModel, resolution: int, channels: int) -> Work:
    """Count a network without labels once for the many cells that train it."""
    noise, embedded = M.noise_channels, M.embedded_channels
    plan = layers(M, resolution=resolution, channels=channels)
    parameters = (noise + 1) * embedded + (embedded + 1) * embedded
    forward = 2 * noise * embedded + 2 * embedded * embedded
    return Work(
        parameters + sum(_parameters(layer, embedded) for layer in plan),
        forward + sum(_operations(layer, embedded) for layer in plan),
    )


def _parameters(layer: Layer, embedded: int) -> int:
    a, b = layer.inputs, layer.outputs
    if layer.kind == "norm":
        return 2 * a
    if layer.kind != "block":
        return (9 * a + 1) * b
    skip = (a + 1) * b if _has_skip(layer) else 0
    attention = 2 * b + (b + 1) * 3 * b + (b + 1) * b if layer.attention else 0
    return 2 * a + (9 * a + 1) * b + (embedded + 1) * b + 2 * b + (9 * b + 1) * b + skip + attention


def _operations(layer: Layer, embedded: int) -> int:
    a, b, area = layer.inputs, layer.outputs, layer.side**2
    if layer.kind == "norm":
        return 0
    if layer.kind == "auxiliary":  # convolves before it halves, over one more pixel at each end
        return 2 * 9 * a * b * (2 * layer.side + 2) ** 2
    if layer.kind == "convolution":
        return 2 * 9 * a * b * area
    skip = 2 * a * b * area if _has_skip(layer) else 0
    attention = 2 * (4 * b * b * area + 2 * b * area**2) if layer.attention else 0
    return 2 * 9 * (a + b) * b * area + 2 * embedded * b + skip + attention


def _has_skip(layer: Layer) -> bool:
    """Return whether a block's shortcut is a 1x1 convolution."""
    return layer.inputs != layer.outputs or layer.resample is not None

"""The layers of the U-Nets, in order: what unet.py builds, and what unets.py counts."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from diffmem.networks.unets import UNetModel

BOX = (1.0, 1.0)
SMOOTH = (1.0, 3.0, 3.0, 1.0)
"""Filters that resample: a mean of two pixels, and one of four."""


class Layer(NamedTuple):
    """One layer of encoder or decoder, by its name in the state dict."""

    name: str
    kind: Literal["convolution", "block", "auxiliary", "norm"]  # auxiliary: halves the image and joins it (NCSN++)
    inputs: int  # channels
    outputs: int
    side: int  # pixels of its output
    attention: bool = False
    resample: Literal["down", "up"] | None = None

    @property
    def takes_skip(self) -> bool:
        """Return whether a decoder layer's inputs are those of the layer before it and a skip connection."""
        return self.name.startswith("dec.") and "_block" in self.name


def layers(M: "UNetModel", *, resolution: int, channels: int) -> list[Layer]:
    """Return the layers of a U-Net on images [channels, resolution, resolution]."""
    attention = M.attends_at(resolution)
    levels = [(resolution >> level, M.width * factor) for level, factor in enumerate(M.channel_mult)]
    encoder = list(_encoder(levels, channels, M.width, M.blocks, attention, M.residual_encoder))
    kept = [layer.outputs for layer in encoder if layer.kind != "auxiliary"]
    return [*encoder, *_decoder(levels, channels, M.blocks, attention, kept)]


def _encoder(
    levels: list[tuple[int, int]], channels: int, width: int, blocks: int, attention: Sequence[int], auxiliary: bool
) -> Iterator[Layer]:
    x = width
    for level, (side, outputs) in enumerate(levels):
        name = f"enc.{side}x{side}"
        if level == 0:
            yield Layer(f"{name}_conv", "convolution", channels, x, side)
        else:
            yield Layer(f"{name}_down", "block", x, x, side, resample="down")
            if auxiliary:
                image = channels if level == 1 else levels[level - 2][1]
                yield Layer(f"{name}_aux_residual", "auxiliary", image, x, side, resample="down")
        for i in range(blocks):
            yield Layer(f"{name}_block{i}", "block", x, outputs, side, side in attention)
            x = outputs


def _decoder(
    levels: list[tuple[int, int]], channels: int, blocks: int, attention: Sequence[int], kept: list[int]
) -> Iterator[Layer]:
    """The lowest level first; `kept` are the channels of the skip connections, taken from the end."""
    x = levels[-1][1]
    for level, (side, outputs) in reversed(list(enumerate(levels))):
        name = f"dec.{side}x{side}"
        if level == len(levels) - 1:
            yield Layer(f"{name}_in0", "block", x, x, side, attention=True)
            yield Layer(f"{name}_in1", "block", x, x, side)
        else:
            yield Layer(f"{name}_up", "block", x, x, side, resample="up")
        for i in range(blocks + 1):
            yield Layer(f"{name}_block{i}", "block", x + kept.pop(), outputs, side, i == blocks and side in attention)
            x = outputs
    yield Layer(f"{name}_aux_norm", "norm", x, x, side)
    yield Layer(f"{name}_aux_conv", "convolution", x, channels, side)


def group_count(channels: int) -> int:
    """Return the number of groups of a group norm over `channels` channels."""
    return min(32, channels // 4)

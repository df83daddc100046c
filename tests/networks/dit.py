"""A small diffusion transformer (Peebles and Xie 2023) as one would add it: a file, and its entry in MEMBERS."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from diffmem.networks import Fault, Network, TrainedModel, Work
from diffmem.randomness import stream
from diffmem.settings import MOST


class DiT(TrainedModel):
    """M of a transformer over patches, with noise level and label in its normalisations (adaLN)."""

    PAPER: ClassVar[Mapping[str, str]] = {"patch": "not in it"}

    network: Literal["dit"] = Field("dit", description="a diffusion transformer")
    patch: int = Field(2, ge=1, le=MOST, description="Side of a patch in pixels.")
    hidden: int = Field(32, ge=2, le=MOST, description="Features of a token.")
    depth: int = Field(2, ge=1, le=1000, description="Transformer blocks.")
    heads: int = Field(2, ge=1, le=MOST, description="Heads of the self-attention.")

    def faults(self, resolution: int) -> list[Fault]:
        """Return what does not divide."""
        found = []
        if resolution % self.patch:
            found.append(
                Fault(("M.patch", "P.resolution"), f"{resolution} pixels are no whole patches of {self.patch}")
            )
        if self.hidden % (2 * self.heads):
            found.append(Fault(("M.hidden", "M.heads"), f"{self.hidden} features do not split over {self.heads} heads"))
        return found

    def work(self, *, resolution: int, channels: int, labels: int, size: int) -> Work:  # noqa: ARG002 - for others
        """Count the linear layers and the two products of each attention."""
        h, tokens, pixels = self.hidden, (resolution // self.patch) ** 2, channels * self.patch**2
        per_token = pixels * h + self.depth * 12 * h * h + h * pixels
        once = 2 * h * h + self.depth * h * 6 * h + h * 2 * h
        attention = self.depth * 2 * tokens**2 * h
        biases = h + 2 * h + self.depth * (6 * h + 9 * h) + 2 * h + pixels
        parameters = per_token + once + biases + tokens * h + labels * h
        return Work(parameters, 2 * (tokens * per_token + once + attention))

    def build(self, *, resolution: int, channels: int, labels: int = 0, seed: int = 0) -> "Transformer":
        """Return the transformer with weights drawn from `seed`."""
        return Transformer(self, resolution=resolution, channels=channels, labels=labels, seed=seed)


class Block(nn.Module):
    """Self-attention and a perceptron, each shifted, scaled and gated by the embedding."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(hidden, 6 * hidden)
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift0, scale0, gate0, shift1, scale1, gate1 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        x = x + gate0 * self._attend(modulated(x, shift0, scale0))
        return x + gate1 * self.down(functional.gelu(self.up(modulated(x, shift1, scale1))))

    def _attend(self, x: Tensor) -> Tensor:
        n, tokens, hidden = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(-1, -2) / math.sqrt(k.shape[-1])).softmax(dim=-1)
        return self.proj((shares @ v).transpose(1, 2).reshape(n, tokens, hidden))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class Transformer(Network):
    """F: patches to tokens, blocks, tokens to patches."""

    def __init__(self, M: DiT, *, resolution: int, channels: int, labels: int, seed: int) -> None:
        super().__init__()
        self.patch, self.hidden, self.channels = M.patch, M.hidden, channels
        pixels, tokens = channels * M.patch**2, (resolution // M.patch) ** 2
        self.enter, self.leave = nn.Linear(pixels, M.hidden), nn.Linear(M.hidden, pixels)
        self.position = nn.Parameter(torch.empty(tokens, M.hidden))
        self.noise = nn.Sequential(nn.Linear(M.hidden, M.hidden), nn.SiLU(), nn.Linear(M.hidden, M.hidden))
        self.label = nn.Embedding(labels, M.hidden) if labels else None
        self.blocks = nn.ModuleList(Block(M.hidden, M.heads) for _ in range(M.depth))
        self.last = nn.Linear(M.hidden, 2 * M.hidden)
        generator = stream("weights", seed, 0)
        with torch.no_grad():
            for weights in self.parameters():
                weights.normal_(generator=generator).mul_(0.5 / math.sqrt(weights.shape[-1]))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        frequencies = torch.exp(-torch.arange(self.hidden // 2, device=x.device) / 2)
        angle = torch.outer(c_noise, frequencies)
        embedding = self.noise(torch.cat([angle.sin(), angle.cos()], dim=1))
        if self.label is not None:
            embedding = embedding + self.label(labels)
        tokens = self.enter(functional.unfold(x, self.patch, stride=self.patch).transpose(1, 2)) + self.position
        for block in self.blocks:
            tokens = block(tokens, embedding)
        shift, scale = self.last(embedding)[:, None].chunk(2, dim=-1)
        patches = self.leave(modulated(tokens, shift, scale)).transpose(1, 2)
        return functional.fold(patches, x.shape[-2:], self.patch, stride=self.patch)

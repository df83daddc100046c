"""The raw network F: the U-Nets DDPM++ and NCSN++ (Song et al. 2021), as the paper's experiments used them.

Names and shapes of the state dict are those of the published networks, so that their weights load as they are.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffmem.networks.layers import BOX, Layer, group_count, layers
from diffmem.networks.network import Dropout, Network
from diffmem.networks.unets import UNetModel
from diffmem.randomness import stream


class Convolution(nn.Conv2d):
    """Convolve, after halving ("down") or doubling ("up") the side with a fixed filter where asked."""

    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        resample: str | None = None,
        taps: Sequence[float] = BOX,
        filter_last: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.resample = resample
        self.filter_last = filter_last
        self.box = tuple(taps) == BOX
        self.filter_padding = (len(taps) - 1) // 2
        if resample:
            row = torch.tensor(taps)
            self.register_buffer("resample_filter", torch.outer(row, row)[None, None] / row.sum() ** 2)

    def reset_parameters(self) -> None:
        """Leave the weights to `initialise`, which draws them from a named stream."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, inputs, h, w] to [n, outputs, h', w']."""
        if self.filter_last:
            padding = self.kernel_size[0] // 2 + self.filter_padding
            x = functional.conv2d(x, self.weight, padding=padding)
            x = self._filter(x, padding=0)
            return x + cast("Tensor", self.bias)[:, None, None]
        if self.resample == "down":
            x = functional.avg_pool2d(x, 2) if self.box else self._filter(x, padding=self.filter_padding)
        elif self.resample == "up":
            x = _Doubled.apply(x) if self.box else self._spread(x)  # type: ignore[no-untyped-call]
        return self._mix(x) if self.kernel_size == (1, 1) and x.is_contiguous() else super().forward(x)

    def _mix(self, x: Tensor) -> Tensor:
        """Convolve with a 1x1 kernel as one batched matrix product: on a CPU up to three times as fast."""
        n, _, h, w = x.shape
        weight = self.weight.flatten(1).expand(n, -1, -1)
        bias = cast("Tensor", self.bias)[None, :, None]
        return torch.baddbmm(bias, weight, x.flatten(2)).view(n, -1, h, w)

    def _filter(self, x: Tensor, *, padding: int) -> Tensor:
        channels = x.shape[1]
        kernel = self.resample_filter.expand(channels, -1, -1, -1)
        return functional.conv2d(x, kernel, stride=2, padding=padding, groups=channels)

    def _spread(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.resample_filter.expand(channels, -1, -1, -1) * 4
        return functional.conv_transpose2d(x, kernel, stride=2, padding=self.filter_padding, groups=channels)


class _Doubled(torch.autograd.Function):
    """Each pixel four times. Compiled, torch's gradient of it writes to indices; this one reads, and is as exact."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return functional.avg_pool2d(gradient, 2) * 4


class Linear(nn.Linear):
    """A linear layer whose weights `initialise` draws."""

    def reset_parameters(self) -> None:
        """Leave the weights to `initialise`, which draws them from a named stream."""


class LabelEmbedding(Linear):
    """The linear layer on the one-hot label times sqrt(C), by looking columns up: no one-hot matrix is made."""

    def forward(self, labels: Tensor) -> Tensor:
        """Map class indices [n] in 0..C-1 to [n, outputs]."""
        return functional.embedding(labels, self.weight.t()) * math.sqrt(self.in_features) + self.bias


class GroupNorm(nn.GroupNorm):
    """Group norm that a GPU's compiler can join with what is before and after it."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, c, h, w] to the same shape: mean 0 and variance 1 over each group's channels and pixels, scaled."""
        # Compiled for a GPU, torch's own writes its input out in float32, and the gradient of the convolution before it
        # in another layout: an eighth of a step. On a CPU this form takes minutes to compile.
        return self.by_channels(x) if x.is_cuda and torch.compiler.is_compiling() else super().forward(x)

    def by_channels(self, x: Tensor) -> Tensor:
        """Do so from the mean and variance of each channel, in float32."""
        x = x.float()
        by_group = (len(x), self.num_groups, -1)
        variances, means = torch.var_mean(x, dim=(2, 3), correction=0)
        between, mean = torch.var_mean(means.view(by_group), dim=2, correction=0, keepdim=True)
        variance = variances.view(by_group).mean(dim=2, keepdim=True) + between
        scale = torch.rsqrt(variance + self.eps) * self.weight.view(1, self.num_groups, -1)
        shift = self.bias.view(1, self.num_groups, -1) - mean * scale
        return x * scale.view(len(x), -1, 1, 1) + shift.view(len(x), -1, 1, 1)


def group_norm(channels: int) -> GroupNorm:
    """Return the normalisation of the published networks: min(32, channels / 4) groups, eps 1e-6."""
    return GroupNorm(group_count(channels), channels, eps=1e-6)


def _mean(x: Tensor, branch: Tensor) -> Tensor:
    """(x + branch) / sqrt(2), which keeps the variance of independent terms."""
    return torch.add(x * math.sqrt(0.5), branch, alpha=math.sqrt(0.5))


class Block(nn.Module):
    """A residual block with the noise embedding added inside, and self-attention after it where asked.

    `side` is that of its output in pixels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        side: int,
        dropout: float,
        attention: bool = False,
        resample: str | None = None,
        taps: Sequence[float] = BOX,
    ) -> None:
        super().__init__()
        self.norm0 = group_norm(inputs)
        self.conv0 = Convolution(inputs, outputs, 3, resample=resample, taps=taps)
        self.affine = Linear(embedding, outputs)
        self.norm1 = group_norm(outputs)
        self.dropout = Dropout(dropout, (outputs, side, side))
        self.conv1 = Convolution(outputs, outputs, 3)
        self.skip = None
        if inputs != outputs or resample:
            self.skip = Convolution(inputs, outputs, 1, resample=resample, taps=taps)
        self.attention = attention
        if attention:
            self.norm2 = group_norm(outputs)
            self.qkv = Convolution(outputs, 3 * outputs, 1)
            self.proj = Convolution(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map x [n, inputs, h, w] and the embedding [n, e] to [n, outputs, h', w']."""
        h = self.conv0(functional.silu(self.norm0(x)))
        h = h + self.affine(embedding)[:, :, None, None]
        h = self.conv1(self.dropout(functional.silu(self.norm1(h))))
        x = _mean(x if self.skip is None else self.skip(x), h)
        return _mean(x, self._attend(x)) if self.attention else x

    def _attend(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        # channel 3c + j of qkv is element c of query, key and value for j = 0, 1, 2
        q, k, v = self.qkv(self.norm2(x)).reshape(n, c, 3, h * w).permute(2, 0, 3, 1)[:, :, None]
        attended = functional.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(attended[:, 0].transpose(1, 2).view(n, c, h, w))
        return projected


class PositionalEmbedding(nn.Module):
    """[sin(c w), cos(c w)] with w falling geometrically from 1 to 1e-4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.count = channels // 2

    def forward(self, c_noise: Tensor) -> Tensor:
        """Map c_noise [n] to [n, channels]."""
        i = torch.arange(self.count, dtype=torch.float32, device=c_noise.device)
        angle = torch.outer(c_noise, 10_000 ** (-i / (self.count - 1)))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """[sin(2 pi f c), cos(2 pi f c)] with fixed normal frequencies f of scale 16."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        """Map c_noise [n] to [n, channels]."""
        angle = torch.outer(c_noise, 2 * torch.pi * self.freqs)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class UNet(Network):
    """The U-Net of some settings: DDPM++, NCSN++, or any mixture.

    A skip connection that is removed is filled with zeros, so that no shape and no parameter count changes. `labels` is
    the number of classes, 0 for none. ValueError if the settings name another number of skip connections than it has.
    """

    def __init__(self, M: UNetModel, *, resolution: int, channels: int, labels: int = 0, seed: int = 0) -> None:
        super().__init__()
        M = M.resolved(resolution)
        self.skips = M.skip_mask
        noise_channels, embedded = M.noise_channels, M.embedded_channels
        embedding = FourierEmbedding if M.embedding == "fourier" else PositionalEmbedding
        self.map_noise = embedding(noise_channels)
        self.map_label = LabelEmbedding(labels, noise_channels) if labels else None
        self.map_layer0 = Linear(noise_channels, embedded)
        self.map_layer1 = Linear(embedded, embedded)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        plan = layers(M, resolution=resolution, channels=channels)
        for layer in plan:
            part, _, name = layer.name.partition(".")
            (self.enc if part == "enc" else self.dec)[name] = _build(layer, embedded, M.dropout, M.taps)
        kept = sum(layer.takes_skip for layer in plan)
        if len(self.skips) != kept:
            raise ValueError(f"this network has {kept} skip connections, not {len(self.skips)}")
        initialise(self, seed)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map x [n, c, h, w], c_noise [n] and class indices [n] to [n, c, h, w]."""
        embedding = self._embed(c_noise, labels)
        skips: list[Tensor] = []
        auxiliary = x
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                x = auxiliary = _mean(x, layer(auxiliary))
                if self.skips[len(skips) - 1]:
                    skips[-1] = x
                continue
            # not before the first layer: an image of one channel has both layouts, and what follows takes the other one
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x).contiguous(memory_format=self.layout)
            skips.append(x if self.skips[len(skips)] else torch.zeros_like(x))
        for name, layer in self.dec.items():
            if name.endswith("aux_norm"):
                x = functional.silu(layer(x))
            elif name.endswith("aux_conv"):
                x = layer(x)
            else:
                x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
        return x

    def _embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        embedding = self.map_noise(c_noise)
        if self.map_label is not None:
            if labels is None:
                raise ValueError(f"this network is conditioned on {self.map_label.in_features} labels; none given")
            embedding = embedding + self.map_label(labels)
        embedding = functional.silu(self.map_layer0(embedding))
        return functional.silu(self.map_layer1(embedding))


def _build(layer: Layer, embedding: int, dropout: float, taps: Sequence[float]) -> nn.Module:
    """Return the module of a layer; `embedding` is the width of the noise embedding."""
    match layer.kind:
        case "norm":
            return group_norm(layer.inputs)
        case "convolution":
            return Convolution(layer.inputs, layer.outputs, 3)
        case "auxiliary":
            return Convolution(layer.inputs, layer.outputs, 3, resample="down", taps=taps, filter_last=True)
        case "block":
            return Block(
                layer.inputs,
                layer.outputs,
                embedding,
                side=layer.side,
                dropout=dropout,
                attention=layer.attention,
                resample=layer.resample,
                taps=taps,
            )


@torch.no_grad()
def initialise(network: nn.Module, seed: int) -> None:
    """Draw initial weights: Xavier uniform, biases 0, small where a branch should start near the identity."""
    scales = {"conv1": 1e-5, "proj": 1e-5, "aux_conv": 1e-5, "qkv": math.sqrt(0.2)}
    generator = stream("weights", seed, 0)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            layer = name.rpartition(".")[2]
            scale = next((scales[key] for key in scales if layer.endswith(key)), 1.0)
            nn.init.xavier_uniform_(module.weight, gain=scale, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, FourierEmbedding):
            module.freqs.normal_(generator=generator).mul_(16)

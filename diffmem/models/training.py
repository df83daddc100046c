"""Training: one generator that yields after every optimizer and EMA step, and the state that it moves.

All weights of a network live in one flat tensor, so that the optimizer step, the EMA update and the repair of
gradients are one fused operation each, whatever the number of layers.
"""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffmem.cells import Cell, TrainingProcedure
from diffmem.models.denoiser import Denoiser, draw_noise, loss
from diffmem.models.launching import Launched
from diffmem.models.optimizer import Optimizer
from diffmem.models.processes import ALONE, Group, ran_out_of_memory
from diffmem.networks import TrainedModel
from diffmem.randomness import stream

EMA_BASE = 0.5 ** (512 / 500_000)
"""The decay per step of batch 512 with a half-life of 500,000 images; b of the EMA warm-up."""


def learning_rate(T: TrainingProcedure, *, size: int, step: int) -> float:
    """lr * min(images seen / (warmup_epochs * N), 1), images seen before the step (Gu et al. 2023, App. B)."""
    return T.lr * _warmed_up(T, size=size, step=step)


def ema_decay(T: TrainingProcedure, *, size: int, step: int) -> float:
    """ema * b^(1/r - 1) with r = min(epochs seen / warmup_epochs, 1); 0 at the first step of a warm-up."""
    r = _warmed_up(T, size=size, step=step)
    return T.ema * EMA_BASE ** (1 / r - 1) if r > 0 else 0.0


def _warmed_up(T: TrainingProcedure, *, size: int, step: int) -> float:
    if T.warmup_epochs == 0:
        return 1.0
    return min(step * T.batch_size / (T.warmup_epochs * size), 1.0)


def batches(T: TrainingProcedure, *, size: int, first_step: int) -> Iterator[Tensor]:
    """Yield the indices [batch_size] of the training images of each step from `first_step` on, without end.

    The positions of a batch run on across the end of the set; each pass over the set is one order, the same
    for ever (`shuffle = "once"`) or its own (`"epoch"`).
    """
    orders: dict[int, Tensor] = {}
    for step in itertools.count(first_step):
        position = torch.arange(step * T.batch_size, (step + 1) * T.batch_size)
        passes, offset = position // size, position % size
        if T.shuffle == "once":
            passes = torch.zeros_like(passes)
        wanted = torch.unique(passes).tolist()
        orders = {
            p: orders[p] if p in orders else torch.randperm(size, generator=stream("order", T.seed, p)) for p in wanted
        }
        stacked = torch.stack([orders[p] for p in wanted])
        yield stacked[passes - wanted[0], offset]


def flatten(network: nn.Module) -> Tensor:
    """Move all parameters of a network, and their gradients where they need some, into one flat tensor.

    Returns it as a leaf with the gradients, likewise flat, as its `grad`.
    """
    parameters = list(network.parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters])
    flat.requires_grad_(parameters[0].requires_grad)
    flat.grad = torch.zeros_like(flat) if flat.requires_grad else None
    start = 0
    for p in parameters:
        part = slice(start, start + p.numel())
        p.data = flat.detach()[part].view_as(p)
        p.grad = None if flat.grad is None else flat.grad[part].view_as(p)
        start += p.numel()
    return flat


class TrainingState:
    """All that a training changes: weights, their average, the optimizer's moments, and the step.

    `denoiser` holds the weights that are trained, `averaged` those that generate.
    """

    def __init__(self, denoiser: Denoiser, T: TrainingProcedure) -> None:
        self.T = T
        self.step = 0
        self.denoiser = denoiser
        self.averaged = copy.deepcopy(denoiser).eval().requires_grad_(False)
        flat = flatten(denoiser.network)
        self.weights, self.gradients = flat.detach(), cast("Tensor", flat.grad)
        self.optimizer = Optimizer(self.weights, self.gradients, T)
        self.average = flatten(self.averaged.network)
        self.loss_sum = torch.zeros((), device=self.weights.device)  # since the last checkpoint
        self.loss_count = 0
        self.seconds = 0.0  # since the last checkpoint, added up by who trains
        self.out_of_memory = False  # whether this process of several could not compute its share, which spoils the rest

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly here; the two networks by the published names."""
        return {
            "step": self.step,
            "network": self.denoiser.network.state_dict(),
            "averaged": self.averaged.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; KeyError or RuntimeError if it is of another network."""
        self.denoiser.network.load_state_dict(state["network"])
        self.averaged.network.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss_sum.copy_(state["loss_sum"])
        self.loss_count = state["loss_count"]
        self.seconds = state.get("seconds", 0.0)
        self.step = state["step"]

    def take_seconds(self) -> float:
        """Return the seconds of training since this was last called, also those before an interruption; start anew."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def take_mean_loss(self) -> float | None:
        """Return the mean loss per image since this was last called, None without a step; start anew."""
        mean = self.loss_sum.item() / self.loss_count if self.loss_count else None
        self.loss_sum.zero_()
        self.loss_count = 0
        return mean


def train(
    state: TrainingState, images: Tensor, labels: Tensor | None = None, *, group: Group = ALONE
) -> Iterator[Tensor]:
    """Train on, yielding the mean loss (a scalar on the device) after every optimizer and EMA step, without end.

    `images` are uint8 [N, c, h, w] and `labels` int64 [N] on the device of the network. Between two yields
    nothing waits for the device. Stop by no longer asking for the next step. The processes of a group take a share
    of each batch: its images, noise and dropout are the same whatever their number, and so are the summed gradients.
    If one of them runs out of memory, its `state.out_of_memory` says so: it goes on, for the others wait for it.
    """
    size = len(images)
    rows = group.share(state.T.batch_size)
    state.denoiser.train()
    mean = torch.zeros((), device=images.device)

    def gradients(indices: Tensor, sigma: Tensor, noise: Tensor, *masks: Tensor) -> Tensor:
        state.denoiser.network.use_dropout(masks)
        return _gradients(state, images, labels, indices, sigma, noise)

    compute = Launched(gradients) if group.count == 1 else gradients
    for indices in batches(state.T, size=size, first_step=state.step):
        try:
            mean = compute(*_drawn(state, images, indices, rows))
        except Exception as error:
            if group.count == 1 or not ran_out_of_memory(error):
                raise
            state.out_of_memory = True
        group.sum_(state.gradients)
        group.sum_(mean)
        _update(state, size)
        state.loss_sum += mean
        state.loss_count += 1
        yield mean


def _drawn(state: TrainingState, images: Tensor, indices: Tensor, rows: slice) -> tuple[Tensor, ...]:
    """Draw what is random in a step; return of the images `rows` of a batch: indices [r], noise levels [r], noise
    [r, c, h, w] and the dropout masks."""
    T = state.T
    generator = stream("training", T.seed, state.step, images.device)
    sigma, noise = draw_noise(state.denoiser, torch.Size((T.batch_size, *images.shape[1:])), generator)
    masks = state.denoiser.network.draw_dropout(generator, total=T.batch_size, rows=rows)
    return indices.to(images.device, non_blocking=True)[rows], sigma[rows], noise[rows], *masks


def _gradients(
    state: TrainingState, images: Tensor, labels: Tensor | None, indices: Tensor, sigma: Tensor, noise: Tensor
) -> Tensor:
    """Compute the gradients of some images of a batch; return what they add to its mean loss."""
    T = state.T
    clean = images[indices].float() / 127.5 - 1
    wanted = None if labels is None else labels[indices]
    with autocast(T, images.device):
        errors = loss(state.denoiser, clean, sigma=sigma, noise=noise, labels=wanted)
        mean = errors.sum() / T.batch_size
    state.gradients.zero_()
    mean.backward()  # type: ignore[no-untyped-call]
    return mean.detach()


def autocast(T: TrainingProcedure, device: torch.device) -> torch.autocast:
    """Return the context of a training step: bfloat16 where T.precision says so, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=T.precision == "bf16")


@contextmanager
def cpu_threads(cell: Cell) -> Iterator[None]:
    """Train on one CPU thread where the layers of a cell's network are small."""
    before, M = torch.get_num_threads(), cell.M
    small = isinstance(M, TrainedModel) and M.is_small(resolution=cell.P.resolution or 0, batch=cell.T.batch_size)
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_precision(T: TrainingProcedure) -> None:
    """Let CUDA round the factors of float32 products to TF32 just where T.precision says so, the same way every time.

    The paper trains in float32; by default, CUDA's convolutions would not.
    """
    mode = "tf32" if T.precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


@torch.no_grad()
def _update(state: TrainingState, size: int) -> None:
    """One optimizer step and one EMA step; NaN gradients count as 0, infinite ones as +-1e5."""
    state.gradients.nan_to_num_(nan=0.0, posinf=1e5, neginf=-1e5)
    state.optimizer.step(learning_rate(state.T, size=size, step=state.step))
    state.average.lerp_(state.weights, 1 - ema_decay(state.T, size=size, step=state.step))
    state.step += 1

"""Many small kernels of a GPU launched at once, as a CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffmem.models.denoiser import Denoiser, level

MOST_BYTES = 2 << 30
"""Memory of a work whose kernels are launched at once: a graph keeps it for itself. Where kernels take more than this,
the GPU is busy for longer than a launch takes, and little is gained."""

WARM_UP = 3
"""Times that a work is done kernel by kernel, in which libraries choose their algorithms and take their memory."""


class Launched:
    """A function of tensors whose kernels a GPU is given at once where that pays; the numbers stay the same.

    The work must not wait for the device. Its inputs are tensors of one shape each; whatever else it reads or writes
    keeps its address. It is recorded at the fourth call on a GPU if it takes little memory.
    """

    def __init__(self, work: Callable[..., Tensor]) -> None:
        self.work = work
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return what the work gives, on the device of the inputs; of a graph, the tensor of the call before."""
        if self.graph is not None:
            for own, given in zip(self.inputs, inputs, strict=True):
                own.copy_(given)
            self.graph.replay()
            return self.output
        if not inputs[0].is_cuda or self.calls > WARM_UP:
            return self.work(*inputs)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._measured(*inputs)
        return self._record(*inputs) if self.bytes <= MOST_BYTES else self.work(*inputs)

    def _measured(self, *inputs: Tensor) -> Tensor:
        torch.cuda.reset_peak_memory_stats(inputs[0].device)
        before = torch.cuda.memory_allocated(inputs[0].device)
        output = self.work(*inputs)
        self.bytes = torch.cuda.max_memory_allocated(inputs[0].device) - before
        return output

    def _record(self, *inputs: Tensor) -> Tensor:
        self.inputs = [each.clone() for each in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.output = self.work(*self.inputs)
        graph.replay()
        self.graph = graph
        return self.output


class LaunchedDenoiser:
    """A denoiser that generates, its kernels launched at once where that pays, for each shape of batch."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max
        self.by_shape: dict[torch.Size, Launched] = {}

    def __call__(self, noisy: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Estimate the clean images as the denoiser does; the tensor of the call before may be written again."""
        launched = self.by_shape.setdefault(noisy.shape, Launched(self.denoiser))
        inputs = (noisy, level(sigma, noisy.device))
        return launched(*inputs) if labels is None else launched(*inputs, labels)

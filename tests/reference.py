"""What several tests share: the golden cases with their weights, and small helpers to look at tensors with."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffmem.cells.settings import ModelConfiguration
from diffmem.models.denoiser import Denoiser, build_denoiser

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())


def golden_arrays(name: str) -> dict[str, torch.Tensor]:
    """Return the arrays of a golden case as tensors."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def golden_weights(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Draw the weights of a golden case as golden/README.md says; the constant filters are left out."""
    rng = np.random.default_rng(case["weights_seed"])
    weights = {}
    for name in sorted(n for n in case["state_dict"] if "resample_filter" not in n):
        shape = case["state_dict"][name]
        a = rng.standard_normal(shape)
        if len(shape) >= 2:
            a = a / np.sqrt(np.prod(shape[1:]))
        elif "norm" in name and name.endswith("weight"):
            a = 1 + 0.1 * a
        elif name.endswith("freqs"):
            a = 16 * a
        else:
            a = 0.1 * a
        weights[name] = torch.from_numpy(a.astype(np.float32))
    return weights


def golden_model(case: dict[str, Any]) -> ModelConfiguration:
    """Return the configuration of a golden case in diffmem's own keys."""
    return ModelConfiguration(
        network=case["arch"],
        precondition=case["precond"],
        width=case["width"],
        channel_mult=tuple(case["channel_mult"]),
        blocks=case["blocks"],
        attention=tuple(case["attention"]),
        embedding=case["embedding"],
        skips="".join(map(str, case["skips"])),
    )


def golden_denoiser(name: str) -> Denoiser:
    """Build the denoiser of a golden case with the case's weights."""
    case = CASES[name]
    denoiser = build_denoiser(
        golden_model(case), resolution=case["resolution"], channels=case["channels"], labels=case["labels"]
    )
    missing, unexpected = denoiser.network.load_state_dict(golden_weights(case), strict=False)
    assert unexpected == []
    assert all("resample_filter" in key for key in missing)
    return denoiser


def tiny_denoiser(*, seed: int = 0, labels: int = 0, **settings: Any) -> Denoiser:
    """Build a network small enough to train for a few steps in a test: 8x8 grey pixels, two levels."""
    M = ModelConfiguration(**{"width": 4, "channel_mult": (1, 2), "blocks": 1, **settings})
    return build_denoiser(M, resolution=8, channels=1, labels=labels, seed=seed)


def random_images(*shape: int, seed: int = 0, levels: int = 256) -> torch.Tensor:
    """Return uint8 images whose pixels are uniform in 0..levels-1."""
    return torch.from_numpy(np.random.default_rng(seed).integers(levels, size=shape, dtype=np.uint8))


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return ||a - b|| / ||b||."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest tensor that any operation returns while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread: for networks this small, more of them only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

"""Named random streams: every draw is a pure function of (name, seed, index), never of what was drawn before."""

import zlib

import torch


def stream(name: str, seed: int, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator on `device` for draw number `index` of the stream `name` under `seed`.

    Torch's CPU generator keeps 32 bits of a seed, so the index is added to a hash instead of hashed with it:
    the draws of one stream stay distinct for four billion indices.
    """
    base = zlib.crc32(f"{name}/{seed}".encode())
    return torch.Generator(device).manual_seed((base + index) % 2**32)

"""A study to start from: commented, of a dataset, of minutes on two CPU cores."""

import json
from pathlib import Path

from diffmem.data import describe
from diffmem.errors import DataError
from diffmem.text import counted

STARTER = Path(__file__).with_name("starter.toml")
SIZES = (8, 16, 32)
"""Sizes of emoji training sets of which the small network, without labels, memorizes the first and not the last."""
LEAST = 4
"""Images of the smallest training set that a study is started with: a ratio needs two that differ."""


def starter(name: str, dataset: str) -> str:
    """Return the text of a study of a dataset, after reading its images; DataError if there are too few.

    The sizes leave at least as many held-out images as the largest training set has, if there are enough images.
    """
    side = 8
    images = sum(describe(dataset, side).class_sizes)
    largest = min(SIZES[-1], images // 2 if images >= 2 * LEAST else images)
    sizes = [size for size in (largest // 4, largest // 2, largest) if size >= LEAST]
    if not sizes:
        raise DataError(
            f"{dataset}: {counted(images, 'image')}, and a training set of a study to start from has at least {LEAST}"
        )
    return STARTER.read_text(encoding="utf-8").format(
        file=f"{name}.toml",
        title=_quoted(f"Memorization of {Path(dataset).name}"),
        dataset=_quoted(dataset),
        resolution=side,
        sizes=sizes,
    )


def _quoted(text: str) -> str:
    """Return a TOML string; JSON writes one alike, but for the control character DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

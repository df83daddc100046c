"""Lets the tests import the helpers in this folder, which pytest puts on the path, and says where they compute."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Leave a GPU to the tests that check it (`-m gpu`): the others compare to the bit, and start more processes."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_report_header(config: pytest.Config) -> str:
    """Say where the tests compute: without `-m gpu`, those that check a GPU run on the CPU too."""
    return "device: a GPU if there is one" if "gpu" in config.option.markexpr else "device: CPU (use -m gpu for a GPU)"

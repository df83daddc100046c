"""A diffusers pipeline for the tests of scores."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ddpm`, an unconditional pipeline of 8x8 pixels."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    network = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4, **blocks)
    folder = tmp_path_factory.mktemp("pipelines")
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder / "ddpm")
    return folder

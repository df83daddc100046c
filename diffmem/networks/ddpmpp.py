"""DDPM++: the U-Net with a plain encoder, and a filter of two taps."""

from typing import Literal

from pydantic import Field

from diffmem.networks.layers import BOX
from diffmem.networks.unets import UNetModel


class DDPMpp(UNetModel):
    """M of DDPM++ (Song et al. 2021)."""

    own_embedding = "positional"
    taps = BOX
    residual_encoder = False

    network: Literal["ddpm++"] = Field("ddpm++", description="the U-Net DDPM++")

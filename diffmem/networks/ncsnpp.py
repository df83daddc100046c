"""NCSN++: the U-Net with the image joins each level of its encoder, its filter has four taps."""

from typing import Literal

from pydantic import Field

from diffmem.networks.layers import SMOOTH
from diffmem.networks.unets import UNetModel


class NCSNpp(UNetModel):
    """M of NCSN++ (Song et al. 2021)."""

    own_embedding = "fourier"
    taps = SMOOTH
    residual_encoder = True

    network: Literal["ncsn++"] = Field("ncsn++", description="the U-Net NCSN++")

"""Every network by the name that M.network gives it; the first one is the default."""

from diffmem.networks.ddpmpp import DDPMpp
from diffmem.networks.member import ModelConfiguration
from diffmem.networks.ncsnpp import NCSNpp
from diffmem.networks.optimum import Optimum

MEMBERS: dict[str, type[ModelConfiguration]] = {"ddpm++": DDPMpp, "ncsn++": NCSNpp, "optimum": Optimum}

from .layers import Layer as Layer
from .layers import group_count as group_count
from .layers import layers as layers
from .unet import BOX as BOX
from .unet import SMOOTH as SMOOTH
from .unet import UNet as UNet

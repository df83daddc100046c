"""The facts of datasets that settings are checked against."""

from collections.abc import Mapping
from typing import NamedTuple


class Dataset(NamedTuple):
    """The facts of a dataset that a study is checked against."""

    class_sizes: tuple[int, ...]  # images of each class
    resolution: int | None  # pixels; None: images of many sizes, which need P.resolution
    channels: int  # 1 grey, 3 RGB
    fingerprint: str = ""  # hash of the content, where the images are a user's own files

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_sizes)


DATASETS = {
    "digits": Dataset((178, 182, 177, 183, 181, 182, 181, 179, 174, 180), resolution=8, channels=1),
    "emoji": Dataset((169, 381, 159, 131, 218, 85, 264, 224, 261), resolution=32, channels=3),
    "cifar10": Dataset((5000,) * 10, resolution=32, channels=3),
    # ImageNet's classes hold at most 1,300 training images each; how many, only the files tell
    "imagenet-dogs": Dataset((1300,) * 123, resolution=32, channels=3),
}
"""The datasets that have a name. imagenet-dogs are classes 151 to 273 of ImageNet-1k, cropped and resized."""

Facts = Mapping[str, Dataset]
"""The facts of each dataset that a cell draws from, by the name or path that the study file gives it."""

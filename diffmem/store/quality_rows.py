"""The quality of images as it comes out of a store."""

from dataclasses import dataclass

from diffmem.measures import QualityValue


@dataclass(frozen=True)
class StoredQuality(QualityValue):
    """One number about the generated images of a checkpoint."""

    epoch: int


@dataclass(frozen=True)
class StudyQuality(StoredQuality):
    """The same, at its place in a study."""

    position: int
    curve: str
    name: str
    size: int  # N, training images
    cell_id: str
    step: int
    ratio: float  # the memorization ratio of the checkpoint

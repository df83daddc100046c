"""What comes out of a store about images, generated and training ones, as frozen records."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SampleCount:
    """How far a cell's last ratio depends on the number of generated images."""

    position: int
    curve: str
    name: str
    size: int
    samples: int
    images: int  # n
    ratio: float  # of all images
    first: float  # of the first n images
    deviation: float | None  # standard deviation between disjoint groups of n; None: fewer than ten groups


@dataclass(frozen=True)
class LevelCount:
    """How many images of a checkpoint have their distance ratio in one step of the threshold."""

    position: int
    epoch: int
    level: int  # the smallest k at which they are memorized; one more than the last where there is none
    images: int


@dataclass(frozen=True)
class CopyCount:
    """How many memorized images of a cell's last checkpoint are nearest to one training image."""

    position: int
    nearest: int  # position in the training set
    copies: int
    picture: bytes | None  # PNG


@dataclass(frozen=True)
class CopyFrequency:
    """How many training images are copied equally often at a threshold."""

    position: int
    threshold: float
    copies: int
    images: int  # training images that are copied so often


@dataclass(frozen=True)
class DensityBin:
    """Training images of a cell that are about equally far from their nearest others, and copies of them."""

    position: int
    bin: int  # the densest first
    local_distance: float  # the median, of the mean l2 distance to the 5 nearest other training images
    images: int
    copied: int  # of them, those that are copied
    copies: int
    squares: int  # the sum of squared copies
    grouped: int  # images that have a group
    grouped_copied: int


@dataclass(frozen=True)
class NearImage:
    """A training image whose picture a gallery shows, and what was generated near it at the last checkpoint."""

    position: int
    nearest: int  # position in the training set
    near: int  # generated images whose nearest it is
    copies: int
    image: str | None  # what tells it in its dataset; None where nobody looked through the training set
    alike: int | None
    local_distance: float | None


@dataclass(frozen=True)
class ImagePair:
    """A generated image and its two nearest training images, as PNG."""

    position: int
    cell_id: str
    epoch: int
    sample: int
    name: str | None  # of the generated image, where another tool made it: its file
    copy_of: str | None  # the mirrored, shifted or doubled training image that it is a copy of, where that is known
    generated: bytes
    nearest: bytes
    second: bytes | None  # None in stores of before
    number: int  # position in the training set of the nearest one by the study's measure
    pictured: int  # of the pictures: they are the nearest ones in pixels
    second_number: int | None
    second_image: str | None  # its file, or its dataset and position there, if that is known
    distance: float
    yardstick: float


@dataclass(frozen=True)
class Replicated:
    """A training image that memorized images are nearest to."""

    nearest: int  # position in the training set
    copies: int

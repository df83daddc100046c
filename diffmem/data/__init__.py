"""Where images come from: read and decoded, kept, grouped by likeness, and drawn as training sets.

Names are imported where they are first used, so that the processes that decode images load no more than they need.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from diffmem.data.collection import Indices as Indices
    from diffmem.data.collection import Pixels as Pixels
    from diffmem.data.collection import Source as Source
    from diffmem.data.collection import image_files as image_files
    from diffmem.data.collection import read_images as read_images
    from diffmem.data.training_sets import IMAGENET_DOGS as IMAGENET_DOGS
    from diffmem.data.training_sets import TrainingSet as TrainingSet
    from diffmem.data.training_sets import describe as describe
    from diffmem.data.training_sets import draw as draw
    from diffmem.data.training_sets import groups_in as groups_in
    from diffmem.data.training_sets import load_source as load_source
    from diffmem.data.training_sets import notes_of as notes_of
    from diffmem.data.training_sets import training_set as training_set

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "collection": ["Indices", "Pixels", "Source", "image_files", "read_images"],
        "training_sets": [
            *("IMAGENET_DOGS", "TrainingSet", "describe", "draw"),
            *("groups_in", "load_source", "notes_of", "training_set"),
        ],
    },
)

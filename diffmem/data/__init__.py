"""Where images come from: read and decoded, kept, grouped by likeness, and drawn as training sets."""

from diffmem.data.collection import Indices as Indices
from diffmem.data.collection import Pixels as Pixels
from diffmem.data.collection import Source as Source
from diffmem.data.collection import read_images as read_images
from diffmem.data.training_sets import IMAGENET_DOGS as IMAGENET_DOGS
from diffmem.data.training_sets import TrainingSet as TrainingSet
from diffmem.data.training_sets import describe as describe
from diffmem.data.training_sets import draw as draw
from diffmem.data.training_sets import load_source as load_source
from diffmem.data.training_sets import notes_of as notes_of
from diffmem.data.training_sets import training_set as training_set

from .score import score_images as score_images
from .scored import MeasureNull as MeasureNull
from .scored import Score as Score

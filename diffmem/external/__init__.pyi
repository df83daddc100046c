from .score import MeasureNull as MeasureNull
from .score import Score as Score
from .score import score_images as score_images

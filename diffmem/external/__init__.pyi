from .matches import Match as Match
from .score import score_images as score_images
from .score import score_pipeline as score_pipeline
from .scored import MeasureNull as MeasureNull
from .scored import Score as Score

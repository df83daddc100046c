from .comparison import MOST_COPIED as MOST_COPIED
from .comparison import Comparison as Comparison
from .comparison import png as png
from .evidence import Evidence as Evidence
from .intervals import NORMAL as NORMAL
from .intervals import wilson as wilson
from .nearest import memorized_share as memorized_share
from .neighbours import two_nearest as two_nearest

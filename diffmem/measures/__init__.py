"""How a copy is told: the exact neighbour search, the paper's measure, and the interval of a ratio."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

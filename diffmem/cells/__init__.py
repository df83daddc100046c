"""What is trained: the settings of P, M, T and the scoring, the cell that they name, and what it costs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

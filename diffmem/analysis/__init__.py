"""What is read off the store: curves, the EMM, its interval, and the paper's findings."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

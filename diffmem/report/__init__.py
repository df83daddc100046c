"""How it is shown: figures as data, then drawn, and one HTML page; needs the store alone."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

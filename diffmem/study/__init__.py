"""Study files: TOML with line numbers, resolved to cells, and the reference of their keys."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

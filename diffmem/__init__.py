"""diffmem: does a diffusion model copy its training data, and up to what dataset size?

The names of `__all__` are the Python API; each is imported where it is first used, so `import diffmem` is quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The networks that M.network can name, a file each: settings, what they get wrong together, cost, build."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Who does the work: a cell end to end, a study over processes, a search, and what a run would cost."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

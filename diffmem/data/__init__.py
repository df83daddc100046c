"""Where images come from: read and decoded, kept, grouped by likeness, and drawn as training sets.

Names are imported where they are first used, so that the processes that decode images load no more than they need.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

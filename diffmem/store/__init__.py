"""Where results are kept: one DuckDB file, its schema, its queries, and what keeps it whole."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

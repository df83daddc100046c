"""Where a store is if nobody says otherwise."""

from pathlib import Path

DEFAULT_STORE = Path("store/diffmem.duckdb")
"""The store of the command line, and of a monitor; of the folder that they are started in."""

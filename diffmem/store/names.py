"""Names in sentences: the first of many, and the one that was probably meant."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MOST_NAMES = 10
"""Names that one sentence lists."""


def listed(names: Sequence[str]) -> str:
    """Return names in a row, the first MOST_NAMES of them and how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question whether the most similar known name was meant; empty where none is similar."""
    return "".join(f"; did you mean {near}?" for near in get_close_matches(name, known, n=1))

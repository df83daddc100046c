"""Names in sentences: the first of many, and the one that was probably meant."""

import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MOST_NAMES = 10
"""Names that one sentence lists."""


def listed(names: Sequence[str]) -> str:
    """Return names in a row, the first MOST_NAMES of them and how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def as_arguments(path: str, study: str, overrides: Sequence[str]) -> str:
    """Return what stands for a study on a command line: its file, its profile and what --set has changed."""
    profile = study.partition("@")[2]
    return " ".join([shlex.quote(path), *([f"--profile {profile}"] if profile else []), *as_options(overrides)])


def as_options(overrides: Sequence[str]) -> list[str]:
    """Return settings as --set takes them on a command line."""
    return [f"--set {shlex.quote(override)}" for override in overrides]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question whether the most similar known name was meant; empty where none is similar."""
    return "".join(f"; did you mean {near}?" for near in get_close_matches(name, known, n=1))

"""JSON of a store, which another program may have written: what Python cannot take is a damaged store."""

import json
from typing import Any

from diffmem.errors import StoreError

DEEPEST = 50
"""Tables and lists inside one another; diffmem writes three."""


def from_json(text: str | None, place: object) -> Any:
    """Return the value of a JSON text, {} if there is none; StoreError, of the store at `place`, if it is no JSON."""
    try:
        value = json.loads(text or "{}")
        if text and text.count("[") + text.count("{") > DEEPEST:
            _check_depth(value)
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{place}: unreadable JSON: {(text or '')[:40]!r}; `diffmem store check` lists what is wrong"
        ) from error
    return value


def _check_depth(value: Any) -> None:
    """Raise ValueError if tables and lists lie deeper in one another than DEEPEST."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError("too deep")

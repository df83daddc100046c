"""Numbers and times as people read them."""

import math
from datetime import datetime


def with_unit(count: float) -> str:
    """Return a count with three digits and a unit of thousands: 35.1 M."""
    for unit in ("", " k", " M", " G", " T", " P", " E"):
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} Z"


def duration(seconds: float) -> str:
    """Return a time in the unit that fits: 59 s, 12 min, 47.5 h, 3.2 d, 20 years."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 60:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{hours:.1f} h"
    return f"{days:.1f} d" if days < 730 else f"{days / 365.25:,.0f} years"


def moment(time: datetime | None) -> str | None:
    """Return a UTC time of the store to the second, None where there is none."""
    return None if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def readable(text: str) -> str:
    """Return a text as UTF-8 has it: the bytes of a file's name may be none, and are then written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def counted(count: int, what: str) -> str:
    """Return a number of things: 1 cell, 2 cells, 2 studies."""
    if count == 1:
        return f"{count} {what}"
    return f"{count} {what[:-1]}ies" if what.endswith("dy") else f"{count} {what}s"


def decimals(low: float, high: float, *, most: int = 3) -> int:
    """Return the decimals that a number with this 95% interval deserves: two digits of the interval's width."""
    width = high - low
    return most if width <= 0 else min(most, max(0, 1 - math.floor(math.log10(width))))


def within(value: float, low: float, high: float) -> tuple[str, str]:
    """Return a number and its 95% interval with the decimals that the interval allows: 0.88 and 0.66 to 0.97."""
    places = decimals(low, high)
    return f"{value:.{places}f}", f"{low:.{places}f} to {high:.{places}f}"

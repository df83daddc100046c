"""The measures that tell copies: one that is added here is computed, stored, estimated and shown as the others are."""

from diffmem.errors import DataError
from diffmem.measures.calibrated import CALIBRATED
from diffmem.measures.grouped import GROUPED
from diffmem.measures.measure import Measure
from diffmem.measures.nearest import NEAREST

MEASURES: dict[str, Measure] = {measure.name: measure for measure in (NEAREST, CALIBRATED, *GROUPED.values())}
"""By name, the paper's first, which every checkpoint has."""


def measure_named(name: str) -> Measure:
    """Return the measure of a name; DataError where diffmem knows none."""
    if name not in MEASURES:
        raise DataError(f"no measure {name!r}; there are {', '.join(MEASURES)}")
    return MEASURES[name]

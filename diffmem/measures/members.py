"""The measures that tell copies: one that is added here is computed, stored, estimated and shown as the others are."""

from diffmem.measures.calibrated import CALIBRATED
from diffmem.measures.measure import Measure
from diffmem.measures.nearest import NEAREST

MEASURES: dict[str, Measure] = {measure.name: measure for measure in (NEAREST, CALIBRATED)}
"""By name, the paper's first, which every checkpoint has."""

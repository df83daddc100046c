"""The measures: one that is added here is computed, stored and shown as the others are."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from diffmem.errors import DataError
from diffmem.measures.calibrated import CALIBRATED
from diffmem.measures.gaps import GAPS
from diffmem.measures.grouped import GROUPED
from diffmem.measures.measure import Measure
from diffmem.measures.membership import MEMBERSHIP
from diffmem.measures.nearest import NEAREST
from diffmem.measures.of_denoiser import DenoiserMeasure
from diffmem.measures.of_images import IMAGE_QUALITY, QUALITY, ImageMeasure

MEASURES: dict[str, Measure] = {measure.name: measure for measure in (NEAREST, CALIBRATED, *GROUPED.values())}
"""Those that tell copies by name, the paper's first, which every checkpoint has."""

DENOISER_MEASURES: dict[str, DenoiserMeasure] = {measure.name: measure for measure in (GAPS, MEMBERSHIP)}
"""Those of a denoiser by name, which tell no copies."""

IMAGE_MEASURES: dict[str, ImageMeasure] = {IMAGE_QUALITY.name: IMAGE_QUALITY}
"""Those of all images of a checkpoint together, by name, which tell no copies."""


Spaces = Mapping[str, Measure]
"""The measures of feature spaces that somebody has declared, by name."""
NO_SPACES: Spaces = MappingProxyType({})


def all_names(spaces: Spaces = NO_SPACES) -> list[str]:
    """Return what score.measures can ask for."""
    return [*MEASURES, *spaces, *DENOISER_MEASURES, *IMAGE_MEASURES]


def measure_named(name: str, spaces: Spaces = NO_SPACES) -> Measure:
    """Return the measure of a name; DataError where there is none, or it tells no copies."""
    if name in all_names() and name not in MEASURES:
        raise DataError(no_copies(name))
    known = {**MEASURES, **spaces}
    if name not in known:
        raise DataError(f"no measure {name!r}; there are {', '.join(known)}")
    return known[name]


def check_measure(name: str, spaces: Spaces = NO_SPACES) -> None:
    """Raise DataError where there is no measure of a name, of any kind."""
    known = all_names(spaces)
    if name not in known:
        raise DataError(f"no measure {name!r}; there are {', '.join(known)}")


def no_copies(name: str) -> str:
    """Say why a measure that tells no copies is of no use where copies are asked for."""
    if name in IMAGE_MEASURES:
        return (
            f"{name} measures all generated images together and calls none of them a copy, so there is no ratio by it; "
            "`diffmem quality STUDY` shows what it found"
        )
    return (
        f"{name} measures a denoiser at each noise level and calls no image a copy, so there is no ratio by it; "
        "`diffmem gaps STUDY` shows what it found"
    )


def of_copies(names: Iterable[str], spaces: Spaces = NO_SPACES) -> list[str]:
    """Return which of some measures tell copies, by name."""
    return [name for name in names if name in MEASURES or name in spaces]


def of_denoisers(names: Iterable[str]) -> list[str]:
    """Return which of some measures are of a denoiser, by name."""
    return [name for name in names if name in DENOISER_MEASURES]


def asks_for_quality(names: Iterable[str]) -> bool:
    """Return whether one of some measures is the quality of images."""
    return QUALITY in names

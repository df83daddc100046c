"""What is asked of a score, and what the scored images are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmem.errors import DataError
from diffmem.measures import DeclaredSpace, measure_named
from diffmem.store import FEW_HELD_OUT, Kind, Store
from diffmem.text import counted, readable

NO_HELD_OUT = "quality is measured beside held-out images too, and none are given; --held-out IMAGES names them"


@dataclass(frozen=True)
class Asked:
    """How images are to be scored."""

    measures: Sequence[str]
    held_out: Path | str | None
    spaces: Mapping[str, Mapping[str, Any]]
    quality: bool
    resolution: int | None

    def spaces_and_measures(self) -> tuple[dict[str, DeclaredSpace], list[str]]:
        """Return the feature spaces by name, and all measures; DataError where one is not known."""
        if self.quality and self.held_out is None:
            raise DataError(NO_HELD_OUT)
        declared = {each: DeclaredSpace.of(each, table) for each, table in self.spaces.items()}
        measures = list(dict.fromkeys([*self.measures, *declared]))
        for measure in measures:
            measure_named(measure, {each: space.measure for each, space in declared.items()})
        return declared, measures


@dataclass(frozen=True)
class Known:
    """What generated images are called: all of them, their study, and each."""

    label: str
    study: str
    names: Sequence[str]

    def refuse_trained(self, store: Store) -> None:
        """Refuse to take over the name of a study of trained networks, with DataError."""
        name = readable(self.study)
        if store.exists() and any(each.kind is Kind.TRAINED for each in store.studies() if each.study == name):
            raise DataError(
                f"{self.label}: the store has a study {name!r} of trained networks; give these images another --name"
            )

    def beside(self, store: Store) -> tuple[str, ...]:
        """Return in a sentence which other images have the same study, if there are any."""
        name, label = readable(self.study), readable(self.label)
        studies = store.studies() if store.exists() else []
        others = [each.path for each in studies if each.study == name and each.path != label]
        shown = f"{label}: the study {name!r} also has the images of {others[0]}" if others else ""
        return (f"{shown}; --name gives these a study of their own",) if shown else ()


def replaced(images: str, before: int, now: int) -> str:
    """Return in a sentence that held-out images have taken the place of others."""
    return f"{images}: {counted(now, 'held-out image')}, in the place of {before} others that were given before"


def held_out_caveats(images: str, samples: int, trained_on: int, against: str) -> tuple[str, ...]:
    """Return in what so many held-out images are no null."""
    also = f"{images}: {trained_on} of {samples} held-out images are also in {against}"
    few = f"{images}: {counted(samples, 'held-out image')}, too few to tell a false-positive rate of 1%"
    return (*[also] * bool(trained_on), *[few] * (samples < FEW_HELD_OUT))

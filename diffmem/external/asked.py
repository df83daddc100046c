"""What is asked of a score, and what the scored images are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmem.errors import DataError
from diffmem.measures import DeclaredSpace, measure_named
from diffmem.store import Kind, Store
from diffmem.text import readable

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
                f"{self.label}: the store has a study {name!r} of trained networks; give the folder another name"
            )

"""The quality of the images of a study, one row a cell and kind of real images."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffmem.errors import NotInStore
from diffmem.measures import small_sample
from diffmem.store import Store, StoredStudy, StudyQuality, as_arguments


@dataclass(frozen=True)
class QualityRow:
    """The quality of the images of a cell's last checkpoint that has one, in one space, against one kind of images."""

    position: int
    cell_id: str
    name: str
    epoch: int
    space: str
    against: str  # training, held_out
    by_quantity: dict[str, StudyQuality]


def cell_quality(store: Store, study: StoredStudy) -> list[QualityRow]:
    """Return the quality of each cell of a study; NotInStore if none has been measured."""
    values = store.study_quality(study.study)
    if not values:
        meant = as_arguments(study.path, study.study, study.overrides)
        raise NotInStore(
            f"{study.study}: no quality is measured; `diffmem measure {meant} --measure quality` measures it on the "
            "images of trained models that are kept (score.keep)"
        )
    last: dict[int, int] = {}
    for each in values:
        last[each.position] = max(each.epoch, last.get(each.position, 0))
    rows: dict[tuple[int, str, str], list[StudyQuality]] = {}
    for each in values:
        if each.epoch == last[each.position]:
            rows.setdefault((each.position, each.space, each.against), []).append(each)
    return [_row(members) for members in rows.values()]


def _row(members: Sequence[StudyQuality]) -> QualityRow:
    first = members[0]
    about = first.position, first.cell_id, first.name, first.epoch, first.space, first.against
    return QualityRow(*about, {each.quantity: each for each in members})


def cautions(rows: Sequence[QualityRow]) -> list[str]:
    """Return what is to be said of distances of small samples, each sentence once."""
    found = (small_sample(each) for row in rows for each in row.by_quantity.values())
    return [*dict.fromkeys(filter(None, found))]

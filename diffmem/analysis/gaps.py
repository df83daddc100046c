"""What measures of a denoiser found of a study, one row a cell."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffmem.errors import NotInStore
from diffmem.store import Store, StoredStudy, StudyLevel, as_arguments


@dataclass(frozen=True)
class CellGaps:
    """The largest gap of a cell at its last checkpoint that has one, and what membership inference achieves there."""

    position: int
    cell_id: str
    name: str
    epoch: int
    gap: StudyLevel | None  # the loss gap as a share of the held-out loss, at the noise level where it is largest
    area: StudyLevel | None  # under the ROC curve of the denoising loss, told on images that it was not chosen on
    true_positives: StudyLevel | None  # at about 1% false positives


def cell_gaps(store: Store, study: StoredStudy) -> list[CellGaps]:
    """Return the gaps of each cell of a study; NotInStore if none has been measured."""
    cells: dict[int, list[StudyLevel]] = {}
    for each in store.study_levels(study.study):
        cells.setdefault(each.position, []).append(each)
    if not cells:
        meant = as_arguments(study.path, study.study, study.overrides)
        raise NotInStore(
            f"{study.study}: no gaps are measured; `diffmem measure {meant} --measure gaps` measures them "
            "on trained models that are kept (score.keep)"
        )
    return [_of_cell(values) for values in cells.values()]


def _of_cell(values: Sequence[StudyLevel]) -> CellGaps:
    epoch = max(each.epoch for each in values)
    first, last = values[0], [each for each in values if each.epoch == epoch]
    found = (_largest(last, quantity) for quantity in ("relative_loss_gap", "told_auc_loss", "told_tpr_loss"))
    return CellGaps(first.position, first.cell_id, first.name, epoch, *found)


def _largest(values: Sequence[StudyLevel], quantity: str) -> StudyLevel | None:
    found = [each for each in values if each.quantity == quantity]
    return max(found, key=lambda each: each.value, default=None)

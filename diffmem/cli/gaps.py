"""The command that shows the measures of a denoiser: `gaps`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import json_option, profile_option, store_option, stored, study_argument
from diffmem.cli.tables import print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from diffmem.analysis import CellGaps
    from diffmem.store import StudyLevel


@click.command()
@study_argument
@profile_option
@store_option
@json_option
def gaps(study: str, profile: str | None, store_path: Path, as_json: bool) -> None:
    """Show the loss gap between training and held-out images.

    It shows how much better each model denoises its training images than held-out ones. No images are generated for
    this. A run measures it if score.measures names gaps or membership. `diffmem measure` measures it with trained
    models that are kept.

    STUDY is a study file, or the name of a study in the store, or the beginning of that name.

    Each row is a cell at its last checkpoint.

    \b
    Columns:
      gap    loss gap as a share of the held-out loss, at the noise level
             where it is largest
      95%    interval of the gap, at that noise level alone
      sigma  that noise level
      AUC    how well the loss of an image reveals that the model was trained
             on it: the area under the ROC curve
      TPR    the same: the true positive rate at 1% false positives

    With --json, it prints every value at every noise level and checkpoint.

    Example: diffmem gaps quickstart
    """
    from diffmem.analysis import cell_gaps

    store, found = stored(store_path, study, profile)
    with store.snapshot():
        rows, values = cell_gaps(store, found), store.study_levels(found.study) if as_json else []
    if as_json:
        print_json({"study": found.study, "values": values})
        return
    print_table(f"{found.study}: loss gaps", [_row(each) for each in rows], columns=["cell_id", "gap"], cut="cell_id")
    print_wrapped("the page and `diffmem export gaps` have all noise levels", indent=4)


def _row(found: "CellGaps") -> dict[str, Any]:
    return {
        "cell_id": found.cell_id,
        "cell": found.name,
        "epoch": found.epoch,
        "gap": found.gap and found.gap.value,
        "95%": _interval(found.gap),
        "sigma": found.gap and f"{found.gap.sigma:.3g}",
        "AUC": found.area and found.area.value,
        "95% of AUC": _interval(found.area),
        "TPR": found.true_positives and found.true_positives.value,
    }


def _interval(found: "StudyLevel | None") -> str | None:
    return None if found is None else f"{found.low:z.3f} to {found.high:z.3f}"

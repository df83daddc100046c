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
    """Show how much better each model denoises its training images than held-out ones.

    STUDY is a study file, or the name that the store knows it by or the beginning of it. The measures gaps and
    membership find this without generating an image: a run computes them if score.measures names them, `diffmem
    measure` from trained models that are kept. A row is a cell at its last checkpoint. `gap` is the loss gap as a share
    of the held-out loss, at the sigma where it is largest, with the interval of that one alone; AUC and TPR say how
    well the loss of an image gives away that the model was trained on it, TPR at 1% false positives.

    With --json, every value at every noise level and checkpoint is printed.

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
    return None if found is None else f"{found.low:.3f} to {found.high:.3f}"

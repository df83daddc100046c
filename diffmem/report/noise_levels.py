"""The figures of measures of a denoiser: gaps against sigma, and where and when a model turns to its training set."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from diffmem.analysis import in_words
from diffmem.report.figure import Axis, Figure, Palette, Panel, Series, log_axis
from diffmem.store import StudyLevel

SIGMA = "noise level sigma"
LOSS_GAP = (
    "How much better the last checkpoint denoises training images than held-out ones (dotted) at each noise level."
)
LOSS_GAP_METHOD = (
    "The loss is the mean of ||D(x + sigma e) - x||^2 per pixel; the gap is that of held-out images minus that of "
    "training images, here as a share of the held-out loss: 1 where training images are known by heart, 0 where they "
    "are like any others. The last checkpoint that has it, one line a model. Bands: 95% intervals over images."
)
TO_OPTIMUM = "How far the last checkpoint is from the closed-form optimum, which can only replicate training images."
TO_OPTIMUM_METHOD = (
    "The mean of ||D(x + sigma e) - D*(x + sigma e)||^2 per pixel between the model D and the closed-form optimum D*, "
    "which can only replicate training images. Where the line of training images is low, the model replicates. The "
    "last checkpoint that has it, one line a model. Bands: 95% intervals over images. A gap of 0 has no place on a "
    "logarithmic axis."
)
TURNING = "Where and when a model turns to its training set: the loss gap at each checkpoint and noise level."
TURNING_METHOD = "The loss gap as a share of the held-out loss at each checkpoint (columns) and noise level (rows)."
MOST_MAPS = 12
"""Heat maps that are drawn of a study, those of its first cells."""

Lines = dict[int, list[StudyLevel]]


def shown_levels(values: Sequence[StudyLevel]) -> list[StudyLevel]:
    """Return those values that a figure shows."""
    return [each for each in values if each.quantity in ("loss", "relative_loss_gap", "to_optimum")]


def level_figures(values: Sequence[StudyLevel], clock: str, colours: Palette) -> list[Figure]:
    """Return the figures of what measures of a denoiser have found of a study; none where they found nothing."""
    last = _last(values)
    losses, gaps = (_wanted(last, quantity) for quantity in ("loss", "relative_loss_gap"))
    distances, maps = _wanted(last, "to_optimum"), _heat_maps(values, clock)
    found = []
    if gaps:
        panels = [
            *_against_sigma(losses, "loss per pixel", colours),
            *_against_sigma(gaps, "loss gap / held-out loss", colours),
        ]
        found.append(Figure("Loss gap against sigma", LOSS_GAP, panels, LOSS_GAP_METHOD))
    if distances:
        panels = _against_sigma(distances, "gap to the optimum per pixel", colours)
        found.append(Figure("Gap to the optimum against sigma", TO_OPTIMUM, panels, TO_OPTIMUM_METHOD))
    if maps:
        more = f" The first {len(maps)} cells that have several." if len(maps) == MOST_MAPS else ""
        found.append(Figure(f"Loss gap against sigma and {clock}s", TURNING, maps, TURNING_METHOD + more))
    return found


def _wanted(values: Iterable[StudyLevel], quantity: str) -> list[StudyLevel]:
    return [each for each in values if each.quantity == quantity]


def _last(values: Sequence[StudyLevel]) -> list[StudyLevel]:
    """Return the values of the last checkpoint of each cell by each measure."""
    epochs: dict[tuple[int, str], int] = {}
    for each in values:
        key = each.position, each.measure
        epochs[key] = max(each.epoch, epochs.get(key, 0))
    return [each for each in values if each.epoch == epochs[each.position, each.measure]]


def _against_sigma(values: Sequence[StudyLevel], title: str, colours: Palette) -> list[Panel]:
    """Show a quantity against sigma, a panel a curve and a line a cell and set of images."""
    lines: dict[str, dict[tuple[int, str], list[StudyLevel]]] = defaultdict(lambda: defaultdict(list))
    for each in values:
        lines[each.curve][each.position, each.images].append(each)
    logarithmic = all(each.images != "both" for each in values)
    y = log_axis(title, (each.value for each in values)) if logarithmic else Axis(title)
    x = log_axis(SIGMA, (each.sigma for each in values))
    what = title.partition(" per ")[0]
    return [
        Panel(
            _series(members, colours),
            x,
            y,
            label=f"{in_words(curve)}: {what}" if curve else what,
        )
        for curve, members in lines.items()
    ]


def _series(lines: dict[tuple[int, str], list[StudyLevel]], colours: Palette) -> list[Series]:
    """Return a line for each cell and set, those of one size and set under one name."""
    found, shown = [], set()
    for (_, images), line in lines.items():
        first = line[0]
        of = "" if images == "both" else f", {images.replace('_', '-')} images"
        name = f"N = {first.size}{of}"
        found.append(
            Series(
                name,
                [each.sigma for each in line],
                [each.value for each in line],
                "dotted" if images == "held_out" else "line",
                colours.sizes[first.size],
                hover="%{meta}, sigma = %{x:.3g}: %{y:.4g}<extra></extra>",
                intervals=[(each.low, each.high) for each in line],
                full_name=f"{first.name}{of}",
                in_legend=name not in shown,
            )
        )
        shown.add(name)
    return found


def _heat_maps(values: Sequence[StudyLevel], clock: str) -> list[Panel]:
    """Show the relative loss gap of each cell with several checkpoints, a column each, a row a noise level."""
    cells: dict[int, list[StudyLevel]] = defaultdict(list)
    for each in _wanted(values, "relative_loss_gap"):
        cells[each.position].append(each)
    several = [members for members in cells.values() if len({each.epoch for each in members}) > 1]
    return [
        Panel(
            [_row(sigma, members) for sigma in sorted({each.sigma for each in members})],
            Axis(f"{clock}s", names=True),
            Axis("loss gap / held-out loss", range=(0.0, 1.0)),
            label=members[0].name,
            rows=SIGMA,
        )
        for members in several[:MOST_MAPS]
    ]


def _row(sigma: float, members: Sequence[StudyLevel]) -> Series:
    """Return the row of a noise level."""
    row = sorted((each for each in members if each.sigma == sigma), key=lambda each: each.epoch)
    return Series(
        f"{sigma:.3g}",
        [each.epoch for each in row],
        [each.value for each in row],
        "heat",
        intervals=[(each.low, each.high) for each in row],
        full_name=f"sigma = {sigma:.3g}",
    )

"""One HTML page from the store: opens offline, Plotly embedded once, all text escaped."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from diffmem.analysis import (
    GOING_ON,
    Curve,
    MeasuredStudy,
    at_paper_scale,
    beside,
    by_position,
    cell_state,
    curves_of,
    estimate_emm,
    noted,
    only_size,
    published_values,
    reason,
    settings_of,
    size_of,
    study_cells,
    study_results,
)
from diffmem.atomic import whole
from diffmem.cells import THRESHOLD, cell_cost, stored_cell
from diffmem.report import figures
from diffmem.report.factors import factors, ratio_against_factor
from diffmem.report.figures import Panel
from diffmem.report.galleries import galleries, room_beside
from diffmem.report.private import Private
from diffmem.store import THRESHOLD_LEVELS, Row, Store, from_json, outcome_of
from diffmem.text import duration, with_unit

PLOTLY_CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}


def write_page(
    store: Store, names: list[str], path: Path | str, *, source: str = "", refresh: int = 0, hosts: bool = False
) -> None:
    """Write the report of the named studies to `path`, whole or not at all; DiffmemError if it cannot be.

    With `refresh`, the page loads itself anew every so many seconds while a study is not finished. With `hosts`, it
    names machines and folders.
    """
    text = render_page(store, names, source=source, refresh=refresh, hosts=hosts)
    with whole(Path(path)) as file:
        file.write_text(text, encoding="utf-8")


def render_page(store: Store, names: list[str], *, source: str = "", refresh: int = 0, hosts: bool = False) -> str:
    """Return the page of the named studies as HTML.

    `source` is what it says of where they are from, `refresh` the seconds after which an unfinished one loads anew.
    Without `hosts`, it shows neither the names of machines nor the folders of absolute paths.
    """
    with store.snapshot():
        studies = [store.study(name) for name in names]
        told = _as_it_is if hosts else Private(row["host"] for row in store.read("SELECT DISTINCT host FROM attempts"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffmem.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    sections = [_section(store, study, told) for study in studies]
    going_on = any(section["going_on"] for section in sections)
    page = partial(
        environment.get_template("page.html").render,
        watched=bool(refresh),
        refresh=refresh if going_on else 0,
        plotly=get_plotlyjs(),
        css=_beside("page.css"),
        script=_beside("page.js"),
        store=told(source or str(store.path)),
        hosts=hosts,
        version=version("diffmem"),
        thresholds=sorted({_share(study["estimation"]["threshold"]) for study in studies}) or [_share(THRESHOLD)],
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    room = room_beside(page(studies=[section | {"galleries": []} for section in sections]))
    for section in sections:
        section["galleries"] = section["galleries"](room=room // len(sections))
    return page(studies=sections)


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _as_it_is(value: Any) -> Any:
    return value


def _section(store: Store, study: Row, told: Callable[[Any], Any]) -> dict[str, Any]:
    """Return all that the template shows of one study; its galleries as a function of the `room` that they have.

    `told` leaves out of every text what is not to be told.
    """
    threshold, epsilon = study["estimation"]["threshold"], study["estimation"]["epsilon"]
    with store.snapshot():
        cells, points = study_cells(store, study)
        pairs = store.pairs(study["study"])
        counts = store.sample_counts(study["study"], threshold)
        distances = store.distance_counts(study["study"])
        copies = store.copies(study["study"], threshold)
        attempts, notes = store.attempts(study["study"]), store.notes(study["study"])
        study, cells, points, counts, attempts, notes = told([study, cells, points, counts, attempts, notes])
        evidence = MeasuredStudy(study, cells, published_values(store, study["study"]))
        results = study_results(store, evidence)
    curves = curves_of(cells, epsilon)
    unit = "step" if any("monitor" in cell["configuration"] for cell in cells) else "epoch"
    comparable = [cell for cell in cells if at_paper_scale(cell)]
    published = beside(evidence.published, comparable) if comparable else []
    drawn = _figures(study, curves, cells, points, counts, published, unit)
    states = Counter(cell_state(cell) for cell in cells)
    return {
        **study,
        "curves": curves,
        "only_size": only_size(cells),
        "sizes": sorted({point.size for curve in curves for point in curve.points}),
        "states": states,
        "unit": unit,
        "done": sum(cell["measured"] for cell in cells),
        "expected": sum(cell["expected"] for cell in cells),
        "going_on": any(states[state] for state in GOING_ON),
        "figures": [_shown(title, text, panels) for title, text, panels in drawn],
        "distances": _distances(cells, distances, epsilon, threshold) if distances else None,
        "notes": noted(notes, cells),
        "results": results,
        "published": published,
        "galleries": partial(galleries, pairs, cells, copies, threshold),
        "cells": _provenance(cells, attempts),
    }


Figure = tuple[str, str, Sequence[Panel]]
"""A title, what is to be seen, and the panels of the figure."""


def _figures(
    study: Row,
    curves: list[Curve],
    cells: list[Row],
    points: list[Row],
    counts: list[Row],
    published: list[Row],
    unit: str,
) -> list[Figure]:
    """Return each figure that there is something for."""
    if not points:
        return []
    drawn: list[Figure] = []
    axes = factors(study["axes"])
    if len({point["size"] for point in points}) > 1 or not axes:
        title = "Memorization ratio against the number of training images"
        text = (
            "Bands, or a bar at one point: 95% intervals over generated images, and over draws and seeds where there "
            "are several, which are taken to differ alike at all sizes of a curve. Stars: EMMs, linear in N between "
            "two sizes, where the lines are straight on this logarithmic axis."
        )
        drawn.append((title, text, [("", figures.ratio_against_size(curves, published))]))
    if len({point["position"] for point in points}) < len(points):  # a cell has more than one checkpoint
        text = (
            f"One line for each number of training images, averaged over draws and seeds at the {unit}s that all of "
            "them have. Bands, or a bar at one point: 95% intervals over generated images, and over draws and seeds "
            "where there are several."
        )
        drawn.append((f"Memorization ratio against {unit}s", text, figures.ratio_against_epochs(points, unit)))
    for keys in axes:
        title = f"Memorization ratio against {', '.join(keys)}"
        text = (
            "The highest ratio of any checkpoint, averaged over draws and seeds. Bands or bars: 95% intervals, which "
            "take draws and seeds to differ alike along this axis, not along the sizes as the figure against N does."
        )
        drawn.append((title, text, [("", ratio_against_factor(keys, cells, published))]))
    if counts:
        text = (
            "The ratio of the first n images, with 95% intervals, and its "
            "standard deviation: as expected (lines) and between groups of n images (markers). A deviation of 0, as a "
            "ratio of 0 or 1 has it, has no place on a logarithmic axis."
        )
        drawn.append(("How many generated images the ratio needs", text, figures.ratio_against_samples(counts)))
    return drawn


def _shown(title: str, text: str, panels: Sequence[Panel]) -> dict[str, Any]:
    """Return what the template shows of a figure: drawn, in words and as a table."""
    x, y = figures.axis_titles(panels)
    drawn = [(label, _html(figure)) for label, figure in panels]
    return {"title": title, "text": text, "panels": drawn, "rows": figures.data_table(panels), "x": x, "y": y}


def _distances(cells: list[Row], counts: list[Row], epsilon: float, threshold: float) -> dict[str, Any]:
    """Return the histogram of distance ratios, and for the page's script the ratio at each level of the threshold.

    As everywhere, that of a size is the mean over its models of the ratio of their best checkpoint, which may be
    another one at each level. `counts` are rows of `store.distance_counts`.
    """
    images: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0] * (THRESHOLD_LEVELS + 2)))
    for row in counts:
        images[row["position"]][row["epoch"]][row["level"]] = row["images"]
    curves: dict[str, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if checkpoints := images.get(cell["position"]):
            memorized = np.cumsum(list(checkpoints.values()), axis=1)
            curves[cell["curve"]][size_of(cell)].append((memorized / memorized[:, -1:]).max(axis=0))
    by_curve = [_at_each_level(label, sizes, epsilon) for label, sizes in curves.items()]
    sizes = sorted({size for members in curves.values() for size in members})
    return {
        **_shown("", "", [("", figures.distance_histogram(counts, threshold))]),
        "ratios": _html(figures.empty_curves([label or "all cells" for label in curves], sizes, 1 - epsilon))
        if len(sizes) > 1
        else "",
        "data": {"levels": THRESHOLD_LEVELS, "threshold": threshold, "curves": by_curve},
        "level": round(threshold * THRESHOLD_LEVELS),
    }


def _at_each_level(label: str, sizes: Mapping[int, Sequence[np.ndarray]], epsilon: float) -> dict[str, Any]:
    """Return the mean ratio of each size of a curve, and its EMM, at each level of the threshold."""
    ratios = {size: np.mean(best, axis=0).round(9).tolist() for size, best in sorted(sizes.items())}
    emms = [str(estimate_emm(list(ratios), at, epsilon=epsilon)) for at in zip(*ratios.values(), strict=True)]
    return {
        "label": label or "all cells",
        "sizes": [{"size": size, "ratios": at} for size, at in ratios.items()],
        "emms": emms,
    }


def _share(threshold: float) -> str:
    """Return a threshold as text, a third as the paper writes it."""
    return "1/3" if threshold == THRESHOLD else f"{threshold:g}"


def _html(figure: go.Figure) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=PLOTLY_CONFIG))


def _provenance(cells: list[Row], attempts: list[Row]) -> list[Row]:
    """Return each cell with its state, what sets it apart in its study, its attempts and what they took."""
    tried = by_position(attempts)
    base = _most_common([settings_of(cell) for cell in cells])
    rows = []
    for cell in cells:
        mine = tried[cell["position"]]
        apart = {key: value for key, value in settings_of(cell).items() if base.get(key) != value}
        rows.append(
            {
                **cell,
                "state": cell_state(cell),
                "error": reason(cell),
                "configuration": json.dumps(cell["configuration"], indent=2),
                "apart": ", ".join(f"{key} = {value}" for key, value in apart.items()),
                "cost": _cost(cell),
                "took": [duration(sum(attempt[key] for attempt in mine)) for key in ("train_seconds", "score_seconds")],
                "attempts": [_attempt(attempt, cell) for attempt in mine],
            }
        )
    return rows


UNKNOWN_COST = "not known: an older diffmem did not keep the colour channels of its images"


def _cost(cell: Row) -> str:
    """Return the size of a cell's network and its operations in words; empty for images of other tools."""
    known = stored_cell(cell["configuration"])
    if known is None:
        return UNKNOWN_COST if "M" in cell["configuration"] else ""
    cost = cell_cost(known)
    size = f"{with_unit(cost.parameters)} parameters, " * bool(cost.parameters)
    return f"{size}{with_unit(cost.operations)} floating-point operations for all its checkpoints"


def _most_common(settings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the value of each setting that most cells have, the first one where several are as frequent."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    found = {}
    for one in settings:
        for key, value in one.items():
            values[key][json.dumps(value)] += 1
    for key, counted in values.items():
        found[key] = json.loads(counted.most_common(1)[0][0])
    return found


def _attempt(attempt: Row, cell: Row) -> Row:
    commit, versions = attempt["git_commit"], from_json(attempt["versions"], "the store")
    return {
        **attempt,
        "outcome": outcome_of({**attempt, "expected": cell["expected"], "measured": cell["measured"]}),
        "versions": ", ".join(f"{package} {number}" for package, number in versions.items()),
        "source": "-" if commit is None else commit[:10] + (" with local changes" if attempt["git_dirty"] else ""),
    }

"""One HTML page from the store: opens offline, Plotly embedded once, all text escaped."""

import base64
import errno
import json
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from diffmem.config import THRESHOLD
from diffmem.errors import DiffmemError, RunError
from diffmem.report import figures
from diffmem.report.estimates import Curve, cell_state, curves_of, study_cells
from diffmem.report.findings import Evidence, study_results
from diffmem.report.published import at_paper_scale, beside, published_values
from diffmem.store import Row, Store

PLOTLY_CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}


def write_page(store: Store, names: list[str], path: Path, *, source: str = "") -> None:
    """Write the report of the named studies to `path`, whole or not at all; DiffmemError if it cannot be."""
    text = render_page(store, names, source=source)
    try:
        _write_whole(path, text)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise (RunError if full else DiffmemError)(
            f"{path}: the report cannot be written: {error.strerror or error}"
        ) from error


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a device or a pipe is written to, and never replaced by a file
        path.write_text(text, encoding="utf-8")
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def render_page(store: Store, names: list[str], *, source: str = "") -> str:
    """Return the page of the named studies as HTML; `source` is what it says of where they are from."""
    studies = {row["study"]: row for row in store.studies()}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffmem.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        studies=[_section(store, studies[name]) for name in names],
        plotly=get_plotlyjs(),
        store=source or str(store.path),
        version=version("diffmem"),
        thresholds=sorted({_share(studies[name]["estimation"]["threshold"]) for name in names}) or [_share(THRESHOLD)],
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _section(store: Store, study: Row) -> dict[str, Any]:
    """Return all that the template shows of one study."""
    with store.snapshot():
        cells, points = study_cells(store, study)
        pairs = store.pairs(study["study"])
        counts = store.sample_counts(study["study"], study["estimation"]["threshold"])
        evidence = Evidence(study, cells, published_values(store, study["study"]))
        results = study_results(store, evidence)
    curves = curves_of(cells, study["estimation"]["epsilon"])
    comparable = [cell for cell in cells if at_paper_scale(cell)]
    published = beside(evidence.published, comparable) if comparable else []
    return {
        **study,
        "curves": curves,
        "sizes": sorted({point.size for curve in curves for point in curve.points}),
        "figures": _figures(curves, points, counts, published),
        "results": results,
        "published": published,
        "galleries": _galleries(pairs, cells, study["estimation"]["threshold"]),
        "cells": [_provenance(cell) for cell in cells],
    }


def _figures(curves: list[Curve], points: list[Row], counts: list[Row], published: list[Row]) -> list[tuple[str, str]]:
    """Return the title and the HTML of each figure that there is something for."""
    if not points:
        return []
    drawn = [
        ("Memorization ratio against the number of training images", figures.ratio_against_size(curves, published)),
        ("Memorization ratio against epochs", figures.ratio_against_epochs(points)),
    ]
    if counts:
        drawn.append(("How many generated images the ratio needs", figures.ratio_against_samples(counts)))
    return [(title, _html(figure)) for title, figure in drawn]


def _share(threshold: float) -> str:
    """Return a threshold as text, a third as the paper writes it."""
    return "1/3" if threshold == THRESHOLD else f"{threshold:g}"


def _html(figure: go.Figure) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=PLOTLY_CONFIG))


def _galleries(pairs: list[Row], cells: list[Row], threshold: float) -> list[dict[str, Any]]:
    """Return, for each cell that has image pairs, its name and the pairs as data URIs."""
    at_position: dict[int, list[Row]] = defaultdict(list)
    for pair in pairs:
        at_position[pair["position"]].append(pair)
    return [
        {
            "name": cell["name"],
            "epoch": at_position[cell["position"]][0]["epoch"],
            "ratio": cell["last"],
            "pairs": [
                {
                    "generated": _data_uri(pair["generated"]),
                    "nearest": _data_uri(pair["nearest"]),
                    "distance_ratio": pair["d1"] / pair["d2"] if pair["d2"] else 1.0,
                    "memorized": pair["d1"] < threshold * pair["d2"],
                }
                for pair in at_position[cell["position"]]
            ],
        }
        for cell in cells
        if at_position[cell["position"]]
    ]


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _provenance(cell: Row) -> dict[str, Any]:
    commit = cell["git_commit"]
    return {
        **cell,
        "state": cell_state(cell),
        "configuration": json.dumps(cell["configuration"], indent=2),
        "versions": ", ".join(f"{package} {number}" for package, number in cell["versions"].items()),
        "source": "-" if commit is None else commit[:10] + (" with local changes" if cell["git_dirty"] else ""),
        "error": cell["error"] if cell_state(cell) == "failed" else None,
    }

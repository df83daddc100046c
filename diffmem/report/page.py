"""One HTML page from the store: opens offline, Plotly embedded once, all text escaped."""

import base64
import gzip
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from diffmem.atomic import whole
from diffmem.measures import NEAREST
from diffmem.report.drawing import draw
from diffmem.report.figure import Figure, Panel
from diffmem.report.galleries import room_beside
from diffmem.report.private import Private
from diffmem.report.section import section_of, share
from diffmem.store import Store

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
        told = _as_it_is if hosts else Private(store.hosts())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffmem.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    drawn: dict[int, str] = {}  # once, though the page is put together twice

    def once(panel: Panel) -> str:
        return drawn.get(id(panel)) or drawn.setdefault(id(panel), _drawn(panel))

    environment.filters |= {"drawn": once, "as_download": _as_download}
    sections = [section_of(store, study, told) for study in studies]
    going_on = any(section.going_on for section in sections)
    rules = {(by.measure.name, by.threshold): by.measure for section in sections for by in section.by_measure}
    page = partial(
        environment.get_template("page.html").render,
        sections=sections,
        watched=bool(refresh),
        refresh=refresh if going_on else 0,
        plotly=get_plotlyjs(),
        css=_beside("page.css"),
        script=_beside("page.js"),
        store=told(source or str(store.path)),
        hosts=hosts,
        version=version("diffmem"),
        rules=[(each, each.says(at)) for (_, at), each in sorted(rules.items(), reverse=True)]
        or [(NEAREST, NEAREST.says(share(NEAREST.threshold)))],
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    room = room_beside(page(galleries=[[] for _ in sections]))
    return page(galleries=[section.galleries(room // len(sections)) for section in sections])


def _drawn(panel: Panel) -> str:
    return str(draw(panel).to_html(full_html=False, include_plotlyjs=False, config=PLOTLY_CONFIG))


def _as_download(figure: Figure) -> str:
    """Return what a figure shows as the address of a CSV file, packed: galleries have the room that this saves."""
    packed = gzip.compress(figure.as_csv().encode(), mtime=0)
    return "data:application/gzip;base64," + base64.b64encode(packed).decode()


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _as_it_is(value: Any) -> Any:
    return value

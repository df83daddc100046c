"""One HTML page from the store: opens offline, Plotly embedded once, all text escaped."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from diffmem.atomic import whole
from diffmem.report.galleries import room_beside
from diffmem.report.private import Private
from diffmem.report.section import section_of
from diffmem.report.template import beside, template
from diffmem.store import Store


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
    sections = [section_of(store, study, told) for study in studies]
    going_on = any(section.going_on for section in sections)
    page = partial(
        template("page.html").render,
        sections=sections,
        anchors=anchors([section.study.study for section in sections]),
        watched=bool(refresh),
        refresh=refresh if going_on else 0,
        plotly=get_plotlyjs(),
        css=beside("page.css"),
        script=beside("page.js"),
        store=told(source or str(store.path)),
        hosts=hosts,
        version=version("diffmem"),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    room = room_beside(page(galleries=[[] for _ in sections]))
    return page(galleries=[section.galleries(room // len(sections)) for section in sections])


def anchors(names: Sequence[str]) -> list[str]:
    """Return what a link to each study ends with: its name, as far as an address can have it."""
    found: list[str] = []
    for name in names:
        anchor = re.sub(r"[^\w.@-]+", "-", name) or "study"
        found.append(anchor if anchor not in found else f"{anchor}-{len(found) + 1}")
    return found


def _as_it_is(value: Any) -> Any:
    return value

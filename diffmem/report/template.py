"""What all pages share: templates, style and script, and figures as they stand in a page."""

import base64
import gzip
from pathlib import Path
from typing import Any

import jinja2

from diffmem.report.drawing import draw
from diffmem.report.figure import Figure, Panel
from diffmem.report.galleries import data_uri

PLOTLY_CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}


def template(name: str, **filters: Any) -> jinja2.Template:
    """Return a template of this package; all text is escaped, and a name that nothing has is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffmem.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"drawn": drawn, "as_download": _as_download, "as_uri": data_uri, **filters}
    return environment.get_template(name)


def beside(name: str) -> str:
    """Return a file of this package as text."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def drawn(panel: Panel) -> str:
    """Return a panel as HTML that a page's Plotly draws."""
    return str(draw(panel).to_html(full_html=False, include_plotlyjs=False, config=PLOTLY_CONFIG))


def _as_download(figure: Figure) -> str:
    """Return what a figure shows as the address of a CSV file, packed: galleries have the room that this saves."""
    packed = gzip.compress(figure.as_csv().encode(), mtime=0)
    return "data:application/gzip;base64," + base64.b64encode(packed).decode()

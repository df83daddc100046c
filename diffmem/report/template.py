"""What all pages share: templates, style and script, and figures as they stand in a page."""

import base64
import gzip
import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import jinja2

from diffmem.analysis import SizePoint, emm_words, in_words, interval_words, last_emm_words
from diffmem.report.drawing import draw
from diffmem.report.figure import Figure, Interval, Panel
from diffmem.report.galleries import data_uri
from diffmem.report.sparkline import sparkline
from diffmem.text import within

PLOTLY_CONFIG = {
    "showSendToCloud": False,
    "displaylogo": False,
    "responsive": True,
    "displayModeBar": "hover",
    "modeBarButtonsToRemove": ["toImage", "select2d", "lasso2d", "autoScale2d"],
}


def template(name: str) -> jinja2.Template:
    """Return a template of this package; all text is escaped, and a name that nothing has is an error."""
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    """Return what all templates share, which compiles each of them once."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffmem.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"drawn": drawn, "as_download": _as_download, "as_uri": data_uri, "sparkline": sparkline}
    environment.filters |= {"words": in_words, "emm": emm_words, "interval": interval_words, "last_emm": last_emm_words}
    environment.filters |= {"ratio": _ratio, "ratio_interval": _ratio_interval, "last_ratio": _last_ratio}
    environment.filters |= {"value": _value, "file_name": file_name}
    return environment


def beside(name: str) -> str:
    """Return a file of this package as text."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def drawn(panel: Panel) -> str:
    """Return a panel as HTML that a page's Plotly draws."""
    name, chart = f"plot-{uuid4().hex}", draw(panel)
    arguments = ", ".join(map(_script, (name, chart["data"], chart["layout"], PLOTLY_CONFIG)))
    place = f'<div id="{name}" class="plotly-graph-div" style="height: {chart["layout"]["height"]}px"></div>'
    return f"{place}<script>Plotly.newPlot({arguments})</script>"


def _script(value: Any) -> str:
    """Return a value as a script has it: JSON in which no text can end the script."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _as_download(figure: Figure) -> str:
    """Return what a figure shows as the address of a CSV file, packed: galleries have the room that this saves."""
    packed = gzip.compress(figure.as_csv().encode(), mtime=0)
    return "data:application/gzip;base64," + base64.b64encode(packed).decode()


def file_name(title: str) -> str:
    """Return a title as the name of a file on any system."""
    return re.sub(r"[^\w.@+()-]+", "_", title).strip("_.") or "figure"


def _ratio(point: SizePoint) -> str:
    return within(point.best, point.low, point.high)[0]


def _ratio_interval(point: SizePoint) -> str:
    return within(point.best, point.low, point.high)[1]


def _last_ratio(point: SizePoint) -> str:
    return within(point.last, point.low, point.high)[0]


def _value(value: float, interval: Interval | None) -> tuple[str, str]:
    """Return a value of a figure and its interval, with the digits that the interval allows."""
    if interval is None:
        return f"{value:.4g}", ""
    low, high = interval
    if low == high or abs(value) >= LARGE or high - low < SMALL:
        return f"{value:.4g}", f"{low:.3g} to {high:.3g}"
    return within(value, low, high)


LARGE, SMALL = 1000, 0.001
"""Values from which on, and intervals below which, numbers are written with significant digits."""

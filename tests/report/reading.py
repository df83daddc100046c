"""Reading a page as a browser does, and the small study whose page the tests read."""

import base64
import json
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import tiny
from plotly.offline import get_plotlyjs

from diffmem.report import drawing
from diffmem.report.figure import Panel
from diffmem.report.page import render_page
from diffmem.store.standing import Outcome
from diffmem.store.store import Store
from diffmem.study.study import Study

REASON = "the training loss is <nan> & of no use"
AXES = "\n[[axes]]\nM.dropout = [0.0, 0.2]\n"
STUDY = tiny.TEXT.replace(AXES, "\n[[axes]]\nP.size = [8, 16, 32]\n")
PAIRS = [(tiny.png(1), tiny.png(2)), (tiny.png(3), tiny.png(4))]


class Page(HTMLParser):
    """What a browser makes of a page: its tags with their attributes, its texts, and its scripts."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.read: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "hr", "link", "input"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data
        if self.open and self.open[-1] not in ("script", "style"):
            self.read.append(data)

    @property
    def text(self) -> str:
        """Return all that is to be read, in order."""
        return re.sub(r"\s+", " ", "".join(self.read))

    @property
    def without_plotly(self) -> str:
        return self.source.replace(get_plotlyjs(), "")

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def scripts(self) -> list[str]:
        """Return the page's own scripts: not Plotly, and no data."""
        kinds = [attributes.get("type") for attributes in self.of("script")]
        return [text for text, kind in zip(self.texts["script"], kinds, strict=True) if kind != "application/json"][1:]

    def data(self) -> list[dict]:
        """Return the data that the page's script reads."""
        kinds = [attributes.get("type") for attributes in self.of("script")]
        found = zip(self.texts["script"], kinds, strict=True)
        return [json.loads(text) for text, kind in found if kind == "application/json"]

    def plots(self) -> list[list]:
        """Return the arguments of every Plotly.newPlot: element, data, layout, config."""
        decoder = json.JSONDecoder()
        calls = []
        for script in self.scripts():
            for call in re.finditer(r"Plotly\.newPlot\(", script):
                position, arguments = call.end(), []
                while len(arguments) < 4:
                    position = re.compile(r"[\s,]*").match(script, position).end()
                    value, position = decoder.raw_decode(script, position)
                    arguments.append(value)
                calls.append(arguments)
        return calls


def fill(store: Store, text: str = STUDY, name: str = "tiny") -> Study:
    """Register a study of three cells: one finished, one failed in the middle, one not begun."""
    study = tiny.load(store.path.parent, text, name)
    first, second, _ = [entry.cell for entry in study.cells]
    with tiny.at_once(store):
        tiny.register(store, study)
        attempt = store.start_attempt(first.cell_id, tiny.HERE)
        tiny.measure(store, first, [0.5, 1.0, 0.95], pairs=PAIRS, attempt=attempt)
        store.end_attempt(attempt, Outcome.FINISHED)
        attempt = store.start_attempt(second.cell_id, tiny.HERE)
        tiny.measure(store, second, [0.75], pairs=PAIRS[:1], attempt=attempt)
        store.end_attempt(attempt, Outcome.FAILED, REASON)
    return study


def rendered(store: Store, *names: str) -> Page:
    return Page(render_page(store, list(names or ["tiny"])))


def images(page: Page) -> list[bytes]:
    prefix = "data:image/png;base64,"
    sources = [attributes["src"] for attributes in page.of("img")]
    assert all(source.startswith(prefix) for source in sources)
    return [base64.b64decode(source.removeprefix(prefix), validate=True) for source in sources]


def draw(panel: Panel) -> go.Figure:
    """Return a panel as Plotly's own figure, which refuses what Plotly does not know."""
    return go.Figure(drawing.draw(panel))

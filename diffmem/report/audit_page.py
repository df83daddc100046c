"""The page of an audit: groups of images that count as one, with pictures."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jinja2

from diffmem.atomic import whole


@dataclass(frozen=True)
class ShownGroup:
    """A group of images as the page shows it."""

    title: str
    images: int  # of which some are shown
    pictures: Sequence[tuple[str, bytes]]  # what each is called, and PNG


def write_audit(
    path: Path, title: str, said: Sequence[str], groups: Sequence[ShownGroup], *, left_out: int = 0
) -> None:
    """Write the page of an audit to `path`, whole or not at all; `left_out` groups are not among those shown."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffmem.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["as_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    text = environment.get_template("audit.html").render(
        title=title,
        said=said,
        groups=groups,
        left_out=left_out,
        css=Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
        version=version("diffmem"),
    )
    with whole(path) as file:
        file.write_text(text, encoding="utf-8")

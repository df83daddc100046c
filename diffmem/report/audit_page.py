"""The page of an audit: groups of images that count as one, with pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from diffmem.atomic import whole
from diffmem.report.template import beside, template


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
    text = template("audit.html").render(
        title=title,
        said=said,
        groups=groups,
        left_out=left_out,
        css=beside("page.css"),
        version=version("diffmem"),
    )
    with whole(path) as file:
        file.write_text(text, encoding="utf-8")

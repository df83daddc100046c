"""The site: every document is in it, links and anchors lead somewhere, and the reference has every public name."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest

import diffmem

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


# --- the documents -------------------------------------------------------------------------------------


def pages_of(entries: list[dict[str, str | list]]) -> Iterator[str]:
    """Yield the documents of a navigation, in its order."""
    for entry in entries:
        for place in entry.values():
            if isinstance(place, str):
                yield place
            else:
                yield from pages_of(place)


PAGES = list(pages_of(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))


def prose_of(page: Path) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links_of(page: Path) -> list[tuple[Path, str]]:
    """Return the files that a document links to, with an anchor in them or ""."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose_of(page))
    parts = [target.partition("#") for target in targets if "://" not in target]
    return [((page.parent / file).resolve() if file else page, anchor) for file, _, anchor in parts]


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that a code host gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_nowhere(file: Path, anchor: str) -> bool:
    return not file.is_file() or (bool(anchor) and anchor not in anchors_of(file))


def test_every_document_is_a_page_of_the_site():
    documents = {"README.md", "store/README.md", *(f"docs/{path.name}" for path in DOCS.glob("*.md"))}
    assert documents <= set(PAGES)
    assert len(PAGES) == len(set(PAGES))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_document_leads_to_a_file_and_an_anchor(page):
    assert [link for link in links_of(ROOT / page) if leads_nowhere(*link)] == []


def test_every_document_is_linked_from_the_readme_or_from_one_that_is():
    linked, ahead = set(), {ROOT / "README.md"}
    while ahead:
        page = ahead.pop()
        linked.add(page)
        ahead |= {file for file, _ in links_of(page) if file.suffix == ".md"} - linked
    assert {ROOT / page for page in PAGES} <= linked


# --- the reference -------------------------------------------------------------------------------------

REFERENCE = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
"""What the reference describes, by its full name."""


def test_the_reference_has_every_name_of_the_api_and_every_function_that_a_command_is():
    commands = re.findall(r"^\| `diffmem [a-z ]+` \| (.*) \|$", (DOCS / "python.md").read_text(), re.MULTILINE)
    functions = {name for row in commands for name in re.findall(r"`(diffmem\.[\w.]+)\(", row)}
    assert {f"diffmem.{name}" for name in diffmem.__all__} | functions <= set(REFERENCE)


def test_every_name_of_the_reference_is_there_and_documented():
    for name in REFERENCE:
        module, _, attribute = name.rpartition(".")
        assert getattr(import_module(module), attribute).__doc__, name


# --- the site, where it can be built -------------------------------------------------------------------


class Page(HTMLParser):
    """What a page of the site links to, and the anchors in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        found = dict(attrs)
        self.links += [found[key] or "" for key in ("href", "src") if key in found]
        self.anchors |= {found[key] or "" for key in ("id", "name") if key in found}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Return the site, built by the rule of the Makefile in a copy of the project."""
    pytest.importorskip("zensical", reason="the site is not built: `make docs` installs what it needs")
    folder = tmp_path_factory.mktemp("project")
    for name in ("diffmem", "docs", "store", "studies"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.duckdb"))
    for path in (*ROOT.glob("*.md"), *(ROOT / name for name in ("CITATION.cff", "Makefile", "zensical.toml"))):
        shutil.copy(path, folder)
    command = ["make", "site", f"ZENSICAL={sys.executable} -m zensical"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "site"


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_file_and_an_anchor(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            place, _, anchor = link.partition("#")
            file = (path.parent / place).resolve() if place else path
            there = file.is_file() and (not anchor or file not in pages or anchor in pages[file].anchors)
            if not (there or re.match(r"\w+:", link)):
                broken.append((path.name, link))
    assert broken == []


@pytest.mark.slow
def test_the_reference_on_the_site_has_signatures_and_docstrings(site):
    text = (site / "docs" / "api.html").read_text()
    assert [name for name in REFERENCE if f'id="{name}"' not in text] == []
    assert "Estimate the largest N whose memorization ratio is at least 1 - epsilon" in text

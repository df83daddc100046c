"""Figures for a paper: each as SVG and PDF, one column wide, with serif labels and its numbers."""

import re
from pathlib import Path

import pytest
import tiny
from reading import fill

from diffmem.errors import DiffmemError
from diffmem.report import paper
from diffmem.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("paper") / "store.duckdb")
    fill(store)
    return store


def test_each_figure_is_an_svg_and_a_pdf_one_column_wide_with_serif_labels(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = tiny.here("report", "tiny", "--store", store.path, "--figures", tmp_path / "paper")
    written = sorted((tmp_path / "paper").iterdir())
    assert (result.returncode, result.stdout) == (0, f"{len(written)} files: {tmp_path / 'paper'}\n")
    name = "tiny_Memorization_ratio_against_the_number_of_training_images"
    svg, pdf = (tmp_path / "paper" / f"{name}.{kind}" for kind in ("svg", "pdf"))
    assert {svg, pdf} <= {*written}
    assert len(written) == 2 * len({path.stem for path in written}) == 12
    text = svg.read_text()
    assert re.search(r'<svg[^>]* width="237\.6pt"', text)  # 3.3 inches
    assert "training images N" in text
    assert "serif" in text
    assert pdf.read_bytes().startswith(b"%PDF")
    before = svg.read_bytes()
    paper.write_figures(store, ["tiny"], tmp_path / "paper")
    assert svg.read_bytes() == before  # the same figure is the same file


def test_without_matplotlib_the_error_says_what_to_install(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper, "find_spec", lambda _: None)
    said = "figures for a paper need matplotlib, which is not installed: `pip install 'diffmem[figures]'`"
    with pytest.raises(DiffmemError) as caught:
        paper.write_figures(store, ["tiny"], tmp_path / "paper")
    assert str(caught.value) == said
    assert list(tmp_path.iterdir()) == []

"""What a notebook shows: a study, a store and the curves of a study as tables, with every text escaped."""

import re
from html import unescape
from pathlib import Path

import tiny

import diffmem
from diffmem.notebook import html_table
from diffmem.store.store import Store


def cells(html: str) -> list[list[str]]:
    """Return the texts of a table by rows, its caption first."""
    assert not re.search(r"<(?!/?(table|caption|thead|tbody|tr|th|td|p)\b)", html)
    caption = re.findall(r"<caption[^>]*>(.*?)</caption>", html)
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [caption, *([unescape(text) for text in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)] for row in rows)]


def test_a_study_shows_its_axes_a_store_its_studies_and_curves_their_ratios(tmp_path: Path) -> None:
    study, store = tiny.load(tmp_path, tiny.TEXT.replace('"Tiny"', '"<b>Tiny"')), Store(tmp_path / "s.duckdb")
    assert cells(study._repr_html_()) == [
        ["&lt;b&gt;Tiny (tiny): 2 cells"],
        ["axis", "values"],
        ["M.dropout", "0.0, 0.2"],
    ]
    assert cells(store._repr_html_()) == [[f"{store.path}: 0 studies"], []]
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.5, 0.9, 1.0])
    assert cells(store._repr_html_()) == [
        [f"{store.path}: 1 study"],
        ["study", "cells", "checkpoints", "title"],
        ["tiny", "1 finished, 1 waiting", "3", "<b>Tiny"],
    ]
    assert cells(diffmem.study_curves(store, "tiny")._repr_html_()) == [
        ["2 curves, EMM at ratio &gt;= 0.9"],
        ["curve", "N", "ratio", "95%", "EMM", "EMM 95%"],
        ["M.dropout = 0.0", "8", "1.000", "0.839 to 1.000", ">= 8", ">= 8"],
        ["M.dropout = 0.2", "", "", "", "not measured", ""],
    ]


def test_of_many_rows_a_notebook_shows_the_first_ones() -> None:
    html = html_table("many", [{"row": number} for number in range(1234)])
    assert len(cells(html)) == 52
    assert html.endswith("<p>... and 1,184 more</p>")

"""diffmem as a library: names that load only what they need, and queries."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tiny

import diffmem
from diffmem.errors import DiffmemError, StoreError
from diffmem.runs.events import CellEnded


@pytest.fixture
def store(tmp_path: Path) -> diffmem.Store:
    """Return a store with a study of two cells, of which one has two checkpoints."""
    store = diffmem.Store(str(tmp_path / "store.duckdb"))
    study = tiny.load(tmp_path, tiny.TEXT)
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.5, 0.25])
    return store


def python(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new Python that imports the package under test."""
    above = Path(diffmem.__file__).parents[1]
    return subprocess.run([sys.executable, "-c", script], cwd=above, capture_output=True, text=True, check=False)


# --- names ---------------------------------------------------------------------------------------------


def test_importing_diffmem_loads_none_of_its_packages():
    result = python("import sys, diffmem; print(*{name.partition('.')[0] for name in sys.modules})")
    loaded = set(result.stdout.split())
    assert "diffmem" in loaded
    assert not loaded & {"torch", "duckdb", "numpy", "pydantic", "accelerate", "plotly", "click"}


@pytest.mark.parametrize(
    "name", ["Study", "Store", "estimate_emm", "plan_cells", "study_curves", "write_page", "merge"]
)
def test_what_trains_nothing_loads_no_torch(name):
    result = python(f"import sys, diffmem; diffmem.{name}; print('torch' in sys.modules)")
    assert (result.stdout, result.stderr) == ("False\n", "")


def test_every_name_of_the_api_is_there_listed_and_documented():
    assert set(diffmem.__all__) <= set(dir(diffmem))
    for name in diffmem.__all__:
        found = getattr(diffmem, name)
        assert found.__name__ == name
        assert found.__doc__


def test_type_checkers_are_told_that_the_package_has_types():
    package = Path(diffmem.__file__).parent
    settings = tomllib.loads((package.parent / "pyproject.toml").read_text())
    assert (package / "py.typed").exists()
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["diffmem"]


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="memorisation_ratio"):
        diffmem.memorisation_ratio  # noqa: B018
    assert not hasattr(diffmem, "nothing")


# --- a study -------------------------------------------------------------------------------------------


def test_a_study_runs_from_its_path_with_nothing_else_said(tmp_path):
    study = diffmem.Study.load(str(tiny.write(tmp_path, tiny.TEXT)), overrides=["T.epochs=2", "score.every=2"])
    events = list(diffmem.run_study(study, diffmem.Store(str(tmp_path / "store.duckdb"))))
    assert [event.outcome for event in events if isinstance(event, CellEnded)] == ["finished", "finished"]


def test_a_study_is_known_by_its_name(store, tmp_path):
    (curve, _) = diffmem.study_curves(store, "tiny")
    assert curve.points[0].best == 0.5
    assert store.study("tiny").title == "Tiny"
    diffmem.write_page(store, ["tiny"], str(tmp_path / "page.html"))
    for ask in (store.study, lambda name: diffmem.study_curves(store, name)):
        with pytest.raises(
            StoreError, match=r"store\.duckdb: no study 'tinny'; did you mean tiny\?; it has tiny\. `diffmem run"
        ):
            ask("tinny")
    with pytest.raises(StoreError, match="no study 'tinny'"):
        diffmem.write_page(store, ["tiny", "tinny"], tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


# --- queries -------------------------------------------------------------------------------------------


def test_columns_are_arrays_by_name(store):
    found = store.columns("SELECT epoch, ratio, study FROM results WHERE ratio > ? ORDER BY epoch", [0.3])
    assert {name: column.tolist() for name, column in found.items()} == {
        "epoch": [12],
        "ratio": [0.5],
        "study": ["tiny"],
    }
    evidence = store.columns("FROM evidence")
    assert np.mean(evidence["d1"] < evidence["d2"] / 3) == 0.375
    assert store.columns("FROM evidence WHERE false")["d1"].shape == (0,)


def test_values_that_are_missing_are_masked(store):
    losses = store.columns("SELECT unnest([0.5, NULL]) AS loss")["loss"]
    assert np.ma.getmaskarray(losses).tolist() == [False, True]


def test_a_query_with_a_fault_is_refused_in_a_sentence_and_nothing_can_be_written(store):
    for read in (store.columns, store.rows):
        with pytest.raises(StoreError, match=r"^the query: .*no_such_table"):
            read("FROM no_such_table")
        with pytest.raises(StoreError, match=r"^the query: .*syntax error"):
            read("SELEKT")
        with pytest.raises(StoreError, match=r"^the query: Conversion Error"):
            read("SELECT 'a'::INTEGER AS a")
    with pytest.raises(StoreError, match="changes nothing"):
        store.columns("DELETE FROM evidence")


def test_a_data_frame_needs_pandas_and_says_so(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(StoreError, match=r"needs pandas, which is not installed: `pip install pandas`, or take"):
        store.frame("FROM results")


def test_an_arrow_table_has_the_rows_of_a_query(store):
    table = store.arrow("SELECT epoch, ratio FROM results WHERE epoch > ? ORDER BY epoch", [12])
    assert table.to_pydict() == {"epoch": [24], "ratio": [0.25]}
    with pytest.raises(StoreError, match="only a SELECT is run"):
        store.arrow("DELETE FROM cells")


def test_a_data_frame_has_the_rows_of_a_query(store):
    frame = store.frame("SELECT epoch, ratio FROM results ORDER BY epoch")
    assert frame.to_dict("list") == {"epoch": [12, 24], "ratio": [0.5, 0.25]}


def test_all_errors_a_user_can_cause_are_one_kind(tmp_path):
    for act in (
        lambda: diffmem.Study.load(str(tmp_path / "no.toml")),
        lambda: diffmem.Store(str(tmp_path / "no.duckdb")).columns("FROM results"),
        lambda: diffmem.memorization_ratio([], []),
    ):
        with pytest.raises(diffmem.DiffmemError):
            act()
    assert diffmem.DiffmemError is DiffmemError

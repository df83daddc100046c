"""The search for an EMM: the right bracket in few trainings, whatever the curve."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmem.analysis.curves import study_curves
from diffmem.analysis.emm import estimate_emm, most_sizes, near_line, next_size
from diffmem.cells.cost import cell_cost, kept_bytes
from diffmem.errors import StudyError
from diffmem.runs.cell_run import Work, run_cell
from diffmem.runs.events import CellEnded
from diffmem.runs.plan import grid_as_fine, plan_cells, plan_search
from diffmem.runs.runner import run_study
from diffmem.runs.search import enough, next_round
from diffmem.runs.waiting import Options, side_by_side, waiting_cells
from diffmem.store.standing import Outcome
from diffmem.store.store import Store
from diffmem.study.study import Study
from diffmem.text import duration


def search(
    crossing: float, low: int, high: int, tolerance: float, known: dict[int, float] | None = None
) -> dict[int, float]:
    """Search a curve that crosses 0.9 at a size; return the points, in the order of their measurement."""
    points = dict(known or {})
    while (size := next_size(points, low, high, tolerance=tolerance)) is not None:
        assert low <= size <= high
        assert size not in points
        points[size] = ratio(size, crossing)
    return points


def ratio(size: int, crossing: float) -> float:
    """A logistic curve on a log scale through 0.9 at the crossing."""
    return 1 / (1 + (size / crossing) ** 2 / 9)


ENDS = st.tuples(st.integers(2, 2000), st.integers(2, 50_000)).filter(lambda ends: ends[0] < ends[1])
TOLERANCE = st.floats(0.01, 1.0)


@settings(max_examples=150, deadline=None)
@given(ENDS, TOLERANCE, st.floats(0, 1))
def test_a_search_brackets_the_crossing_within_the_tolerance_and_the_bound(ends, tolerance, where):
    low, high = ends
    crossing = low * (high / low) ** where
    points = search(crossing, low, high, tolerance)
    estimate = estimate_emm(list(points), list(points.values()))
    above = max((size for size in points if size <= crossing * (1 + 1e-9)), default=None)
    below = min((size for size in points if size > crossing * (1 + 1e-9)), default=None)
    if above is None or below is None:
        assert estimate.value is None
    else:
        assert (estimate.lower, estimate.upper) == (above, below)
        assert (below - 1) / above <= 1 + tolerance


@settings(max_examples=100, deadline=None)
@given(ENDS, TOLERANCE, st.floats(0, 1))
def test_a_search_never_takes_more_trainings_than_promised(ends, tolerance, where):
    low, high = ends
    assert len(search(low * (high / low) ** where, low, high, tolerance)) <= most_sizes(low, high, tolerance)


@settings(max_examples=100, deadline=None)
@given(ENDS, st.floats(0, 1))
def test_a_search_trains_no_size_that_is_far_above_the_crossing(ends, where):
    low, high = ends
    crossing = low * (high / low) ** where
    searched = search(crossing, low, high, 0.1)
    assert max(searched) <= 2 * crossing * (1 + 1e-9)
    assert sum(searched) <= 8 * crossing


@pytest.mark.parametrize(
    ("low", "high", "tolerance", "most"),
    [(4, 64, 0.5, 6), (4, 512, 0.1, 11), (1000, 50_000, 0.1, 10), (4, 5, 0.5, 2), (10, 20, 1.0, 2)],
)
def test_a_search_promises_its_doublings_and_the_halvings_of_one(low, high, tolerance, most):
    assert most_sizes(low, high, tolerance) == most


def test_known_sizes_far_apart_are_not_searched_from_their_middle():
    assert next_size({16: 1.0, 800: 0.0}, 16, 800) == 32
    assert next_size({16: 1.0, 48: 0.0}, 16, 800) == 28


@pytest.mark.parametrize(("crossing", "text", "trainings"), [(1, "< 10", 1), (1e6, ">= 1000", 8)])
def test_a_curve_that_never_crosses_ends_with_a_bound(crossing, text, trainings):
    points = search(crossing, 10, 1000, 0.1)
    assert str(estimate_emm(list(points), list(points.values()))) == text
    assert len(points) == trainings


def test_sizes_that_are_known_already_are_not_measured_again():
    known = {size: ratio(size, 300) for size in (10, 100, 280, 310, 1000)}
    assert list(search(300, 10, 1000, 0.1, known))[len(known) :] == [295]
    assert search(300, 10, 1000, 0.15, known) == known


def test_neighbouring_sizes_are_close_enough_whatever_the_tolerance():
    assert next_size({2: 1.0, 3: 0.1}, 2, 100, tolerance=0.01) is None


@pytest.mark.parametrize(("value", "near"), [(0.9, True), (0.87, True), (0.93, True), (0.8, False), (1.0, False)])
def test_a_ratio_near_the_line_is_one_that_noise_could_move_across(value, near):
    assert near_line(value, samples=200) == near


# --- a study that searches -----------------------------------------------------------------------------

STUDY = (
    tiny.TEXT.replace("size = 8\n", "", 1)
    .replace("epochs = 30 ", "epochs = 40 ")
    .replace("samples = 20", "samples = 200")
    .replace("every = 12", "every = 10")
    + '[emm]\nsearch = "bisect"\nrange = [4, 64]\ntolerance = 0.5\n'
)


def load(folder: Path, text: str = STUDY) -> Study:
    (folder / "found.toml").write_text(text)
    return Study.load(folder / "found.toml")


def pretend(study: Study, store: Store, crossing: dict[str, float], most: int = 100) -> list[list[str]]:
    """Search with cells that have the ratio of a curve instead of training them; return the names of each round."""
    rounds = []
    for _ in range(most):
        state = next_round(study, store)
        if not state.wanted:
            return rounds
        rounds.append([entry.name for entry in state.wanted])
        tiny.register(store, study, [*state.used, *state.wanted])
        for entry in state.wanted:
            value = ratio(entry.cell.P.size, crossing[entry.curve])
            tiny.measure(store, entry.cell, [value] * len(entry.cell.checkpoints), samples=200)
    raise AssertionError("the search does not end")


def test_every_curve_of_a_study_is_searched_on_its_own(tmp_path):
    study, store = load(tmp_path), Store(tmp_path / "s.duckdb")
    tiny.register(store, study, [])
    crossing = {"M.dropout = 0.0": 11.0, "M.dropout = 0.2": 30.0}
    rounds = pretend(study, store, crossing)
    assert rounds[0] == ["M.dropout = 0.0, P.size = 4", "M.dropout = 0.2, P.size = 4"]
    assert len(rounds) <= most_sizes(4, 64, 0.5) + 2  # and one more draw near the line
    for curve in study_curves(store, next(iter(store.studies()))):
        assert curve.estimate.lower <= crossing[curve.label] <= curve.estimate.upper
        assert (curve.estimate.upper - 1) / curve.estimate.lower <= 1.5


def test_a_ratio_near_the_line_is_measured_on_one_more_draw(tmp_path):
    study, store = load(tmp_path), Store(tmp_path / "s.duckdb")
    tiny.register(store, study, [])
    rounds = pretend(study, store, {"M.dropout = 0.0": 4.1, "M.dropout = 0.2": 1000.0})
    assert rounds[1][0] == "M.dropout = 0.0, P.size = 4, P.draw = 1"
    assert sum("P.size = 4, P.draw = 1" in name for names in rounds for name in names) == 1


def test_cells_that_the_store_has_count_first(tmp_path):
    study, store = load(tmp_path), Store(tmp_path / "s.duckdb")
    tiny.register(store, study, [entry for size in (4, 20, 24, 64) for entry in study.at(size)])
    for size in (4, 20, 24, 64):
        for entry in study.at(size):
            value = 1.0 if size <= 20 else 0.1
            tiny.measure(store, entry.cell, [value] * len(entry.cell.checkpoints), samples=200)
    assert next_round(study, store).wanted == []


@pytest.mark.parametrize(
    ("emm", "message"),
    [
        ('search = "bisect"', "emm.range: missing"),
        ("range = [4, 64]", "emm.range: is for a search"),
        ('search = "bisect"\nrange = [64, 4]', "must be two sizes from 2 on, the smaller one first"),
        ('search = "bisect"\nrange = [4, 5000]', "balanced sets of up to 1740"),
    ],
)
def test_a_search_that_cannot_be_is_refused_with_its_line(tmp_path, emm, message):
    text = STUDY.split("[emm]")[0] + f"[emm]\n{emm}\n"
    if "search" not in emm:
        text = text.replace("[P]\n", "[P]\nsize = 8\n")
    with pytest.raises(StudyError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "found.toml:" in str(caught.value)


def test_a_search_chooses_the_sizes_itself(tmp_path):
    with pytest.raises(StudyError, match="is on an axis, but a search chooses"):
        load(tmp_path, STUDY + "[[axes]]\nP.size = [4, 8]\n")


def test_plan_shows_a_search_beside_a_grid_as_fine(tmp_path):
    study = load(tmp_path)
    planned, grid = plan_search(study, Store(tmp_path / "s.duckdb")), grid_as_fine(study)
    cost = {
        size: sum(cell_cost(entry.cell).operations for entry in study.at(size)) for size in (4, 8, 16, 23, 32, 45, 64)
    }
    assert planned.sizes == most_sizes(4, 64, 0.5) == 6
    assert planned.cells == 2 * planned.sizes
    assert planned.expected == sum(cost[size] for size in (4, 8, 16, 32, 23))  # 16 is in the middle, on a log scale
    assert planned.worst == sum(cost[size] for size in (4, 8, 16, 32, 64, 45))  # 50 or more
    assert grid[0] == 8  # 4 * 1.5^7 = 68
    assert planned.expected < planned.worst < grid[1]
    shown = tiny.here("plan", tmp_path / "found.toml", "--store", tmp_path / "s.duckdb").stdout
    assert "at most 6 more sizes a curve" in shown
    assert "8 sizes a curve" in shown
    assert "2 cells, 0 of them finished" in shown  # of size 4, which come next
    timed = tiny.here("plan", tmp_path / "found.toml", "--store", tmp_path / "s.duckdb", "--tflops", "1e-6").stdout
    seconds = [duration(amount / 1e6) for amount in (cost[4], planned.expected, planned.worst)]
    assert "{} for these cells; {} expected for the search, {} at worst".format(*seconds) in timed
    rows = json.loads(tiny.here("plan", tmp_path / "found.toml", "--store", tmp_path / "s.duckdb", "--json").stdout)
    assert [row["P.size"] for row in rows] == [4, 4]


def operations(study: Study, sizes: Iterable[int], **settings: float) -> int:
    """Return what all cells of some sizes cost, or those with a dropout."""
    cells = [entry.cell for size in sizes for entry in study.at(size)]
    return sum(cell_cost(cell).operations for cell in cells if settings.get("dropout") in (None, cell.M.dropout))


def answered(study: Study, store: Store, ratios: dict[int, float]) -> None:
    """Fill a store with all cells of some sizes, finished at these ratios."""
    cells = [entry for size in ratios for entry in study.at(size)]
    tiny.register(store, study, cells)
    for entry in cells:
        value = ratios[entry.cell.P.size]
        tiny.measure(store, entry.cell, [value] * len(entry.cell.checkpoints), samples=200)


def test_what_is_left_of_a_search_is_what_its_sizes_to_come_cost(tmp_path):
    """What the store has from before, an upper end say, may not be what the search would have trained."""
    study, store = load(tmp_path, STUDY.replace("[4, 64]", "[4, 200]")), Store(tmp_path / "s.duckdb")
    answered(study, store, {4: 1.0, 200: 0.0})
    planned = plan_search(study, store)
    to_come = (8, 16, 32, 23)  # the middle of 4 and 200 is 28
    assert planned.expected == operations(study, to_come)
    assert planned.worst == operations(study, (8, 16, 32, 64, 113, 150))
    assert (planned.sizes, planned.cells) == (6, 12)


def test_a_curve_that_has_its_answer_costs_a_search_nothing_more(tmp_path):
    study, store = load(tmp_path), Store(tmp_path / "s.duckdb")
    answered(study, store, {4: 1.0})
    for entry in study.at(8):
        if entry.cell.M.dropout:  # whose EMM is between 4 and 5
            tiny.register(store, study, [*study.at(4), *study.at(5), entry])
            tiny.measure(store, entry.cell, [0.0] * len(entry.cell.checkpoints), samples=200)
    (done,) = [entry for entry in study.at(5) if entry.cell.M.dropout]
    tiny.measure(store, done.cell, [0.0] * len(done.cell.checkpoints), samples=200)
    planned = plan_search(study, store)
    assert planned.expected == operations(study, (8, 16, 32, 23), dropout=0.0)  # the middle of 4 and 64 is 16


def test_a_draw_that_has_answered_is_not_left_though_others_of_its_size_are(tmp_path):
    study, store = load(tmp_path, STUDY + "[[axes]]\nP.draw = [0, 1]\n"), Store(tmp_path / "s.duckdb")
    tiny.register(store, study, study.at(4))
    (ended,) = [entry for entry in study.at(4) if not (entry.cell.M.dropout or entry.cell.P.draw)]
    tiny.measure(store, ended.cell, [1.0], samples=200)  # and has checkpoints to go that a search does not train
    whole = plan_search(study, Store(tmp_path / "none.duckdb"))
    assert plan_search(study, store).expected == whole.expected - cell_cost(ended.cell).operations


def test_a_curve_whose_next_cell_has_failed_is_not_searched_further(tmp_path):
    study, store = load(tmp_path), Store(tmp_path / "s.duckdb")
    failed = {entry.cell.cell_id for entry in study.at(4) if entry.cell.M.dropout}
    planned, other = plan_search(study, store, failed=failed), operations(study, (4, 8, 16, 32, 23), dropout=0.0)
    assert (planned.expected, planned.cells) == (other, 6)
    draws = load(tmp_path, STUDY + "[[axes]]\nP.draw = [0, 1]\n")
    failed = {draws.at(4)[0].cell.cell_id}  # the other draw of its curve is trained all the same
    assert plan_search(draws, store, failed=failed).cells == 1 + 2 * 6


def test_a_cell_of_several_curves_is_planned_and_counted_once(tmp_path):
    text = STUDY.replace("M.dropout = [0.0, 0.2]", 'M.condition = ["none", "random"]') + "[[axes]]\nM.labels = [2, 4]\n"
    study, store = load(tmp_path, text), Store(tmp_path / "s.duckdb")
    assert len(next_round(study, store).wanted) == 4
    assert len(plan_cells(study, store)) == 3
    assert side_by_side(study, next_round(study, store).wanted) == 3
    cells = {e.cell.cell_id: e.cell for size in (4, 8, 16, 32, 23) for e in study.at(size)}
    assert plan_search(study, store).expected == sum(cell_cost(cell).operations for cell in cells.values())


def test_a_search_keeps_no_more_than_it_says(tmp_path):
    text = STUDY.replace("M.dropout = [0.0, 0.2]", 'M.condition = ["none", "unique"]')
    study, store = load(tmp_path, text), Store(tmp_path / "s.duckdb")
    cells = [entry.cell for size in (4, 8, 16, 32, 64, 45) for entry in study.at(size)]  # a label for each image
    assert sum(kept_bytes(cell, cell_cost(cell).parameters) for cell in cells) <= plan_search(study, store).kept


def test_checkpoints_that_are_measured_are_not_left(tmp_path):
    study, store = load(tmp_path), Store(tmp_path / "s.duckdb")
    tiny.register(store, study, study.at(4))
    for entry in study.at(4):
        tiny.measure(store, entry.cell, [0.5], samples=200)
    whole = plan_search(study, Store(tmp_path / "none.duckdb"))
    saved = sum(cell_cost(e.cell).operations - cell_cost(e.cell, measured=1).operations for e in study.at(4))
    assert plan_search(study, store).expected == whole.expected - saved


def test_one_more_draw_near_the_line_is_left_too(tmp_path):
    study, store = load(tmp_path), Store(tmp_path / "s.duckdb")
    answered(study, store, {4: 0.89, 64: 0.0})
    assert [entry.cell.P.draw for entry in next_round(study, store).wanted] == [1, 1]
    planned = plan_search(study, store)
    assert (planned.expected, planned.sizes, planned.cells) == (operations(study, [4]), 0, 2)


def test_the_plan_of_a_search_that_is_over_says_so(tmp_path):
    study, store = load(tmp_path), Store(tmp_path / "s.duckdb")
    answered(study, store, {4: 0.0})
    shown = tiny.here("plan", tmp_path / "found.toml", "--store", store.path)
    assert (
        shown.stdout
        == "found: the search has all that it needs: diffmem run ends at once, and diffmem emm shows the EMM\n"
    )
    planned = plan_search(study, store)
    assert (planned.sizes, planned.cells, planned.expected, planned.worst) == (0, 0, 0, 0)


@pytest.mark.parametrize(("low", "high", "tolerance"), [(4, 64, 0.5), (4, 36, 0.1), (3, 25, 0.05)])
def test_the_worst_cost_of_a_search_is_that_of_the_costliest_crossing(tmp_path, low, high, tolerance):
    """In a range of just over some doublings, that is below the last of them, not at the upper end."""
    text = STUDY.replace("range = [4, 64]", f"range = [{low}, {high}]").replace("= 0.5\n", f"= {tolerance}\n")
    study = load(tmp_path, text)

    def cost(crossing: int) -> int:
        points: dict[int, float] = {}
        while (size := next_size(points, low, high, tolerance=tolerance)) is not None:
            points[size] = float(size <= crossing)
        return sum(cell_cost(entry.cell).operations for size in points for entry in study.at(size))

    assert plan_search(study, Store(tmp_path / "s.duckdb")).worst == max(
        cost(crossing) for crossing in range(low - 1, high + 1)
    )


def test_another_threshold_decides_from_the_evidence(tmp_path):
    study = load(tmp_path, STUDY + "threshold = 0.5\n")
    store = Store(tmp_path / "s.duckdb")
    cells = [entry for size in (4, 64) for entry in study.at(size)]
    tiny.register(store, study, cells)
    for entry in cells:  # of the 200 images none is memorized at 1/3, and half of them are at 0.5
        tiny.measure(store, entry.cell, [0.0] * len(entry.cell.checkpoints), samples=200)
    assert next_round(study, store).wanted == []
    half = load(tmp_path, STUDY + "threshold = 0.5\nepsilon = 0.6\n")
    assert study_curves(store, next(iter(store.studies())))[0].points[0].best == 0.5
    assert next_round(half, store).wanted == []  # both ends are above the line of 0.4
    assert next_round(load(tmp_path, STUDY + "epsilon = 0.6\n"), store).wanted == []
    assert enough(study) is None
    assert enough(load(tmp_path)) == pytest.approx(0.9)


def test_one_more_draw_that_was_interrupted_goes_on(tmp_path):
    study, store = load(tmp_path), Store(tmp_path / "s.duckdb")
    ends = [entry for size in (4, 64) for entry in study.at(size)]
    tiny.register(store, study, ends)
    for entry in ends:
        value = 0.89 if entry.cell.P.size == 4 else 0.0
        tiny.measure(store, entry.cell, [value] * len(entry.cell.checkpoints), samples=200)
    wanted = next_round(study, store).wanted
    assert {entry.name.rpartition(", ")[2] for entry in wanted} == {"P.draw = 1"}
    tiny.register(store, study, [*ends, *wanted])
    for entry in wanted:
        tiny.measure(store, entry.cell, [0.3], samples=200)  # the first of its checkpoints
    assert next_round(study, store).wanted == wanted


def test_all_draws_of_a_size_are_trained_side_by_side(tmp_path):
    study, store = load(tmp_path, STUDY + "[[axes]]\nP.draw = [0, 1, 2]\n"), Store(tmp_path / "s.duckdb")
    waiting = waiting_cells(study, store, Options())
    assert [entry.cell.P.size for entry in waiting] == [4] * 6
    assert side_by_side(study, waiting) == 6
    tiny.register(store, study, [entry for size in (4, 64) for entry in study.at(size)])
    for entry in study.at(4):  # with dropout the search is over: even the smallest size is below the line
        value = 0.0 if entry.cell.M.dropout else 1.0
        tiny.measure(store, entry.cell, [value] * len(entry.cell.checkpoints), samples=200)
    entry = next(entry for entry in study.at(8) if not entry.cell.M.dropout)
    tiny.register(store, study, [*study.at(4), entry])
    tiny.measure(store, entry.cell, [1.0] * len(entry.cell.checkpoints), samples=200)
    waiting = waiting_cells(study, store, Options())
    assert [(entry.cell.P.size, entry.cell.P.draw) for entry in waiting] == [(8, 1), (8, 2)]
    assert side_by_side(study, waiting) == 3  # as many as at the sizes that follow


def test_a_failure_ends_the_search_of_its_curve_alone(tmp_path):
    text = STUDY.replace("M.dropout = [0.0, 0.2]", "T.lr = [1e30, 5e-3]").replace("[4, 64]", "[4, 8]")
    load(tmp_path, text.replace("samples = 200", "samples = 10"))
    result = tiny.here("run", tmp_path / "found.toml", "--store", tmp_path / "s.duckdb")
    assert result.returncode == 1
    assert "1 of 6 cells failed" in result.stderr
    outcomes = Store(tmp_path / "s.duckdb").rows("SELECT outcome FROM attempts ORDER BY outcome")
    assert [row["outcome"] for row in outcomes] == ["failed", "finished"]


@pytest.mark.slow
def test_a_search_trains_until_the_line_is_crossed_and_no_further(tmp_path):
    text = (
        STUDY.replace("[4, 64]", "[2, 4]")
        .replace("epochs = 40 ", "epochs = 6000 ")
        .replace("every = 10", "every = 1500")
    )
    text = text.replace("samples = 200", "samples = 60").replace("steps = 3", "steps = 12")
    study, store = load(tmp_path, text + "epsilon = 0.98\n"), Store(tmp_path / "s.duckdb")
    command = ("run", tmp_path / "found.toml", "--store", store.path, "--processes", "2")
    result = tiny.diffmem(*command)
    assert result.returncode == 0, result.stderr
    assert "cell M.dropout = 0.0, P.size = 2, 1500 steps\n" in result.stdout
    crossed = store.rows("SELECT cell_id FROM attempts WHERE outcome = 'crossed'")
    assert crossed
    for row in crossed:
        ratios = store.rows("SELECT epoch, ratio FROM checkpoints WHERE cell_id = ? ORDER BY epoch", [row["cell_id"]])
        assert [r["ratio"] >= 0.02 for r in ratios] == [False] * (len(ratios) - 1) + [True]
        assert ratios[-1]["epoch"] < 6000
    assert next_round(study, store).wanted == []
    before = len(store.rows("FROM attempts"))
    assert tiny.here(*command[:-2]).returncode == 0
    assert len(store.rows("FROM attempts")) == before
    assert "EMM" in tiny.here("emm", "found", "--store", store.path).stdout


def test_a_cell_that_another_process_has_answered_meanwhile_is_not_trained_on(tmp_path):
    study, store = load(tmp_path), Store(tmp_path / "s.duckdb")
    tiny.register(store, study)
    entry = study.cells[0]
    tiny.measure(store, entry.cell, [0.95])
    for line in (0.9, 0.95):
        events = run_cell(entry, Work(store, lambda: False, enough=line))
        assert [event.outcome for event in events] == ["busy elsewhere"]
    assert store.rows("FROM attempts") == []


def test_a_cell_that_has_failed_in_another_process_meanwhile_is_not_tried_again(tmp_path, monkeypatch):
    """The other process fails between the moment that this one picks the cell and the moment that it has its lock."""
    study, store = load(tmp_path), Store(tmp_path / "s.duckdb")

    def late(entry, work):
        attempt = work.store.start_attempt(entry.cell.cell_id, tiny.HERE)
        work.store.end_attempt(attempt, Outcome.FAILED, "out of memory")
        yield from run_cell(entry, work)

    monkeypatch.setattr("diffmem.runs.runner.run_cell", late)
    events = list(run_study(study, store))
    assert [event.outcome for event in events if isinstance(event, CellEnded)] == 2 * ["failed elsewhere"]
    assert [row["outcome"] for row in store.rows("FROM attempts")] == 2 * ["failed"]

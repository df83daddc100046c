"""Findings of other papers: planted trainings and halves that bear them out, that do not, and that leave them open."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from scipy import stats

from diffmem.analysis.collapse import collapse
from diffmem.analysis.findings import FAILS, HOLDS, UNKNOWN
from diffmem.analysis.halves import SizeMean, rise
from diffmem.analysis.other_papers import OTHER_PAPERS, OtherResult, check_other_papers
from diffmem.measures import HalfPairs, LevelValue, QualityValue
from diffmem.report.page import render_page
from diffmem.store import Point
from diffmem.store.store import Store
from diffmem.study.study import Study

STUDIES = Path(__file__).parents[2] / "studies"
SIZES = [8, 16, 32]
TEXT = """
[P]
dataset = "digits"
[M]
channel_mult = [2, 2]
[T]
steps = 4000
warmup_epochs = 0
[score]
points = 16
samples = 500
[[axes]]
P.size = [8, 16, 32]
"""


def logistic(step: float, tau: float) -> float:
    """Return a ratio that rises to 1 around a step, as steeply at all of them in log step."""
    return 1 / (1 + (tau / step) ** 4)


def onset_study(store: Store, tau, *, gap=None, good=None, axes: str = "") -> Study:
    """Put a study into the store whose models rise around tau(N), and whose loss gap does around gap(N); their
    distance to held-out images falls around good(N)."""
    study = replace(Study.load(tiny.write(store.path.parent, TEXT + axes, "onset")), name="onset@laptop")
    with tiny.at_once(store):
        _fill(store, study, tau, gap, good)
    return study


def _fill(store: Store, study: Study, tau, gap, good) -> None:
    tiny.register(store, study)
    for entry in study.cells:
        cell = entry.cell
        for known_by, step in cell.checkpoints:
            levels = {}
            if gap is not None:
                value = logistic(step, gap(cell.P.size))
                levels = {
                    "gaps": [
                        LevelValue("relative_loss_gap", "both", s, value / s, value / s - 0.02, 1, 30) for s in (1, 9)
                    ]
                }
            ratio = logistic(step, tau(cell.P.size))
            store.append(
                replace(tiny.checkpoint(cell.cell_id, known_by, ratio, samples=500, epoch_steps=1), levels=levels)
            )
            if good is not None:
                far = 10 + 100 * (1 - logistic(step, good(cell.P.size)))
                to_held_out = far, far - 0.01, far + 0.01, 500, 1000, 64, 1.0, 500
                store.add_quality(
                    cell.cell_id, known_by, [QualityValue("pixels", "frechet_distance", "held_out", *to_held_out)]
                )


def results(store: Store, study: str = "onset") -> list[OtherResult]:
    with store.snapshot():
        return [each for each in check_other_papers(store, "laptop") if each.study == f"{study}@laptop"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.duckdb")


def test_every_claim_has_a_study_file_with_a_laptop_profile():
    for claim in OTHER_PAPERS:
        assert Study.load(STUDIES / f"{claim.study}.toml", profile="laptop").cells


def test_what_was_not_run_names_the_command(store):
    tiny.register(store, Study.load(tiny.write(store.path.parent)))
    for each in check_other_papers(store, "laptop"):
        name = each.study.partition("@")[0]
        assert (each.verdict, each.reason) == (UNKNOWN, f"not run: diffmem run {name} --profile laptop")
    assert check_other_papers(store)[0].reason == "not run: diffmem run onset"


# --- onsets --------------------------------------------------------------------------------------------


def test_onsets_in_proportion_to_n_and_one_curve_hold(store):
    onset_study(store, lambda size: 40 * size)
    slope, quality, same, one_curve, gap = results(store)
    assert [each.verdict for each in (slope, same, one_curve)] == [HOLDS] * 3
    assert slope.value == same.value == pytest.approx(1, abs=0.1)
    assert slope.interval[0] < slope.value < slope.interval[1]
    assert one_curve.value < 0.06
    assert slope.models == one_curve.models == 3
    assert slope.scale == "digits at 8x8, N = 8 to 32, ddpm++ of width 128, 4,000 steps"
    assert (quality.verdict, quality.value) == (UNKNOWN, None)
    assert quality.reason == 'no quality is measured: score.measures = ["quality"] does it at each checkpoint'
    assert gap.reason == 'no loss gap is measured: score.measures = ["gaps"] does it at each checkpoint'


@pytest.mark.parametrize(("good", "power", "told"), [(lambda _: 60, 0, UNKNOWN), (lambda size: size**2 / 2, 2, FAILS)])
def test_images_that_become_good_later_with_more_images_fail_and_one_checkpoint_for_all_cannot_tell(
    store, good, power, told
):
    onset_study(store, lambda size: 40 * size, good=good, axes="[[axes]]\nP.draw = [0, 1, 2]\n")
    quality = results(store)[1]
    assert quality.verdict == told
    assert quality.value == pytest.approx(power, abs=0.25)
    assert quality.models == 9
    assert quality.reason == "Frechet distance in pixels"


def test_onsets_at_one_step_for_all_sizes_do_not_hold(store):
    onset_study(store, lambda _: 600)
    slope, _, _, one_curve, _ = results(store)
    assert (slope.verdict, one_curve.verdict) == (FAILS, FAILS)
    assert slope.value == pytest.approx(0, abs=0.1)


def test_models_that_never_memorize_cannot_tell(store):
    onset_study(store, lambda _: 1e9)
    slope, _, _, one_curve, _ = results(store)
    assert slope.reason == (
        "fewer than two sizes have an onset between checkpoints; without an onset between checkpoints: N = 8, 16, 32"
    )
    assert one_curve.reason == "no two sizes rise at the same step / N"
    assert {slope.verdict, one_curve.verdict} == {UNKNOWN}


def test_several_curves_cannot_tell(store):
    onset_study(store, lambda size: 40 * size, axes="[[axes]]\nM.dropout = [0.0, 0.1]\n")
    slope, _, _, one_curve, _ = results(store)
    assert slope.reason == "the study has 2 curves with checkpoints, and this is about one"
    assert one_curve.reason == "the study has several curves, and this is about one"


def test_cells_that_are_not_finished_are_counted_and_left_out(store):
    study = onset_study(store, lambda size: 40 * size)
    with store.writing() as connection:
        connection.execute("DELETE FROM checkpoints WHERE cell_id = ? AND epoch = 4000", [study.cells[0].cell.cell_id])
    slope = results(store)[0]
    assert slope.reason == "1 of 3 cells are not finished; two models give no interval"
    assert (slope.models, slope.verdict) == (2, UNKNOWN)


def points(curve, sizes=SIZES, *, samples: int = 500, position: int = 0) -> list[Point]:
    steps = np.unique(np.geomspace(4, 4000, 30).round().astype(int)).tolist()
    return [
        Point(number + position, "", size, "0", 0, f"cell {number}", step, step, samples, curve(step, size), None)
        for number, size in enumerate(sizes)
        for step in steps
    ]


def test_the_deviation_between_sizes_is_that_of_a_few_lines_of_numpy():
    """Of two sizes, half the difference of f / f_max at the same step / N is the deviation of either from the mean."""
    found = collapse(points(lambda step, size: 0.6 * logistic(step, 10 * size**1.5), [4, 16]))
    steps = np.unique(np.geomspace(4, 4000, 30).round())
    curves, times = [], np.linspace(math.log(steps[0] / 4), math.log(steps[-1] / 16), 50)
    for size in (4, 16):
        ratio = np.array([logistic(step, 10 * size**1.5) for step in steps])
        curves.append(np.interp(times, np.log(steps / size), ratio / ratio.max()))
    rises = [(curve > 0.05) & (curve < 0.95) for curve in curves]
    expected = np.sqrt((((curves[0] - curves[1]) / 2)[rises[0] | rises[1]] ** 2).mean())
    assert found.value == pytest.approx(expected)
    assert found.interval[0] <= found.value <= found.interval[1]
    assert (found.models, found.rising) == (2, [])


def test_sizes_that_never_memorize_are_named(store):
    onset_study(store, lambda size: 40 * size if size < 32 else 1e9)
    assert results(store)[3].reason.endswith("without copies, and left out: N = 32")


def test_trainings_that_still_rise_are_named():
    assert collapse(points(lambda step, size: logistic(step, 200 * size))).rising == [8, 16, 32]


# --- the loss gap --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "expected"), [(0.1, HOLDS), (1e6, FAILS)])
def test_a_loss_gap_before_or_after_the_copies(store, factor, expected):
    onset_study(store, lambda size: 40 * size, gap=lambda size: factor * 40 * size)
    gap = results(store)[4]
    assert (gap.verdict, gap.models) == (expected, 3)
    assert (gap.value > 1) == (expected == HOLDS)


def test_the_factor_is_the_geometric_mean_over_models_with_student_s_interval(store):
    study = onset_study(store, lambda size: 40 * size, gap=lambda size: 4 * size)
    found = results(store)[4]
    logs = []
    for entry in study.cells:
        size, steps = entry.cell.P.size, [step for _, step in entry.cell.checkpoints]
        copies = [round(500 * logistic(step, 40 * size)) for step in steps]
        wilson = [stats.binomtest(count, 500).proportion_ci(method="wilson").low for count in copies]
        first = next(i for i in range(15) if wilson[i] > 0.01 and wilson[i + 1] > 0.01)
        lows = [logistic(step, 4 * size) - 0.02 for step in steps]
        gap = next(i for i in range(15) if lows[i] > 0.1 and lows[i + 1] > 0.1)
        logs.append(math.log(steps[first] / steps[gap]))
    interval = stats.t.interval(0.95, 2, np.mean(logs), stats.sem(logs))
    assert found.value == pytest.approx(math.exp(np.mean(logs)))
    assert found.interval == pytest.approx(tuple(map(math.exp, interval)))


def test_models_without_gap_and_copies_are_counted(store):
    onset_study(store, lambda size: 40 * size if size < 32 else 1e9, gap=lambda size: 4 * size if size < 32 else 1e9)
    assert results(store)[4].reason == "1 of 3 models have neither"


# --- two halves ----------------------------------------------------------------------------------------

HALVES = """
[P]
dataset = "digits"
[M]
channel_mult = [2, 2]
[score]
every = 1000000
[[axes]]
P.size = [8, 128]
[[axes]]
P.half = ["a", "b"]
[[axes]]
P.draw = [0, 1]
"""


def halves_study(store: Store, similarity: dict[int, float], *, draws: str = "[0, 1]") -> None:
    """Put a study into the store whose halves have images so alike at each size."""
    text = HALVES.replace("[0, 1]", draws)
    study = replace(Study.load(tiny.write(store.path.parent, text, "two_halves")), name="two_halves@laptop")
    with tiny.at_once(store):
        _fill_halves(store, study, similarity)


def _fill_halves(store: Store, study: Study, similarity: dict[int, float]) -> None:
    tiny.register(store, study)
    cells = {(e.cell.P.size, e.cell.P.draw, e.cell.P.half): e.cell for e in study.cells}
    for (size, draw, half), cell in cells.items():
        tiny.measure(store, cell, [0.5])
        if half == "b":
            continue
        random = np.random.default_rng([size, int(draw)])
        alike = np.clip(similarity[size] + 0.01 * draw + random.normal(0, 0.02, 100), -1, 1)
        null, none = np.full(100, 0.3), np.full(100, np.nan)
        nearest = 1.2 - alike / 2
        found = HalfPairs(alike, 0.1 * (1 - alike), null, null, nearest.clip(0, 1), nearest.clip(0, 1), none, none)
        other = cells[size, draw, "b"]
        store.add_halves(cell.cell_id, other.cell_id, cell.checkpoints[-1][0], "centred pixels", found)


def test_agreement_that_rises_with_n_holds(store):
    halves_study(store, {8: 0.4, 128: 0.97})
    agree, reproducible, general = results(store, "two_halves")
    assert [each.verdict for each in (agree, reproducible, general)] == [HOLDS] * 3
    assert agree.value == pytest.approx(0.57, abs=0.01)
    assert agree.models == 8
    assert agree.reason.startswith("0.40")
    assert agree.reason.endswith("at N = 128; null 0.300 and 0.300")


def test_agreement_that_falls_does_not_hold_and_one_that_stays_cannot_tell(store):
    halves_study(store, {8: 0.9, 128: 0.4})
    assert results(store, "two_halves")[0].verdict == FAILS
    halves_study(store, {8: 0.4, 128: 0.4})
    assert results(store, "two_halves")[0].verdict == UNKNOWN


def test_one_pair_of_models_is_said_to_have_the_noise_of_latents_alone(store):
    halves_study(store, {8: 0.4, 128: 0.9}, draws="[0]")
    agree, *_ = results(store, "two_halves")
    assert agree.reason.endswith("; one pair of models: the noise of latents only")


def test_models_that_are_not_trained_cannot_tell(store):
    halves_study(store, {8: 0.4, 128: 0.9})
    with store.writing() as connection:
        connection.execute("UPDATE checkpoints SET step = 0")
    assert {(each.verdict, each.reason) for each in results(store, "two_halves")} == {
        (UNKNOWN, "its models are not trained, and this is about those that are")
    }


def test_halves_of_several_curves_cannot_tell(store):
    halves_study(store, {8: 0.4, 128: 0.9})
    with store.writing() as connection:
        connection.execute("UPDATE study_cells SET curve = CASE WHEN position < 4 THEN 'one' ELSE 'two' END")
    assert {each.reason for each in results(store, "two_halves")} == {
        "the study has 2 curves with halves, and this is about one"
    }


def test_halves_that_are_not_compared_cannot_tell(store):
    halves_study(store, {8: 0.4, 128: 0.9})
    with store.writing() as connection:
        connection.execute("DELETE FROM halves")
    assert {each.reason for each in results(store, "two_halves")} == {
        "fewer than two sizes have halves compared: `diffmem halves` does it"
    }


def test_a_rise_has_newcombe_s_interval():
    value, interval = rise(
        [SizeMean(8, 1, 0.2, 0.15, 0.28), SizeMean(16, 1, 0.4, 0, 1), SizeMean(32, 1, 0.7, 0.6, 0.77)]
    )
    assert value == pytest.approx(0.5)
    assert interval == pytest.approx((0.5 - math.hypot(0.1, 0.08), 0.5 + math.hypot(0.07, 0.05)))


# --- shown ---------------------------------------------------------------------------------------------


def test_findings_of_other_papers_are_printed_and_on_the_page(store):
    onset_study(store, lambda size: 40 * size)
    arguments = ("findings", "--profile", "laptop", "--store", store.path)
    listed = " ".join(tiny.here(*arguments, COLUMNS="80").stdout.split())
    assert (
        "Findings of other papers holds Memorization begins after a time in proportion to N (Bonnaire et al." in listed
    )
    assert "- slope of log tau_mem against log N: 1" in listed
    assert "claimed 0.8 to 1.2; digits at 8x8, N = 8 to 32, ddpm++ of width 128, 4,000 steps; 3 models" in listed
    rows = json.loads(tiny.here(*arguments, "--json").stdout)
    assert {row["source"] for row in rows if row["number"]} == {"Gu et al. 2023"}
    others = [row for row in rows if row["number"] is None]
    assert [row["verdict"] for row in others] == [each.verdict for each in check_other_papers(store, "laptop")]
    assert others[0]["claims"][0]["within"] == [0.8, 1.2]
    _, table = tiny.here(*arguments, "--markdown").stdout.strip().split("\n\n")
    assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "| Bonnaire et al. 2025 | Memorization begins after a time in proportion to N | holds |" in table
    page = render_page(store, ["onset@laptop"])
    assert "Beside other papers" in page
    assert "Memorization begins after a time in proportion to N" in page

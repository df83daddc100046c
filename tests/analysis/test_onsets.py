"""Onsets: planted logistic trainings are recovered, bounds are said, and slopes are those of least squares."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from scipy import special, stats

from diffmem.analysis.onsets import Onset, Slope, model_onsets, onsets_of, quality_onset, slope_of, space_of
from diffmem.measures import QualityValue, wilson
from diffmem.store.quality_rows import StudyQuality
from diffmem.store.rows import Point
from diffmem.store.store import Store

STEPS = np.round(np.geomspace(20, 20_000, 16)).astype(int)


def logistic(middle: float, steepness: float, steps: np.ndarray = STEPS) -> np.ndarray:
    """Return the ratio of a training that is half of 1 at `middle`; its log-odds are linear in log step."""
    ratio: np.ndarray = 1 / (1 + (np.asarray(steps) / middle) ** -steepness)
    return ratio


def at_ratio(ratio: float, middle: float, steepness: float) -> float:
    """Return the step at which a planted training has a ratio."""
    return float(middle * (ratio / (1 - ratio)) ** (1 / steepness))


def points(size: int, ratios: np.ndarray, *, position: int, samples: int = 500, curve: str = "") -> list[Point]:
    return [
        Point(position, curve, size, "0", 0, f"cell {position}", int(step), int(step), samples, float(ratio), None)
        for step, ratio in zip(STEPS, ratios, strict=True)
    ]


# --- one model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steepness", [2.0, 4.0])
def test_onsets_of_a_planted_training_of_many_images_are_where_it_has_the_ratio(steepness):
    ratios = logistic(2000, steepness)
    found = model_onsets(STEPS.tolist(), ratios.tolist(), [10**7] * 16)
    assert found.mem.value == pytest.approx(at_ratio(0.01, 2000, steepness), rel=1e-3)
    assert found.half.value == pytest.approx(at_ratio(ratios[-1] / 2, 2000, steepness), rel=1e-3)


def test_the_interval_has_the_planted_onset_in_95_of_100_trainings():
    generator, steepness, n, trials = np.random.default_rng(7), 3.0, 500, 300
    truth = at_ratio(0.01, 2000, steepness), at_ratio(logistic(2000, steepness)[-1] / 2, 2000, steepness)
    inside = np.zeros(2)
    for _ in range(trials):
        ratios = generator.binomial(n, logistic(2000, steepness)) / n
        found = model_onsets(STEPS.tolist(), ratios.tolist(), [n] * 16)
        for which, (onset, true) in enumerate(zip((found.mem, found.half), truth, strict=True)):
            assert onset.value is not None
            inside[which] += (onset.low or 0) <= true <= (onset.high or math.inf)
    # of 300 trainings, 95% have a standard deviation of 1.3%
    assert inside / trials == pytest.approx(0.95, abs=0.035)


def test_a_rise_that_the_next_checkpoint_does_not_confirm_is_no_onset():
    steps, n = [10, 20, 40, 80, 160], [500] * 5
    once, twice = [0.0, 0.05, 0.0, 0.0, 0.0], [0.0, 0.05, 0.05, 0.0, 0.0]
    assert model_onsets(steps, once, n).mem == Onset(None, lower=160.0)
    mem = model_onsets(steps, twice, n).mem
    assert mem.value is not None
    assert 10 < mem.value < 20


def test_the_checkpoint_counts_whose_wilson_interval_is_above_the_level():
    steps = [10, 20, 40, 80]
    few, enough = 10 / 500, 11 / 500
    assert wilson(few, 500)[0] < 0.011 < wilson(enough, 500)[0]
    assert model_onsets(steps, [0.0, few, few, few], [500] * 4, level=0.011).mem.value is None
    assert model_onsets(steps, [0.0, enough, enough, enough], [500] * 4, level=0.011).mem.value is not None


def test_a_training_that_never_memorizes_has_its_onsets_after_its_last_checkpoint():
    found = model_onsets([10, 20, 40], [0.0, 0.0, 0.0], [500] * 3)
    assert (str(found.mem), str(found.half), found.mem.interval) == ("> 40", "> 40", "-")


def test_an_onset_that_only_the_last_checkpoint_has_is_after_the_one_before():
    assert str(model_onsets([10, 20, 40], [0.0, 0.0, 0.9], [500] * 3).mem) == "> 20"


def test_half_of_the_last_ratio_needs_no_other_checkpoint_to_confirm_it():
    found = model_onsets([10, 20, 40], [0.0, 0.0, 0.9], [100_000] * 3)
    assert str(found.mem) == "> 20"
    odds = special.logit([0.5 / 100_001, 90_000.5 / 100_001])
    share = (special.logit(special.expit(odds[1]) / 2) - odds[0]) / (odds[1] - odds[0])
    assert found.half.value == pytest.approx(20 * 2**share)


def test_a_training_that_memorizes_from_its_first_checkpoint_on_has_its_onset_before():
    found = model_onsets([10, 20, 40], [0.9, 1.0, 1.0], [500] * 3)
    assert (str(found.mem), str(found.half)) == ("< 10", "< 10")


def test_a_single_checkpoint_tells_no_onset():
    assert str(model_onsets([10], [0.9], [500]).mem) == "unknown"
    assert str(model_onsets([10], [0.0], [500]).mem) == "> 10"


def test_an_end_of_an_interval_that_the_checkpoints_do_not_bound_is_open():
    mem = model_onsets([10, 20, 40], [0.008, 0.6, 1.0], [500] * 3).mem
    assert mem.value is not None
    assert (mem.low, mem.interval.partition(" to ")[0]) == (None, "?")


# --- models of several sizes ---------------------------------------------------------------------------


def test_the_slope_and_its_interval_are_those_of_least_squares():
    known = [(8, 100.0), (8, 140.0), (16, 260.0), (32, 420.0), (64, 1100.0)]
    x, y = np.log([each[0] for each in known]), np.log([each[1] for each in known])
    reference = stats.linregress(x, y)
    width = stats.t.ppf(0.975, 3) * reference.stderr
    found = slope_of(known)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx(
        (reference.slope, reference.slope - width, reference.slope + width)
    )
    assert found.models == 5


def test_two_models_have_a_slope_without_an_interval_and_one_size_has_none():
    found = slope_of([(8, 100.0), (16, 200.0)])
    assert found is not None
    assert (found.value, found.low, str(found)) == (pytest.approx(1.0), None, "1.00")
    assert slope_of([(8, 100.0), (8, 200.0)]) is None
    assert slope_of([]) is None


def test_a_slope_that_rounds_to_0_has_no_sign():
    assert str(Slope(-1e-17, -0.004, 0.004, 4)) == "0.00 (95%: 0.00 to 0.00)"
    assert str(Slope(-0.006, -0.01, 0.004, 4)) == "-0.01 (95%: -0.01 to 0.00)"


def test_an_onset_in_proportion_to_the_size_has_the_slope_1():
    generator, n = np.random.default_rng(0), 2000
    found = [
        points(size, generator.binomial(n, logistic(60 * size, 4.0)) / n, position=place, samples=n)
        for place, size in enumerate([8, 16, 32, 64])
    ]
    (curve,) = onsets_of([point for own in found for point in own])
    assert curve.slope is not None
    assert (curve.slope.low or 0) < 1 < (curve.slope.high or 0)
    assert curve.slope.value == pytest.approx(1, abs=0.15)
    assert [each.size for each in curve.sizes] == [8, 16, 32, 64]


def test_onsets_of_draws_are_averaged_on_a_log_scale_with_students_t_over_all_sizes():
    planted = {8: [400.0, 500.0], 32: [1500.0, 2200.0, 1800.0]}
    found, place = [], 0
    for size, middles in planted.items():
        for middle in middles:
            found += points(size, logistic(middle, 4.0), position=place, samples=10**7)
            place += 1
    (curve,) = onsets_of(found)
    logs = {size: np.log([at_ratio(0.01, middle, 4.0) for middle in middles]) for size, middles in planted.items()}
    pooled = sum(((each - each.mean()) ** 2).sum() for each in logs.values()) / 3
    for each in curve.sizes:
        mean, count = logs[each.size].mean(), len(logs[each.size])
        width = stats.t.ppf(0.975, 3) * math.sqrt(pooled / count)
        expected = np.exp([mean, mean - width, mean + width])
        assert (each.mem.value, each.mem.low, each.mem.high) == pytest.approx(expected, rel=1e-3)
        assert each.cells == count


def test_a_size_of_which_a_draw_has_no_onset_has_a_bound_and_is_left_out_of_the_slope():
    never = np.zeros(16)
    found = points(8, logistic(400, 4.0), position=0) + points(16, logistic(2000, 4.0), position=1)
    found += points(16, never, position=2) + points(32, never, position=3)
    (curve,) = onsets_of(found)
    mems = {each.size: each.mem for each in curve.sizes}
    assert mems[16].value is None
    assert mems[16].lower == pytest.approx(math.sqrt(at_ratio(0.01, 2000, 4.0) * 20_000), rel=0.1)
    assert str(mems[32]) == "> 20000"
    assert curve.left_out == [16, 32]
    assert curve.slope is not None
    assert curve.slope.models == 2


def test_curves_have_onsets_of_their_own_and_models_without_steps_have_none():
    found = points(8, logistic(400, 4.0), position=0, curve="a") + points(8, logistic(800, 4.0), position=1, curve="b")
    optimum = Point(2, "c", 8, "0", 0, "cell", 0, 0, 500, 1.0, None)
    assert [curve.label for curve in onsets_of([*found, optimum])] == ["a", "b"]


# --- the command ---------------------------------------------------------------------------------------

SIZES = "\n[[axes]]\nP.size = [8, 16, 32]\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return a store of a study whose onset is in proportion to N."""
    text = tiny.TEXT.partition("[[axes]]")[0].replace("epochs = 30 ", "steps = 20000 ")
    text += "[score]\nsamples = 1000\npoints = 16\nsteps = 3\n" + SIZES
    store, study = Store(tmp_path / "store.duckdb"), tiny.load(tmp_path, text)
    tiny.register(store, study)
    for entry in study.cells:
        steps = np.array([step for _, step in entry.cell.checkpoints])
        tiny.measure(
            store, entry.cell, logistic(60 * entry.cell.P.size, 4.0, steps).tolist(), samples=1000, epoch_steps=1
        )
    return store


def test_the_command_tells_onsets_and_their_slope(store):
    result = tiny.here("onset", "tiny", "--store", store.path)
    assert result.returncode == 0, result.stderr
    assert "tiny: steps until memorization ratio > 0.01" in result.stdout
    assert "all cells: tau_mem grows as N to the power 1.0" in result.stdout
    shown = json.loads(tiny.here("onset", "tiny", "--store", store.path, "--json").stdout)
    (curve,) = shown["curves"]
    for each in curve["sizes"]:
        assert each["mem"]["value"] == pytest.approx(at_ratio(0.01, 60 * each["size"], 4.0), rel=0.35)
        assert each["half"]["value"] == pytest.approx(60 * each["size"], rel=0.1)
    assert (shown["level"], curve["left_out"]) == (0.01, [])


def test_the_command_takes_another_level(store):
    shown = json.loads(tiny.here("onset", "tiny", "--store", store.path, "--level", "0.2", "--json").stdout)
    for each in shown["curves"][0]["sizes"]:
        assert each["mem"]["value"] == pytest.approx(at_ratio(0.2, 60 * each["size"], 4.0), rel=0.1)


def test_the_command_says_what_has_no_onset(store):
    with store.writing() as connection:
        connection.execute("UPDATE checkpoints SET memorized = 0, ratio = 0 WHERE cell_id IN "
                           "(SELECT cell_id FROM results WHERE size = 32)")  # fmt: skip
    result = tiny.here("onset", "tiny", "--store", store.path)
    assert "> 20000" in result.stdout
    assert "all cells: without an onset between checkpoints: N = 32" in result.stdout


def test_a_study_with_nothing_measured_has_no_onset(tmp_path):
    store = Store(tmp_path / "store.duckdb")
    tiny.register(store, tiny.load(tmp_path, tiny.TEXT))
    result = tiny.here("onset", "tiny", "--store", store.path)
    assert (result.returncode, "no checkpoint after an optimizer step is measured" in result.stdout) == (0, True)
    assert "2 of 2 cells are not finished" in result.stdout


def test_the_command_says_where_the_ratio_still_rises_at_the_last_checkpoint(store):
    assert "still rises" not in tiny.here("onset", "tiny", "--store", store.path).stdout
    with store.writing() as connection:
        connection.execute("DELETE FROM checkpoints WHERE step > 2000")
        connection.execute("DELETE FROM evidence WHERE epoch > 2000")
    result = tiny.here("onset", "tiny", "--store", store.path)
    # from the last but one, step 1262, to the last, step 2000, planted ratios rise by more than noise at all N
    said = " ".join(result.stdout.split())
    assert "all cells: the ratio still rises at the last checkpoint at N = 8, 16, 32, so that tau_half is later" in said
    assert "3 of 3 cells are not finished" in result.stdout


def test_onsets_are_exported(store):
    rows = json.loads(tiny.here("export", "onsets", "--store", store.path, "--json").stdout)
    shown = json.loads(tiny.here("onset", "tiny", "--store", store.path, "--json").stdout)["curves"][0]
    assert [row["tau_mem_value"] for row in rows] == [each["mem"]["value"] for each in shown["sizes"]]
    assert [row["tau_half_high95"] for row in rows] == [each["half"]["high"] for each in shown["sizes"]]
    assert {row["slope"] for row in rows} == {shown["slope"]["value"]}


def test_a_page_shows_the_onset_against_the_size(store, tmp_path):
    page = tmp_path / "page.html"
    assert tiny.here("report", "tiny", "--store", store.path, "-o", page).returncode == 0
    assert "Onset of memorization against the number of training images" in page.read_text()


# --- tau_gen -------------------------------------------------------------------------------------------


def distances(size: int, values: list[float], *, position: int, **more: object) -> list[StudyQuality]:
    """Return Frechet distances to held-out images at the first steps, with intervals of +- 1%."""
    about = {"space": "pixels", "quantity": "frechet_distance", "against": "held_out", "n": 500, "real": 500}
    place = {"position": position, "curve": "", "name": "", "size": size, "cell_id": "", "ratio": 0.0}
    return [
        StudyQuality(
            **{**about, **place, "dimensions": 64, "null": None, "null_n": 0, **more},
            value=value,
            low=value * 0.99,
            high=value * 1.01,
            step=int(step),
            epoch=int(step),
        )
        for step, value in zip(STEPS, values, strict=False)
    ]


def falling(middle: float, floor: float = 100.0) -> list[float]:
    """Return distances that fall towards a floor, of which they are 1.1 times at `middle`."""
    return [floor * (1 + 0.1 * (middle / step) ** 2) for step in STEPS]


def test_tau_gen_is_the_first_checkpoint_within_a_tenth_of_the_least_distance():
    found, falls = quality_onset([10, 20, 40, 80, 160], [(d, d, d) for d in (400.0, 111.0, 110.0, 100.0, 300.0)])
    assert (found, falls) == (Onset(40.0, None, None, 20.0, 40.0), False)  # it became good between 20 and 40


def test_tau_gen_is_a_bound_where_the_first_or_only_the_last_checkpoint_is_good():
    assert quality_onset([10, 20, 40], [(d, d, d) for d in (100.0, 105.0, 300.0)]) == (Onset(None, None, 10.0), False)
    assert quality_onset([10, 20, 40], [(d, d, d) for d in (300.0, 200.0, 100.0)]) == (Onset(None, 20.0), True)
    assert quality_onset([10], [(3.0, 2.0, 4.0)]) == (Onset(None, None, 10.0), False)


def test_a_distance_still_falls_where_the_last_one_is_below_the_interval_of_the_one_before():
    rest = [(400.0, 390.0, 410.0), (300.0, 290.0, 310.0), (101.0, 96.0, 106.0)]
    assert not quality_onset([10, 20, 40, 80], [*rest, (100.0, 95.0, 105.0)])[1]
    assert quality_onset([10, 20, 40, 80], [*rest, (90.0, 85.0, 95.0)])[1]


def test_the_interval_of_tau_gen_has_the_planted_checkpoint_in_most_trainings():
    """Of noisy distances, 5% of each; the planted first checkpoint is that of distances without noise."""
    truth = np.array(falling(600.0))
    planted = STEPS[np.argmax(truth <= 1.1 * truth.min())]
    generator, inside = np.random.default_rng(3), []
    for _ in range(200):
        noisy = truth * (1 + 0.05 * generator.standard_normal(len(truth)))
        found, _ = quality_onset(STEPS.tolist(), [(d, d * (1 - 0.098), d * (1 + 0.098)) for d in noisy])
        inside.append((found.low or 0) <= planted <= (found.high or math.inf))
    assert np.mean(inside) >= 0.9


def test_tau_gen_of_models_is_beside_their_onset_and_absent_where_the_quality_is_not_measured():
    middles = {8: 400.0, 32: 1600.0, 64: 3200.0}
    found, quality = [], []
    for place, (size, middle) in enumerate(middles.items()):
        found += points(size, logistic(middle, 4.0), position=place, samples=10**7)
        quality += distances(size, falling(600.0), position=place) if size != 64 else []
        quality += distances(size, falling(100.0), position=place, against="training")
    (curve,) = onsets_of(found, quality=quality)
    good = [float(STEPS[np.argmax(np.array(falling(600.0)) <= 1.1 * min(falling(600.0)))])] * 2
    assert [each.gen and each.gen.value for each in curve.sizes] == [*good, None]
    assert [each.gen_cells for each in curve.sizes] == [1, 1, 0]
    assert curve.gen_slope is not None
    assert curve.gen_slope.value == pytest.approx(0, abs=1e-9)
    assert curve.slope is not None
    assert curve.slope.value == pytest.approx(1, abs=0.02)
    (without,) = onsets_of(found)
    assert [each.gen for each in without.sizes] == [None] * 3
    assert without.sizes[0].mem == curve.sizes[0].mem


def test_a_tau_gen_that_is_the_same_checkpoint_for_all_is_known_to_a_checkpoint_and_so_is_its_slope():
    found, quality = [], []
    for place, size in enumerate([8, 8, 32, 32]):
        found += points(size, logistic(400.0, 4.0), position=place, samples=10**7)
        quality += distances(size, falling(600.0), position=place)
    (curve,) = onsets_of(found, quality=quality)
    at = int(np.argmax(np.array(falling(600.0)) <= 1.1 * min(falling(600.0))))
    for each in curve.sizes:
        assert (each.gen.low, each.gen.high) == pytest.approx((STEPS[at - 1], STEPS[at]))
    step = np.log(STEPS[at] / STEPS[at - 1]) / np.log(32 / 8)
    assert (curve.gen_slope.low, curve.gen_slope.high) == pytest.approx((-step, step))


def test_tau_gen_is_by_pixels_only_if_there_is_no_other_space():
    quality = distances(8, falling(600.0), position=0) + distances(8, falling(80.0), position=0, space="sscd")
    assert (space_of(quality), space_of(quality[: len(STEPS)]), space_of([])) == ("sscd", "pixels", "")
    (curve,) = onsets_of(points(8, logistic(400, 4.0), position=0), quality=quality)
    assert curve.sizes[0].gen is not None
    assert (
        curve.sizes[0].gen.value == 80.0
    )  # of which 1.1 times the least distance, a little above 100, is more than 110


def with_quality(store: Store, middle: float = 600.0) -> None:
    """Add falling distances to the checkpoints of the two smaller sizes of the study."""
    for row in store.rows(
        "SELECT cell_id, epoch, step FROM results JOIN checkpoints USING (cell_id, epoch) WHERE size < 32"
    ):
        value = 100 * (1 + 0.1 * (middle / row["step"]) ** 2)
        numbers = value, value * 0.99, value * 1.01, 500, 500, 64, 90.0, 400
        store.add_quality(
            row["cell_id"],
            row["epoch"],
            [QualityValue("pixels", "frechet_distance", "held_out", *numbers)],
        )


def test_the_command_says_that_there_is_no_tau_gen_without_a_quality(store):
    result = tiny.here("onset", "tiny", "--store", store.path)
    said = " ".join(result.stdout.split())
    assert 'no tau_gen: the quality is not measured; a run measures it with score.measures = ["quality"]' in said
    shown = json.loads(tiny.here("onset", "tiny", "--store", store.path, "--json").stdout)
    assert shown["space"] is None
    assert [each["gen"] for each in shown["curves"][0]["sizes"]] == [None] * 3
    (row, *_) = json.loads(tiny.here("export", "onsets", "--store", store.path, "--json").stdout)
    assert (row["tau_gen"], row["tau_gen_value"], row["gen_space"], row["gen_cells"]) == (None, None, None, 0)


def test_the_command_the_export_and_the_page_have_tau_gen(store, tmp_path):
    with_quality(store)
    result = tiny.here("onset", "tiny", "--store", store.path, COLUMNS="160")
    said = " ".join(result.stdout.split())
    assert "all cells: tau_gen grows as N to the power 0.00" in said
    assert "tau_gen is by the Frechet distance to held-out images (pixels)" in said
    assert "still falls" not in said
    shown = json.loads(tiny.here("onset", "tiny", "--store", store.path, "--json").stdout)
    sizes = shown["curves"][0]["sizes"]
    assert shown["space"] == "pixels"
    assert sizes[0]["gen"]["value"] == sizes[1]["gen"]["value"] > 500
    assert sizes[2]["gen"] is None
    rows = json.loads(tiny.here("export", "onsets", "--store", store.path, "--json").stdout)
    assert [row["tau_gen_value"] for row in rows] == [each["gen"] and each["gen"]["value"] for each in sizes]
    assert [row["tau_gen_high95"] for row in rows] == [each["gen"] and each["gen"]["high"] for each in sizes]
    assert {row["gen_slope"] for row in rows} == {shown["curves"][0]["gen_slope"]["value"]}
    page = tmp_path / "page.html"
    assert tiny.here("report", "tiny", "--store", store.path, "-o", page).returncode == 0
    assert "tau_gen, open circles" in page.read_text()
    assert "tau_gen: all cells, slope" in page.read_text()


def test_the_command_says_of_which_sizes_there_is_no_tau_gen_and_where_the_distance_still_falls(store):
    with_quality(store, middle=10.0)
    result = tiny.here("onset", "tiny", "--store", store.path, COLUMNS="160")
    assert "all cells: without a tau_gen between checkpoints: N = 8, 16" in result.stdout
    with store.writing() as connection:
        connection.execute("DELETE FROM quality")
    with_quality(store, middle=10**6)
    said = " ".join(tiny.here("onset", "tiny", "--store", store.path, COLUMNS="160").stdout.split())
    assert (
        "all cells: the distance to held-out images still falls at the last checkpoint at N = 8, 16, so that tau_gen "
        "may be later with more steps"
    ) in said

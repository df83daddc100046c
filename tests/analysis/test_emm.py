"""The EMM of a curve: interpolation, bounds, replicates, and curves against Hypothesis 1."""

import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from diffmem.analysis.emm import Estimate, bands, emm_interval, estimate_emm, next_size, ratio_intervals, still_rises
from diffmem.analysis.emm import bracket as around
from diffmem.runs.search import enough

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=100)
SIZES = [1000, 2000, 4000, 8000]


# --- known curves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "epsilon", "value", "bracket"),
    [
        ([1.0, 0.95, 0.45, 0.0], 0.1, 2000 + 0.05 / 0.50 * 2000, (2000, 4000)),
        ([1.0, 0.80, 0.40, 0.0], 0.1, 1500, (1000, 2000)),
        ([1.0, 1.0, 1.0, 0.6], 0.1, 5000, (4000, 8000)),
        ([1.0, 0.75, 0.25, 0.0], 0.5, 3000, (2000, 4000)),
        ([0.96, 0.91, 0.87, 0.5], 0.1, 2500, (2000, 4000)),
    ],
)
def test_value_lies_on_the_line_between_the_sizes_around_it(ratios, epsilon, value, bracket):
    estimate = estimate_emm(SIZES, ratios, epsilon=epsilon)
    assert estimate.value == pytest.approx(value, rel=1e-9)
    assert (estimate.lower, estimate.upper) == bracket
    assert estimate.note == ""


def test_epsilon_is_a_tenth_by_default():
    assert estimate_emm([1, 2], [1, 0.5]) == estimate_emm([1, 2], [1, 0.5], epsilon=0.1)


# --- bounds --------------------------------------------------------------------------------------------


def test_a_curve_above_the_line_gives_a_lower_bound():
    estimate = estimate_emm(SIZES, [1.0, 0.99, 0.98, 0.95])
    assert estimate == (None, 8000, None, "the largest size is above the line")


def test_a_curve_below_the_line_gives_an_upper_bound():
    estimate = estimate_emm(SIZES, [0.89, 0.5, 0.2, 0.0])
    assert estimate == (None, None, 1000, "no size reaches the line")


@pytest.mark.parametrize(("ratio", "lower", "upper"), [(1.0, 500, None), (0.2, None, 500)])
def test_one_size_gives_a_bound(ratio, lower, upper):
    estimate = estimate_emm([500], [ratio])
    assert (estimate.value, estimate.lower, estimate.upper) == (None, lower, upper)


# --- curves that rise ----------------------------------------------------------------------------------


def test_the_last_size_above_the_line_decides():
    estimate = estimate_emm(SIZES, [0.95, 0.5, 0.95, 0.85])
    assert estimate.value == pytest.approx(6000)
    assert (estimate.lower, estimate.upper) == (4000, 8000)
    assert "rises with N from 2000 to 4000" in estimate.note
    assert "Hypothesis 1" in estimate.note


def test_a_curve_that_ends_above_the_line_after_a_dip_gives_a_lower_bound():
    estimate = estimate_emm(SIZES, [1.0, 0.5, 0.8, 0.95])
    assert (estimate.value, estimate.lower, estimate.upper) == (None, 8000, None)
    assert "the largest size is above the line" in estimate.note
    assert "rises with N from 2000 to 4000 (0.500 to 0.800), 4000 to 8000 (0.800 to 0.950), against" in estimate.note


def test_a_rise_below_the_line_is_noted_and_changes_no_value():
    estimate = estimate_emm(SIZES, [1.0, 0.8, 0.1, 0.2])
    assert estimate.value == pytest.approx(1500)
    assert "4000 to 8000" in estimate.note


# --- ties, replicates, order ---------------------------------------------------------------------------


def test_a_size_exactly_at_the_line_is_the_value():
    estimate = estimate_emm(SIZES, [1.0, 0.9, 0.5, 0.0])
    assert (estimate.value, estimate.lower, estimate.upper) == (2000, 2000, 4000)


def test_a_plateau_at_the_line_counts_to_its_end():
    assert estimate_emm(SIZES, [1.0, 0.9, 0.9, 0.0]).value == 4000


def test_the_largest_size_exactly_at_the_line_is_a_lower_bound():
    assert estimate_emm(SIZES, [1.0, 1.0, 1.0, 0.9])[:3] == (None, 8000, None)


def at_the_line(sizes, ratios, *, epsilon=0.1):
    """Tell whether the first of two sizes is read as lying on the line, and the second one as below it."""
    estimate = estimate_emm(sizes, ratios, epsilon=epsilon)
    bracket = (estimate.lower, estimate.upper) == (1000, 2000)
    return bracket and estimate.value == pytest.approx(1000) and 1000 <= estimate.value <= 2000


def test_a_ratio_of_one_less_epsilon_is_at_the_line_whatever_its_rounding():
    """1 - 0.7 is 0.30000000000000004 in floating point; a share of 3,000 in 10,000 images is 0.3."""
    off = [e for e in range(1, 100) if not at_the_line([1000, 2000], [(100 - e) / 100, 0.0], epsilon=e / 100)]
    assert off == []


def test_replicates_whose_mean_is_at_the_line_are_at_the_line_whatever_its_rounding():
    triples = [(a, b, 270 - a - b) for a in range(80, 101) for b in range(80, 101) if 80 <= 270 - a - b <= 100]
    off = [t for t in triples if not at_the_line([1000] * 3 + [2000], [*(r / 100 for r in t), 0.0])]
    assert off == []


def test_replicates_are_averaged():
    replicated = estimate_emm([1000, 1000, 2000, 2000, 2000], [1.0, 0.9, 0.9, 0.6, 0.6])
    assert replicated.value == pytest.approx(1000 + 0.05 / 0.25 * 1000)
    assert (replicated.lower, replicated.upper) == (1000, 2000)


def test_points_may_come_in_any_order():
    ratios = [1.0, 0.95, 0.45, 0.0]
    order = [2, 0, 3, 1]
    shuffled = estimate_emm([SIZES[i] for i in order], [ratios[i] for i in order])
    assert shuffled == estimate_emm(SIZES, ratios)


def test_arrays_are_as_good_as_lists():
    assert estimate_emm(np.array([1000, 2000]), np.array([1.0, 0.5])) == estimate_emm([1000, 2000], [1.0, 0.5])


# --- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "ratios"), [([], []), ([1000], []), ([1000, 2000], [0.5]), ([1000], [0.5, 0.4])])
def test_unequal_or_no_points_are_refused(sizes, ratios):
    with pytest.raises(ValueError, match="equally many"):
        estimate_emm(sizes, ratios)


@pytest.mark.parametrize("ratio", [-0.01, 1.01, 95, math.nan, math.inf])
def test_a_ratio_outside_0_to_1_is_refused(ratio):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        estimate_emm([1000, 2000], [1.0, ratio])


# --- as text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(2200.4, 2000, 4000, ""), "2200"),
        (Estimate(99.96, 50, 100, ""), "100.0"),
        (Estimate(12.34, 8, 16, ""), "12.3"),
        (Estimate(None, 8000.0, None, "why"), ">= 8000"),
        (Estimate(None, None, 500.0, "why"), "< 500"),
        (Estimate(None, None, None, "why"), "unknown"),
    ],
)
def test_text_form_is_short(estimate, text):
    assert str(estimate) == text


# --- any curve -----------------------------------------------------------------------------------------

curves = st.lists(
    st.tuples(st.integers(1, 100_000), st.integers(0, 10_000)),
    min_size=1,
    max_size=12,
    unique_by=lambda point: point[0],
)
epsilons = st.floats(0.01, 0.99)


@deterministic
@given(curves, epsilons)
def test_value_lies_within_its_bracket_of_neighbouring_sizes(points, epsilon):
    sizes, ratios = [n for n, _ in points], [r / 10_000 for _, r in points]
    estimate = estimate_emm(sizes, ratios, epsilon=epsilon)
    ordered = sorted(sizes)
    if estimate.value is None:
        assert (estimate.lower is None) != (estimate.upper is None)
        assert estimate.lower in (None, ordered[-1])
        assert estimate.upper in (None, ordered[0])
        assert estimate.note
    else:
        assert estimate.lower <= estimate.value <= estimate.upper
        assert ordered.index(estimate.upper) == ordered.index(estimate.lower) + 1
        ratio = dict(zip(sizes, ratios, strict=True))
        assert ratio[estimate.lower] >= 1 - epsilon - 1e-9
        assert all(ratio[n] < 1 - epsilon for n in ordered if n >= estimate.upper)


@deterministic
@given(curves, epsilons)
def test_falling_curves_are_read_as_numpy_interpolates_them(points, epsilon):
    sizes = np.array(sorted(n for n, _ in points), dtype=float)
    ratios = np.array(sorted({r for _, r in points}, reverse=True)) / 10_000
    assume(len(sizes) == len(ratios) and ratios[0] > 1 - epsilon > ratios[-1])
    expected = np.interp(1 - epsilon, ratios[::-1], sizes[::-1])
    estimate = estimate_emm(sizes, ratios, epsilon=epsilon)
    assert estimate.value == pytest.approx(expected, rel=1e-9)
    assert estimate.note == ""


@deterministic
@given(curves, epsilons, st.randoms(use_true_random=False))
def test_repeating_and_shuffling_points_changes_nothing(points, epsilon, random):
    twice = [(n, r / 10_000) for n, r in points] * 2
    once = estimate_emm(*zip(*twice[: len(points)], strict=True), epsilon=epsilon)
    random.shuffle(twice)
    assert estimate_emm(*zip(*twice, strict=True), epsilon=epsilon) == once


# --- intervals -----------------------------------------------------------------------------------------


def test_noise_of_images_alone_is_that_of_a_binomial_share():
    found = bands([8, 16], [0.5, 0.8], [400, 400])
    deviation = np.sqrt(found.images)
    # the slope of arcsin(sqrt(r)) is 1 / (2 sqrt(r (1 - r)))
    slope = 1 / (2 * np.sqrt(np.array([0.5, 0.8]) * np.array([0.5, 0.2])))
    np.testing.assert_allclose(deviation, slope * np.sqrt([0.25 / 400, 0.16 / 400]))
    assert found.models.tolist() == [0, 0]
    low, high = ratio_intervals(found)[0]
    wilson = binomtest(200, 400).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high), rel=1e-6)


def test_models_that_differ_beyond_the_noise_of_their_images_widen_the_interval_with_students_t():
    ratios = [0.4, 0.6, 0.45, 0.55]
    found = bands([8] * 4, ratios, [1_000_000] * 4)
    (interval,) = ratio_intervals(found)
    angles = np.arcsin(np.sqrt(ratios))
    error = angles.std(ddof=1) / 2
    # the ratios that lie just so many standard deviations from the mean, as Wilson's interval is defined
    deviations = (interval - 0.5) / np.sqrt(interval * (1 - interval) * 4 * error**2)
    np.testing.assert_allclose(deviations, [-t.ppf(0.975, 3), t.ppf(0.975, 3)], rtol=1e-2)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_interval_of_all_or_none_is_as_wide_as_wilsons(ratio):
    (interval,) = ratio_intervals(bands([8], [ratio], [50]))
    wilson = binomtest(round(50 * ratio), 50).proportion_ci(method="wilson")
    assert list(interval) == pytest.approx([wilson.low, wilson.high], abs=1e-6)


def test_models_of_one_size_tell_how_far_those_of_another_differ():
    found = bands([8, 8, 16], [0.4, 0.6, 0.5], [10_000] * 3)
    assert found.models[1] == pytest.approx(2 * found.models[0])


def test_interval_holds_the_estimate_and_narrows_with_more_images():
    few, many = (emm_interval([8, 16, 32], [0.99, 0.93, 0.6], [n] * 3) for n in (100, 10_000))
    value = estimate_emm([8, 16, 32], [0.99, 0.93, 0.6]).value
    assert few.low < many.low < value < many.high < few.high


@pytest.mark.parametrize(
    ("ratios", "ends"),
    [
        ([0.99, 0.98], (16, None)),
        ([0.5, 0.4], (None, 8)),
        ([0.93, 0.5], (None, pytest.approx(9, abs=0.3))),
        ([0.97, 0.87], (pytest.approx(11.9, abs=1), None)),
        ([0.93, 0.87], (None, None)),
    ],
)
def test_interval_is_open_where_the_curve_may_not_cross_within_the_sizes(ratios, ends):
    images = [30, 30] if ratios == [0.93, 0.87] else [300, 300]
    assert emm_interval([8, 16], ratios, images) == ends
    texts = [
        str(emm_interval([8, 16], r, [n, n])) for r, n in (([0.5, 0.4], 300), ([0.99, 0.98], 300), ([0.93, 0.87], 30))
    ]
    assert texts == ["<= 8", ">= 16", "not bounded"]


def test_interval_is_the_same_every_time():
    arguments = ([8, 8, 16, 16], [0.97, 0.95, 0.7, 0.8], [500] * 4)
    assert emm_interval(*arguments) == emm_interval(*arguments)
    assert emm_interval(*arguments, epsilon=0.2) != emm_interval(*arguments)


def covers(generator: np.random.Generator, models: int, images: int, apart: float, count: int) -> bool:
    """Draw a study of `count` sizes whose models differ by `apart` in log-odds, and tell whether its interval holds
    the crossing of the true curve, drawn between its sizes as every curve is."""
    sizes = 4.0 * 2 ** np.arange(count)
    crossing = np.exp(generator.uniform(np.log(6), np.log(0.8 * sizes[-1])))
    log_odds = np.log(9) + generator.uniform(0.8, 3) * np.log(crossing / sizes)
    spread = apart * np.sqrt(2) * np.polynomial.hermite.hermgauss(40)[0]
    weight = np.polynomial.hermite.hermgauss(40)[1] / np.sqrt(np.pi)
    truth = estimate_emm(sizes, (1 / (1 + np.exp(-log_odds[:, None] - spread))) @ weight)
    of_models = np.repeat(log_odds, models) + apart * generator.standard_normal(count * models)
    ratios = generator.binomial(images, 1 / (1 + np.exp(-of_models))) / images
    low, high = emm_interval(np.repeat(sizes, models), ratios, [images] * len(ratios))
    if truth.value is None:
        return (low is None) if truth.lower is None else (high is None)
    return (low is None or low <= truth.value) and (high is None or truth.value <= high)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("models", "images", "apart", "count"),
    [(1, 500, 0.0, 5), (2, 500, 0.0, 5), (2, 500, 0.1, 5), (2, 500, 0.3, 5), (2, 10_000, 0.5, 5), (3, 500, 0.15, 6)],
)
def test_interval_covers_the_true_crossing_in_93_to_97_per_cent_of_studies(models, images, apart, count):
    generator = np.random.default_rng(21)
    covered = sum(covers(generator, models, images, apart, count) for _ in range(1000))
    assert 0.93 <= covered / 1000 <= 0.97


# --- training that had not ended -----------------------------------------------------------------------


@pytest.mark.parametrize("noise", [1.9, 2.0])
def test_a_ratio_rises_where_it_is_1_96_standard_deviations_above_that_at_three_quarters_of_the_training(noise):
    # sin^2 of angles that are apart by so many times sqrt(1 / 4n + 1 / 4n)
    n, before = 400, 0.6
    later = math.sin(math.asin(math.sqrt(before)) + noise * math.sqrt(1 / (2 * n))) ** 2
    assert still_rises([100, 200, 300, 400], [0.1, 0.1, before, later], [n] * 4) == (noise > 1.96)


def test_the_noise_before_and_that_at_the_end_both_count():
    assert still_rises([1, 2], [0.5, 0.55], [10_000, 10_000])
    assert not still_rises([1, 2], [0.5, 0.55], [10_000, 100])
    assert not still_rises([1, 2], [0.5, 0.55], [100, 10_000])


def test_a_ratio_that_was_higher_before_or_has_settled_does_not_rise_still():
    assert not still_rises([1, 2, 3], [0.1, 0.9, 0.89], [1000] * 3)
    assert not still_rises(list(range(1, 17)), [min(0.1 * i, 0.9) for i in range(1, 17)], [1000] * 16)


def test_a_ratio_that_comes_back_to_where_it_was_does_not_rise_still():
    assert not still_rises([1, 2, 3, 4], [0.50, 0.48, 0.24, 0.50], [1000] * 4)
    assert still_rises([1, 2, 3, 4], [0.24, 0.24, 0.24, 0.50], [1000] * 4)


def test_a_ratio_of_1_can_rise_no_further():
    assert not still_rises([1, 2], [0.2, 1.0], [500, 500])
    assert still_rises([1, 2], [0.2, 0.998], [500, 500])


def test_one_checkpoint_tells_no_rise():
    assert not still_rises([10], [0.5], [1000])


def test_a_ratio_on_the_line_counts_wherever_it_is_looked_at(tmp_path: Path) -> None:
    """1 - 0.7 is a little above 0.3 in floating point: a search must stop where the estimate says that it crosses."""
    assert 1 - 0.7 > 0.3
    text = tiny.TEXT.replace("size = 8\n", "", 1) + '[emm]\nepsilon = 0.7\nsearch = "bisect"\nrange = [4, 64]\n'
    assert (enough(tiny.load(tmp_path, text)) or 1) <= 0.3
    assert estimate_emm([4, 8], [0.3, 0.1], epsilon=0.7).lower == 4
    assert next_size({4: 0.3, 64: 0.0}, 4, 64, epsilon=0.7) == 8
    assert around({4: 0.3, 64: 0.0}, 0.7) == (4, 64)
    assert (around({}), around({8: 0.2, 4: 0.1}), around({4: 1.0})) == ((None, None), (None, 4), (4, None))

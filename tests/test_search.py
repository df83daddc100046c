"""The search for an EMM: the right bracket in few trainings, whatever the curve."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmem.emm import estimate_emm, most_sizes, near_line, next_size


def search(crossing: float, low: int, high: int, tolerance: float, known: dict[int, float] | None = None) -> dict[int, float]:
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


@settings(max_examples=500, deadline=None)
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


@settings(max_examples=300, deadline=None)
@given(ENDS, TOLERANCE, st.floats(0, 1))
def test_a_search_never_takes_more_trainings_than_promised(ends, tolerance, where):
    low, high = ends
    promised = math.ceil(2 + max(0.0, math.log2(math.log(high / low) / math.log(1 + tolerance))))
    assert len(search(low * (high / low) ** where, low, high, tolerance)) <= promised == most_sizes(low, high, tolerance)


@pytest.mark.parametrize(("crossing", "text", "trainings"), [(1, "< 10", 1), (1e6, "> 1000", 2)])
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

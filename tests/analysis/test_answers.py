"""The answer of a study: sentences that say what the intervals allow, and warnings that its curves share."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from diffmem.analysis.answers import Answer, answer_of, emm_words, interval_words, last_emm_words
from diffmem.analysis.curves import Curve, SizePoint, curves_of, measured_cells
from diffmem.analysis.emm import Interval, estimate_emm
from diffmem.analysis.words import in_words
from diffmem.store.standing import Kind
from diffmem.store.store import Store

NO_LABELS, UNIQUE = "M.condition = none", "M.condition = unique"


def curve(label: str, ratios: dict[int, float], interval: Interval, **more: Any) -> Curve:
    """Return a curve of ratios, each with an interval of 0.1 on either side and a null of 0.01."""
    points = [
        SizePoint(size, at, at, 1, max(0, at - 0.1), min(1, at + 0.1), 0.01, 100, None, steps=500)
        for size, at in ratios.items()
    ]
    estimate = estimate_emm(list(ratios), list(ratios.values())) if ratios else None
    return Curve(label, points, 0.1, estimate, interval if ratios else None, estimate, **more)


CROSSING = curve(NO_LABELS, {8: 1.0, 16: 0.82}, Interval(11.04, 14.9))
ABOVE = curve(UNIQUE, {8: 1.0, 24: 1.0}, Interval(24.0, None))
BELOW = curve("M.width = 4", {8: 0.2, 24: 0.1}, Interval(None, 8.0))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store of a study of two sizes, both finished."""
    store = Store(tmp_path_factory.mktemp("answers") / "store.duckdb")
    tiny.fill(store, "sizes", {(8,): 1.0, (16,): 0.5}, ["P.size"])
    return store


def answer(store: Store, curves: Sequence[Curve], by_groups: Sequence[Curve] = (), **more: Any) -> Answer:
    """Return the answer of finished cells of several sizes with these curves."""
    study = store.study("sizes")
    cells = measured_cells(store, study)
    return answer_of(replace(study, **more), cells, curves, by_groups)


def first(store: Store, *curves: Curve, **more: Any) -> str:
    return answer(store, curves, **more).sentences[0]


def test_a_crossing_is_said_with_its_interval_and_a_bound_as_a_bound(store: Store) -> None:
    assert first(store, CROSSING, ABOVE) == (
        "With no labels, the model memorizes up to about 12.4 training images (95%: 11.0 to 14.9); with a label per "
        "image, all measured sizes, up to 24 training images."
    )
    assert first(store, BELOW) == "The model memorizes fewer than 8 training images, the smallest size measured."


def test_a_bound_says_no_more_than_its_interval(store: Store) -> None:
    unsure = replace(ABOVE, interval=Interval(18.2, None))
    assert first(store, unsure).endswith("up to 24 training images (95%: at least 18.2).")
    open_ended = replace(ABOVE, interval=Interval(None, None))
    assert "(95%: anything, as the measured sizes do not bound it)" in first(store, open_ended)
    higher = replace(BELOW, interval=Interval(None, 9.5))
    assert first(store, higher).endswith("the smallest size measured (95%: at most 9.5).")


def test_undertrained_cells_are_called_that_in_the_answer_and_get_no_number(store: Store) -> None:
    poor = replace(BELOW, undertrained=True)
    said = "is undertrained, so that its EMM (< 8) says nothing about memorization."
    assert first(store, poor) == f"The model {said}"
    assert first(store, CROSSING, poor).endswith(f"; with width 4, it {said}")
    assert emm_words(poor) == "< 8 (undertrained)"
    unknown = replace(poor, estimate=poor.estimate._replace(upper=None))
    assert emm_words(unknown) == "unknown (undertrained)"


def test_what_is_not_measured_is_said(store: Store) -> None:
    nothing = curve(UNIQUE, {}, Interval(None, None))
    assert answer(store, [nothing]).sentences == ["Nothing is measured yet."]
    assert first(store, CROSSING, nothing).endswith("; with a label per image, it is not measured yet.")


def test_one_measured_size_of_several_is_no_curve(store: Store) -> None:
    alone = curve(NO_LABELS, {8: 1.0}, Interval(8.0, None))
    assert first(store, alone) == "The model memorizes the one size measured, up to 8 training images."


def test_many_curves_are_counted_between_their_ends(store: Store) -> None:
    curves = [
        *(replace(CROSSING, label=f"M.width = {width}") for width in (8, 16)),
        *(replace(ABOVE, label=f"M.width = {width}") for width in (32, 64)),
        replace(BELOW, undertrained=True),
    ]
    assert first(store, *curves) == (
        "Of 5 settings: 2 with an EMM of 12.4 (width 16; 95%: 11.0 to 14.9) to 12.4 (width 8; 95%: 11.0 to 14.9), 2 "
        "with an EMM ≥ 24, 1 undertrained."
    )


def test_one_size_gives_ratios_and_no_emm(store: Store) -> None:
    study = replace(store.study("sizes"), study="one size")
    cells = measured_cells(store, store.study("sizes"))[:1]
    one, other = (curve(label, {8: at}, Interval(None, None)) for label, at in ((NO_LABELS, 0.5), (UNIQUE, 0.9)))
    assert answer_of(study, cells, [one, other]).sentences[0] == (
        "At N = 8, the memorization ratio is 0.50 with no labels (95%: 0.40 to 0.60) and 0.90 with a label per image "
        "(95%: 0.80 to 1.00). A single size gives no EMM."
    )
    many = [replace(one, label=f"M.width = {width}") for width in range(4)] + [other]
    assert (
        " is between 0.50 with width 0 (95%: 0.40 to 0.60) and 0.90 with a label per image"
        in (answer_of(study, cells, many).sentences[0])
    )


def test_images_of_another_tool_have_ratios_whatever_their_sizes(store: Store) -> None:
    one = curve("cats against train", {8: 0.5}, Interval(None, None))
    other = curve("cats against all", {16: 0.9}, Interval(None, None))
    assert first(store, one, other, kind=Kind.IMAGES) == (
        "The memorization ratio is 0.50 for cats against train at N = 8 (95%: 0.40 to 0.60) and 0.90 for cats against "
        "all at N = 16 (95%: 0.80 to 1.00)."
    )


def test_held_out_images_stand_beside_the_estimate(store: Store) -> None:
    assert answer(store, [CROSSING]).sentences[1:] == ["1% of held-out images are called memorized."]
    unseen = [replace(point, null=0.0) for point in CROSSING.points]
    assert answer(store, [replace(CROSSING, points=unseen)]).sentences[1:] == ["No held-out image is called memorized."]
    without = [replace(point, null=None) for point in CROSSING.points]
    assert answer(store, [replace(CROSSING, points=without)]).sentences[1:] == []


def test_the_ratio_between_groups_is_compared_at_checkpoints_that_both_have(store: Store) -> None:
    grouped = replace(CROSSING, points=[replace(CROSSING.points[0], last=0.9), CROSSING.points[1]])
    assert answer(store, [CROSSING], [grouped]).sentences[-1] == (
        "If near-duplicates count as one image, the ratio of the last checkpoints changes by at most 0.100 (no labels, "
        "N = 8: 0.900 instead of 1.000)."
    )
    assert answer(store, [CROSSING], [CROSSING]).sentences[-1].endswith("of the last checkpoints is the same.")
    earlier = replace(CROSSING, points=[replace(point, steps=100) for point in CROSSING.points])
    assert len(answer(store, [CROSSING], [earlier]).sentences) == 2


def test_warnings_that_curves_share_are_one_and_counts_add_up(store: Store) -> None:
    rising = "the ratio still rises at the end of training at N = 16"
    one = replace(CROSSING, caveats=["2 of 3 cells are not finished", rising])
    other = replace(ABOVE, caveats=["1 of 3 cells are not finished", "undertrained at N = 8: train longer"])
    found = answer(store, [one, other])
    assert found.warnings == [
        "Undertrained at N = 8: train longer (a label per image).",
        "3 of 6 cells are not finished.",
        "The ratio still rises at the end of training at N = 16 (no labels).",
    ]
    assert answer(store, [replace(CROSSING, caveats=list("abcd"))]).shown_warnings == ["A.", "B.", "C."]


def test_a_rise_with_n_is_a_warning_with_what_may_be_noise(store: Store) -> None:
    up = curve("", {8: 0.5, 16: 0.6}, Interval(None, 8.0), noise="from 8 to 16 it may be noise")
    assert answer(store, [up]).warnings == [
        "The ratio rises with N from 8 to 16 (0.500 to 0.600), against Hypothesis 1; from 8 to 16 it may be noise."
    ]


def test_a_search_that_goes_on_says_so(store: Store) -> None:
    search = {**store.study("sizes").estimation, "search": "bisect", "range": [8, 64], "tolerance": 0.1}
    said = "The search for the EMM is not finished."
    assert said in answer(store, [CROSSING], estimation=search).warnings
    assert said not in answer(store, [CROSSING], estimation={**search, "tolerance": 1.0}).warnings


def test_cells_that_wait_make_it_an_answer_so_far(tmp_path: Path) -> None:
    waiting = Store(tmp_path / "store.duckdb")
    tiny.fill(waiting, "some", {(8,): 1.0, (16,): None}, ["P.size"])
    study = waiting.study("some")
    cells = measured_cells(waiting, study)
    found = answer_of(study, cells, curves_of(cells, study.epsilon))
    assert found.sentences[0] == "So far, the model memorizes the one size measured, up to 8 training images."
    assert found.warnings == ["1 of 2 cells are not finished."]


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        (Interval(11.04, 14.9), "11.0 to 14.9"),
        (Interval(105.4, 149.0), "105 to 149"),
        (Interval(24.0, None), "≥ 24"),
        (Interval(19.3, None), "≥ 19.3"),
        (Interval(None, 8.0), "≤ 8"),
        (Interval(None, None), "not bounded"),
        (None, "-"),
    ],
)
def test_an_interval_with_one_end_is_a_bound(interval: Interval | None, words: str) -> None:
    assert interval_words(interval) == words


def test_an_emm_has_the_digits_that_its_interval_allows() -> None:
    assert (emm_words(CROSSING), emm_words(ABOVE), emm_words(BELOW)) == ("12.4", "≥ 24", "< 8")
    assert emm_words(replace(CROSSING, interval=Interval(4.0, 31.0))) == "12"
    assert last_emm_words(CROSSING) == "12.4"
    assert last_emm_words(curve("", {}, Interval(None, None))) == "-"


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("M.condition = none", "no labels"),
        ("M.condition = unique, M.width = 8", "a label per image, width 8"),
        ("P.classes = 1", "1 class"),
        ("M.blocks = 6", "6 blocks"),
        ("T.batch_size = 32, T.lr = 0.1", "batch size 32, learning rate 0.1"),
        ("P.size = 8, P.draw = 0", "N = 8, draw 0"),
        ("M.embedding = fourier", "fourier embedding"),
        ("samples against train", "samples against train"),
        ("", ""),
    ],
)
def test_settings_are_said_in_words_and_other_labels_stay(label: str, words: str) -> None:
    assert in_words(label) == words

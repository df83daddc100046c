"""Findings: what a store bears out, against values computed by hand and by scipy."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from scipy import special, stats

from diffmem.analysis.claims import ALIKE, ANY_HIGHER, FINDINGS, HIGHEST, IMAGES, LOWEST, Claim
from diffmem.analysis.comparing import CellRatio, compare
from diffmem.analysis.curves import study_cells
from diffmem.analysis.emm import mean_ratios, weighted_sum
from diffmem.analysis.findings import (
    FAILS,
    HOLDS,
    UNKNOWN,
    MeasuredStudy,
    check_claim,
    check_findings,
    effect_text,
    verdict,
)
from diffmem.analysis.published import published_values
from diffmem.cli import main
from diffmem.store.store import Store
from diffmem.study.study import Study

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.duckdb")


def check(store: Store, claim: Claim) -> Any:
    study = next(row for row in store.studies() if row.study == claim.study)
    return check_claim(claim, MeasuredStudy(study, study_cells(store, study)[0], published_values(store, claim.study)))


WIDER = Claim("wider: higher", "width", ("M.width",), LOWEST, HIGHEST, ANY_HIGHER)


def test_the_paper_has_seventeen_findings_and_every_claim_has_a_study_file():
    assert [finding.number for finding in FINDINGS] == list(range(1, 18))
    for finding in FINDINGS:
        for claim in finding.claims:
            keys = {key for axis in Study.load(STUDIES / f"{claim.study}.toml").axes for key in axis}
            assert claim.keys[0] in keys or claim.keys == IMAGES


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.1, 0.3), HOLDS), ((0.0, 0.3), HOLDS), ((-0.1, 0.3), UNKNOWN), ((-0.3, -0.1), FAILS)],
    ids=str,
)
def test_a_claim_holds_where_the_whole_interval_is_in_its_range(interval, expected):
    assert verdict(interval, (0.0, math.inf)) == expected


@pytest.mark.parametrize(
    ("repeated", "reason"),
    [("P.draw", ""), ("T.seed", "one draw: the interval has the noise of seeds and images only")],
)
def test_a_difference_has_the_interval_of_the_paired_t_test_over_draws_or_seeds_of_one_draw(store, repeated, reason):
    low, high = [0.2, 0.25, 0.3], [0.44, 0.51, 0.55]
    ratios = {(width, number): r for width, side in ((8, low), (16, high)) for number, r in enumerate(side)}
    tiny.fill(store, "width", ratios, ["M.width", repeated], samples=100_000)
    result = check(store, WIDER)
    expected = stats.ttest_rel(high, low).confidence_interval()
    assert result.interval == pytest.approx((expected.low, expected.high))
    assert (result.low, result.high, result.value) == pytest.approx((0.25, 0.5, 0.25))
    assert (result.verdict, result.levels, result.reason) == (HOLDS, "M.width 8 to 16", reason)
    assert (result.draws, result.seeds) == ((3, 1) if repeated == "P.draw" else (1, 3))


def test_draws_that_agree_better_than_their_images_can_leave_the_noise_of_the_images(store):
    ratios = {(width, draw): ratio + 0.1 * draw for width, ratio in ((8, 0.4), (16, 0.5)) for draw in (0, 1, 2)}
    tiny.fill(store, "width", ratios, ["M.width", "P.draw"])
    low, high = check(store, WIDER).interval
    images = 3 * tiny.SAMPLES
    noise = 1.96 * math.sqrt(0.5 * 0.5 / images + 0.6 * 0.4 / images)
    assert (low, high) == pytest.approx((0.1 - noise, 0.1 + noise), abs=0.002)


EVEN, NEAR_1 = (0.77, 0.8), (0.77, 0.99)


@pytest.mark.parametrize(
    ("ratios", "spread", "in_common", "least"),
    [
        ((0.3, 0.6), 0.5, 0.0, 0.93),
        ((0.02, 0.1), 0.5, 0.0, 0.93),
        ((0.9, 0.97), 0.3, 0.0, 0.93),
        (EVEN, 0.3, 0.5, 0.93),
        (EVEN, 0.3, 1.0, 0.93),
        (NEAR_1, 0.3, 0.5, 0.9),
        (NEAR_1, 0.3, 1.0, 0.88),
    ],
    ids=str,
)
def test_the_interval_of_a_difference_covers_the_truth_as_often_as_the_documents_say(ratios, spread, in_common, least):
    """Three draws, each at two levels, and 200 images of each; draws differ, and models of one draw, in log-odds."""
    random = np.random.default_rng(1)

    def models(studies: int) -> np.ndarray:
        draws = in_common * random.standard_normal((studies, 3, 1))
        return special.expit(special.logit(ratios) + draws + spread * random.standard_normal((studies, 3, 2)))

    truth = models(200_000).mean(axis=(0, 1))
    covered = 0
    for study in models(1000):
        found = random.binomial(tiny.SAMPLES, study) / tiny.SAMPLES
        low, high = compare([cell(draw, side, found) for draw in range(3) for side in (0, 1)], (0, 1)).interval
        covered += low <= truth[1] - truth[0] <= high
    assert least <= covered / 1000 <= 0.98


def cell(draw: int, side: int, found: np.ndarray) -> CellRatio:
    return CellRatio(side, "", float(found[draw, side]), tiny.SAMPLES, str(draw), "", 0)


def test_what_all_models_of_a_draw_have_in_common_does_not_widen_the_interval_of_a_difference():
    found = np.array([[0.3, 0.42], [0.5, 0.6], [0.7, 0.81]])
    apart = compare([cell(draw, side, found) for draw in range(3) for side in (0, 1)], (0, 1)).interval
    assert apart[0] > 0
    alone = mean_ratios([0, 0, 0, 1, 1, 1], found.T.ravel().tolist(), [tiny.SAMPLES] * 6)
    assert weighted_sum(alone, [-1, 1])[1][0] < 0


def test_a_difference_the_other_way_does_not_hold(store):
    tiny.fill(store, "width", {(8, 0): 0.9, (8, 1): 0.88, (16, 0): 0.1, (16, 1): 0.12}, ["M.width", "P.draw"])
    assert check(store, WIDER).verdict == FAILS


def test_sizes_are_compared_each_with_itself(store):
    ratios = {(8, 8): 0.9, (16, 8): 0.95, (8, 16): 0.3, (16, 16): 0.4}
    tiny.fill(store, "width", ratios, ["M.width", "P.size"])
    result = check(store, WIDER)
    assert result.value == pytest.approx((0.05 + 0.1) / 2)


def test_one_draw_leaves_the_noise_of_the_images_and_says_so(store):
    tiny.fill(store, "width", {(8,): 0.4, (16,): 0.6}, ["M.width"])
    result = check(store, WIDER)
    (low, _), (_, high) = (
        stats.binomtest(round(ratio * tiny.SAMPLES), tiny.SAMPLES).proportion_ci(method="wilson")
        for ratio in (0.6, 0.4)
    )
    assert result.interval[0] == pytest.approx(0.2 - math.hypot(0.6 - low, high - 0.4))  # Newcombe 1998, method 10
    assert "one draw and seed" in result.reason


def test_cells_that_are_not_finished_do_not_count_and_are_told(store):
    ratios = {(8, 0): 0.2, (8, 1): 0.2, (8, 2): 0.9, (16, 0): 0.5, (16, 1): 0.52}
    tiny.fill(store, "width", ratios, ["M.width", "P.draw"])
    result = check(store, WIDER)
    assert (result.low, result.high, result.draws) == (0.2, pytest.approx(0.51), 2)
    assert result.reason == "1 of 6 cells are not finished"


def test_one_finished_draw_of_several_decides_nothing(store):
    ratios = {(8, 0): 0.2, (8, 1): 0.5, (8, 2): 0.8, (16, 0): 0.4}
    tiny.fill(store, "width", ratios, ["M.width", "P.draw"])
    result = check(store, WIDER)
    assert result.interval[0] > 0
    assert (result.verdict, result.value) == (UNKNOWN, pytest.approx(0.2))
    assert result.reason == "2 of 6 cells are not finished; only one of 3 draws and seeds has finished"


def test_a_size_that_one_draw_has_finished_does_not_take_the_others_draws_away(store):
    ratios = {(width, 8, draw): 0.3 + 0.1 * (width == 16) + 0.02 * draw for width in (8, 16) for draw in range(4)}
    tiny.fill(store, "width", {**ratios, (8, 16, 0): 0.1, (16, 16, 0): 0.9}, ["M.width", "P.size", "P.draw"])
    result = check(store, WIDER)
    assert (result.low, result.high, result.draws) == (pytest.approx(0.33), pytest.approx(0.43), 4)
    assert result.reason == "6 of 16 cells are not finished; compared at 1 of 2 settings of the other axes"


def test_a_draw_counts_only_with_all_its_cells_at_both_levels(store):
    finding = next(finding for finding in FINDINGS if finding.number == 9)
    ratios = {("111 111", 0): 0.7, ("111 111", 1): 0.8, ("111 111", 2): 0.6, ("100 000", 0): 0.7, ("010 000", 1): 0.8}
    tiny.fill(store, "skip", {**ratios, ("100 000", 2): 0.5, ("010 000", 2): 0.4}, ["M.skips", "P.draw"])
    enough = check(store, finding.claims[1])
    assert (enough.low, enough.high, enough.draws) == (0.6, pytest.approx(0.45), 1)


def test_levels_without_a_draw_in_common_cannot_be_compared(store):
    tiny.fill(store, "width", {(8, 0): 0.2, (16, 1): 0.4}, ["M.width", "P.draw"])
    result = check(store, WIDER)
    assert result.verdict == UNKNOWN
    assert result.reason == (
        "2 of 4 cells are not finished; no draw and seed has finished all its cells at both levels"
    )


def test_a_ratio_at_one_level_is_of_all_finished_draws(store):
    near = Claim("near 0", "weight_decay", ("T.weight_decay",), None, HIGHEST, (-math.inf, 0.05))
    ratios = {(0.0, 0): 0.9, (0.1, 0): 0.0, (0.1, 1): 0.0, (0.1, 2): 0.3}
    tiny.fill(store, "weight_decay", ratios, ["T.weight_decay", "P.draw"])
    assert (check(store, near).value, check(store, near).draws) == (pytest.approx(0.1), 3)


def test_masks_sizes_and_seeds_of_a_draw_are_averaged_before_draws_are_compared(store):
    random = np.random.default_rng(2)
    masks = {"111 111": 0.5, "100 000": 0.6, "010 000": 0.7}
    ratios = {
        (mask, size, draw, seed): round(ratio - size / 100 + 0.2 * random.random(), 3)
        for mask, ratio in masks.items()
        for size in (8, 16)
        for draw in range(3)
        for seed in (0, 1)
    }
    tiny.fill(store, "skip", ratios, ["M.skips", "P.size", "P.draw", "T.seed"], samples=100_000)
    result = check(store, next(finding for finding in FINDINGS if finding.number == 9).claims[1])

    def of(draw: int, *kept: str) -> float:
        return np.mean([r for (mask, _, of_draw, _), r in ratios.items() if of_draw == draw and mask in kept])

    one, whole = ([of(draw, *kept) for draw in range(3)] for kept in (("100 000", "010 000"), ("111 111",)))
    expected = stats.ttest_rel(one, whole).confidence_interval()
    assert result.interval == pytest.approx((expected.low, expected.high))
    assert result.value == pytest.approx(np.mean(one) - np.mean(whole))
    assert (result.draws, result.seeds) == (3, 2)


def test_two_halves_of_a_draw_are_two_training_sets(store):
    ratios = {(8, "a"): 0.2, (8, "b"): 0.25, (16, "a"): 0.44, (16, "b"): 0.51}
    tiny.fill(store, "width", ratios, ["M.width", "P.half"], samples=100_000)
    expected = stats.ttest_rel([0.44, 0.51], [0.2, 0.25]).confidence_interval()
    result = check(store, WIDER)
    assert result.interval == pytest.approx((expected.low, expected.high))
    assert (result.reason, result.draws) == ("", 1)


def test_levels_that_are_not_there_cannot_be_told(store):
    tiny.fill(store, "width", {(8,): 0.4}, ["M.width"])
    result = check(store, WIDER)
    assert (result.verdict, result.reason) == (UNKNOWN, "the study has no cells at the levels that this is about")


def test_a_study_that_was_not_run_names_the_command(store):
    tiny.fill(store, "width", {(8,): 0.4, (16,): 0.6}, ["M.width"])
    (result,) = next(results for finding, _, results in check_findings(store, "laptop") if finding.number == 6)
    assert result.verdict == UNKNOWN
    assert result.reason == "not run: diffmem run width --profile laptop"


def test_draws_are_counted_where_they_are_compared(store):
    ratios = {(8, 0): 0.2, (8, 1): 0.3, (16, 0): 0.5, (16, 1): 0.6, (12, 2): 0.4}
    tiny.fill(store, "width", ratios, ["M.width", "P.draw"])
    assert check(store, WIDER).draws == 2


def test_little_effect_needs_a_narrow_interval(store):
    alike = Claim("alike", "ema", ("T.ema",), LOWEST, HIGHEST, ALIKE)
    ratios = {(rate, draw): 0.5 + 0.01 * draw for rate in (0.0, 0.9) for draw in (0, 1, 2)}
    tiny.fill(store, "ema", ratios, ["T.ema", "P.draw"])
    assert check(store, alike).verdict == HOLDS


def test_skips_are_compared_by_where_the_one_kept_is(store):
    masks = {"111 111": 0.7, "100 000": 0.72, "001 000": 0.68, "000 010": 0.0, "110 000": 0.3}
    ratios = {(mask, draw): ratio for mask, ratio in masks.items() for draw in (0, 1)}
    tiny.fill(store, "skip", ratios, ["M.skips", "P.draw"])
    finding = next(finding for finding in FINDINGS if finding.number == 9)
    higher, enough = (check(store, claim) for claim in finding.claims)
    assert (higher.low, higher.high, higher.verdict) == (0.0, pytest.approx(0.7), HOLDS)
    assert (enough.low, enough.high, enough.verdict) == (pytest.approx(0.7), pytest.approx(0.7), HOLDS)


@pytest.mark.parametrize(
    ("number", "claim", "expected"),
    [
        # Table 2: the mean over N = 1,000 and 2,000 of the difference between 0 and 0.1
        (11, 1, ((0.0133 - 0.9209) + (0.0 - 0.6093)) / 2),
        (11, 0, ((0.9211 - 0.9209) + (0.5839 - 0.6093)) / 2),
        (13, 0, np.mean([96.59 - 92.09, 79.46 - 60.93, 55.62 - 34.6, 37.59 - 17.12, 23.0 - 9.0]) / 100),
        (14, 0, np.mean([96.2 - 96.59, 79.8 - 79.46, 57.3 - 55.62, 39.1 - 37.59, 23.4 - 23.0]) / 100),
        (9, 0, (92.7 + 92.9 + 91.9) / 300 - (12.6 + 2.8 + 0) / 300),
    ],
    ids=str,
)
def test_the_paper_s_own_value_comes_from_its_numbers(store, number, claim, expected):
    wanted = next(finding for finding in FINDINGS if finding.number == number).claims[claim]
    levels: dict[str, list[Any]] = {
        "T.weight_decay": [0.0, 1e-3, 0.1],
        "M.condition": ["none", "true", "random"],
        "M.skips": ["111 111", "100 000", "001 000", "000 010"],
    }
    key = wanted.keys[0]
    tiny.fill(store, wanted.study, {(level,): 0.5 for level in levels[key]}, [key])
    assert check(store, wanted).published == pytest.approx(expected)


def sample_counts(store: Store) -> Any:
    (result,) = next(results for finding, _, results in check_findings(store, None) if finding.number == 17)
    return result


def test_too_few_images_do_not_tell_how_much_a_ratio_varies(store):
    tiny.fill(store, "sample_size", {(8,): 0.5}, ["P.size"])
    assert (sample_counts(store).verdict, sample_counts(store).reason) == (
        UNKNOWN,
        "no cell has 10000 generated images",
    )


@pytest.mark.parametrize(("independent", "expected"), [(True, HOLDS), (False, FAILS)])
def test_how_much_a_ratio_varies_is_told_from_groups_of_its_images(store, independent, expected):
    tiny.fill(store, "sample_size", {(8,): 0.5}, ["P.size"], samples=10_000)
    flags = np.random.default_rng(5).random(10_000) < 0.5
    if not independent:  # a hundred at a time are alike
        flags = np.repeat(flags[:100], 100)
    with store.writing() as connection:
        connection.execute("DELETE FROM evidence")
        rows = {"sample": np.arange(10_000), "d1": np.where(flags, 1.0, 3.0)}
        connection.register("given", rows)
        connection.execute("INSERT INTO evidence SELECT cell_id, epoch, sample, 0, d1, 4.0 FROM given, checkpoints")
    result = sample_counts(store)
    deviation = flags.reshape(100, 100).mean(axis=1).std(ddof=1) / 10
    low, high = (deviation * math.sqrt(99 / stats.chi2.ppf(tail, 99)) for tail in (0.975, 0.025))
    assert result.value == pytest.approx(deviation)
    assert result.interval == pytest.approx((low, high))
    assert result.verdict == expected


def test_a_claim_with_another_verdict_than_its_finding_has_its_own(store, monkeypatch):
    monkeypatch.setenv("DIFFMEM_STORE", str(store.path))
    tiny.fill(
        store,
        "weight_decay@laptop",
        {(0.0, 0): 0.9, (0.0, 1): 0.92, (0.1, 0): 0.0, (0.1, 1): 0.01},
        ["T.weight_decay", "P.draw"],
    )
    printed = " ".join(CliRunner().invoke(main, ["findings", "--profile", "laptop"]).stdout.split())
    assert "11 inconclusive Weight decay: lower from 1e-2 on, near 0 at 1e-1 - up to 1e-3: alike;" in printed
    assert "- the largest: much lower (holds); T.weight_decay 0.0 to 0.1," in printed


def test_findings_are_printed_as_a_list_as_data_and_as_markdown(store, monkeypatch):
    monkeypatch.setenv("DIFFMEM_STORE", str(store.path))
    tiny.fill(store, "width@laptop", {(8, 0): 0.1, (8, 1): 0.12, (16, 0): 0.9, (16, 1): 0.92}, ["M.width", "P.draw"])
    arguments = ["findings", "--profile", "laptop"]
    monkeypatch.setenv("COLUMNS", "80")
    listed = CliRunner().invoke(main, arguments)
    assert listed.exit_code == 0
    assert max(map(len, listed.stdout.splitlines()[1:])) <= 80
    one = " ".join(listed.stdout.split())
    assert "6 holds Wider: higher - wider: higher; M.width 8 to 16, 0.110 to 0.910: +0.800 (" in one
    assert "7 inconclusive Deeper: up to 6 blocks higher, then lower - up to 6: higher; not run: diffmem run" in one
    assert "inconclusive: 16, holds: 1 Findings of other papers" in one
    rows = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert [row["verdict"] for row in rows if row["number"] == 6] == [HOLDS]
    markdown = CliRunner().invoke(main, [*arguments, "--markdown"]).stdout.partition("\n\n")[0].splitlines()
    assert len({line.count("|") for line in markdown}) == 1
    assert "| 6 | Wider: higher | holds |" in "\n".join(markdown)


def test_a_study_that_only_has_the_name_of_the_papers_says_so(store: Store) -> None:
    tiny.fill(store, "width", {(4,): 0.3, (8,): 0.6}, ["M.width"])
    found = {finding.number: results for finding, _, results in check_findings(store)}
    (result,) = found[6]
    assert result.reason.endswith(
        f"not at the paper's scale: the study was run from {store.path.parent / 'width.toml'}"
    )
    tiny.fill(store, "width@laptop", {(4,): 0.3, (8,): 0.6}, ["M.width"])
    found = {finding.number: results for finding, _, results in check_findings(store, "laptop")}
    assert "scale" not in found[6][0].reason


def test_a_difference_that_rounds_to_0_is_plus_0():
    assert effect_text(-0.0004, difference=True) == "+0.000"
    assert effect_text(-0.0006, difference=True) == "-0.001"

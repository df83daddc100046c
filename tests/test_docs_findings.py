"""The documents' tables of findings: every row says of its own numbers what diffmem would say of them."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from diffmem.analysis.claims import FINDINGS, Claim
from diffmem.analysis.findings import FAILS, HOLDS, UNKNOWN, verdict

DOCS = Path(__file__).parent.parent / "docs"
TABLES = sorted(path.name for path in DOCS.glob("*-findings.md"))
INTERVAL = re.compile(r"\(([-+]?\d\.\d+) to ([-+]?\d\.\d+)\)$")
ROUNDING = 0.0005
"""Half of the last digit that a table shows."""


class Row(NamedTuple):
    """A line of a table: a claim's, and of a finding's first claim also the finding's."""

    number: str
    finding: str
    together: str
    claim: str
    verdict: str
    compared: str
    measured: str
    paper: str
    behind: str


def text(document: str) -> str:
    return (DOCS / document).read_text(encoding="utf-8")


def table(document: str, columns: int) -> list[list[str]]:
    """Return the lines of a document's tables of so many columns, as their parts."""
    lines = text(document).splitlines()
    found = [[part.strip() for part in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    return [parts for parts in found if len(parts) == columns]


def numbered(document: str, columns: int) -> list[list[str]]:
    """Return those that begin with the number of a finding."""
    return [parts for parts in table(document, columns) if parts[0].isdigit()]


def rows(document: str) -> list[Row]:
    return [Row(*parts) for parts in table(document, len(Row._fields)) if parts[3] not in ("claim", "---")]


def test_both_scales_have_a_table():
    assert TABLES == ["desk-findings.md", "laptop-findings.md"]


@pytest.mark.parametrize("document", TABLES)
def test_a_table_has_every_claim_of_every_finding_in_order(document):
    shown = [(row.number, row.finding, row.claim) for row in rows(document)]
    assert shown == [
        (str(finding.number), finding.text, claim.text) if i == 0 else ("", "", claim.text)
        for finding in FINDINGS
        for i, claim in enumerate(finding.claims)
    ]


@pytest.mark.parametrize("document", TABLES)
def test_each_verdict_of_a_table_follows_from_the_interval_beside_it(document):
    claims = [claim for finding in FINDINGS for claim in finding.claims]
    for row, claim in zip(rows(document), claims, strict=True):
        assert row.verdict in possible(claim, row.measured), row


def possible(claim: Claim, measured: str) -> set[str]:
    """Return the verdicts that an interval allows, as it may have been before it was rounded."""
    found = INTERVAL.search(measured)
    if not found:
        assert measured == "-"
        return {UNKNOWN}
    low, high = map(float, found.groups())
    moves = (-ROUNDING, 0, ROUNDING)
    return {verdict((low + a, high + b), claim.within) for a in moves for b in moves}


@pytest.mark.parametrize("document", TABLES)
def test_the_numbers_of_a_row_agree_with_each_other(document):
    for row in rows(document):
        assert "-0.000" not in row.measured
        numbers = [float(number) for number in re.findall(r"[-+]?\d\.\d{3}", row.measured)]
        value, low, high = numbers[-3:] if numbers else (0.0, 0.0, 0.0)
        assert low <= value <= high, row
        if len(numbers) == 5:
            assert value == pytest.approx(numbers[1] - numbers[0], abs=3 * ROUNDING), row


def findings(document: str) -> dict[int, str]:
    """Return the verdict on each finding, by its number."""
    return {int(row.number): row.together for row in rows(document) if row.number}


@pytest.mark.parametrize("document", TABLES)
def test_the_verdict_on_a_finding_is_that_of_all_its_claims(document):
    verdicts = [row.verdict for row in rows(document)]
    for finding in FINDINGS:
        of_claims, verdicts = verdicts[: len(finding.claims)], verdicts[len(finding.claims) :]
        worst = next(each for each in (FAILS, UNKNOWN, HOLDS) if each in of_claims)
        assert findings(document)[finding.number] == worst, finding.text


@pytest.mark.parametrize("document", TABLES)
def test_a_document_counts_its_findings(document):
    found = findings(document)
    told = []
    for said, meant in (("findings hold", HOLDS), ("are inconclusive", UNKNOWN), ("do not hold", FAILS)):
        numbers = [str(number) for number, verdict in found.items() if verdict == meant]
        said = said.replace("do not", "does not") if len(numbers) == 1 else said
        told.append(f"{len(numbers)} {said} ({', '.join(numbers)})")
    assert "; ".join(told) + "." in text(document)


def test_the_readme_says_how_many_findings_hold_at_each_scale():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for scale, words in (("laptop", "hold at that scale"), ("desk", "at a larger one")):
        held = list(findings(f"{scale}-findings.md").values()).count(HOLDS)
        assert f"[{held} {words}](docs/{scale}-findings.md)" in readme


def test_the_two_scales_side_by_side_are_those_of_the_two_tables():
    at_laptop, at_desk = findings("laptop-findings.md"), findings("desk-findings.md")
    assert numbered("desk-findings.md", 4) == [
        [str(finding.number), finding.text, at_laptop[finding.number], at_desk[finding.number]] for finding in FINDINGS
    ]


def levels_and_difference(measured: str) -> list[float]:
    """Return both levels and their difference of `0.607 to 0.802: +0.195 (+0.102 to +0.287)`."""
    numbers = [float(number) for number in re.findall(r"[-+]?\d\.\d{3}", measured)]
    assert numbers[3] <= numbers[2] <= numbers[4]
    assert numbers[2] == pytest.approx(numbers[1] - numbers[0], abs=3 * ROUNDING)
    return numbers[:3]


def test_ten_more_draws_stand_beside_the_first_five_with_the_verdict_that_follows():
    claims = {(finding.number, claim.text): claim for finding in FINDINGS for claim in finding.claims}
    first = dict(zip(claims, rows("desk-findings.md"), strict=True))
    shown = numbered("desk-findings.md", 7)
    assert [number for number, *_ in shown] == ["4", "5", "9", "13", "14"]
    for number, claim, five, ten, together, paper, told in shown:
        key = int(number), claim
        assert (five, paper) == (first[key].measured, first[key].paper)
        assert first[key].verdict == UNKNOWN
        assert told in possible(claims[key], ten)
        means = [(a + 2 * b) / 3 for a, b in zip(levels_and_difference(five), levels_and_difference(ten), strict=True)]
        assert levels_and_difference(together) == pytest.approx(means, abs=3 * ROUNDING)


def test_the_readme_counts_what_ten_more_draws_decide():
    told = [verdict for *_, verdict in numbered("desk-findings.md", 7)]
    words = {1: "one", 2: "two", 3: "three"}
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert (
        f"With more draws there, {words[told.count(HOLDS)]} more hold and {words[told.count(FAILS)]} does not."
        in readme
    )

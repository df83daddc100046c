"""The command that says which findings hold: the paper's, and other papers'."""

import math
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import FileName, complete_profile, json_option, store_option
from diffmem.cli.tables import as_markdown, echo, print_json, print_wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffmem.analysis import Finding, OtherResult, Result


@click.command()
@click.option(
    "--profile",
    metavar="NAME",
    shell_complete=complete_profile,
    help="Check the studies of this profile instead of those at the paper's scale.",
)
@store_option
@click.option("--markdown", is_flag=True, help="Print Markdown tables.")
@click.option(
    "--report",
    "page",
    type=FileName(dir_okay=False),
    help="Also write a page that shows the paper's effects beside those measured, at every scale that the store has.",
)
@json_option
def findings(profile: str | None, store_path: Path, markdown: bool, page: Path | None, as_json: bool) -> None:
    """Check the paper's 17 findings, and some of other papers.

    Each finding consists of claims. A claim gives a range for a ratio, or for a difference of ratios. The ratios are
    those of the best checkpoint, as in the paper.

    \b
    Verdict on a claim:
      holds           the 95% interval is inside the claimed range
      does not hold   the 95% interval is outside the claimed range
      inconclusive    the 95% interval straddles the edge of the range

    A finding holds if all of its claims hold. It does not hold if any claim does not hold.

    In a claim, "much" means 0.1 or more; "alike" and "little" mean less. Levels are averaged over the study's other
    axes. Two levels are compared within each draw that has finished at both, and the interval is over draws (a paired
    t-test). With one draw and one seed, it includes only the noise of the images.

    Findings of other papers are checked with the studies onset and two_halves. Each shows a number, its 95% interval
    and the claimed range.

    Example: diffmem findings --profile laptop
    """
    from diffmem.analysis import check_findings, check_other_papers
    from diffmem.store import Store

    store = Store(store_path)
    if page is not None:
        from diffmem.report import write_findings

        write_findings(store, page)
        echo(f"findings: {page}", err=True)
    with store.snapshot() if store.exists() else nullcontext():
        checked, others = check_findings(store, profile), check_other_papers(store, profile)
    if as_json:
        rows = [
            {
                "number": finding.number,
                "source": GU,
                "finding": finding.text,
                "verdict": verdict,
                "claims": [vars(r) for r in results],
            }
            for finding, verdict, results in checked
        ]
        print_json([*rows, *map(_other_data, others)])
        return
    if markdown:
        echo(as_markdown([row for each in checked for row in _finding_rows(*each)]))
        echo(f"\n{as_markdown(list(map(_other_row, others)))}")
        return
    echo(f"The paper's findings in {store_path}" + (f" at profile {profile}" if profile else ""))
    for finding, verdict, results in checked:
        print_wrapped(f"{finding.number:2}  {verdict:14}  {finding.text}", indent=20)
        for result in results:
            print_wrapped(f"    - {_claim(result, verdict)}", indent=6)
    verdicts = Counter(verdict for _, verdict, _ in checked)
    echo(", ".join(f"{verdict}: {count}" for verdict, count in verdicts.most_common()))
    echo("Findings of other papers")
    for other in others:
        print_wrapped(f"    {other.verdict:14}  {other.text} ({other.source})", indent=20)
        print_wrapped(f"    - {_other(other)}", indent=6)


GU = "Gu et al. 2023"


def _other(result: "OtherResult") -> str:
    """Return what was measured of a claim of another paper, its range, and where."""
    low, high = result.within
    within = f"above {low:g}" if high == math.inf else f"{low:g} to {high:g}"
    measured = result.quantity if result.value is None else f"{result.quantity}: {result.measured}, claimed {within}"
    return "; ".join(filter(None, [measured, result.scale, result.behind, result.reason]))


def _other_data(result: "OtherResult") -> dict[str, Any]:
    """Return a finding of another paper as data, as the paper's are."""
    claim = {key: value for key, value in vars(result).items() if key != "source"}
    about = {"number": None, "source": result.source, "finding": result.text, "verdict": result.verdict}
    return {**about, "claims": [claim]}


def _other_row(result: "OtherResult") -> dict[str, Any]:
    return {
        "source": result.source,
        "finds": result.text,
        "verdict": result.verdict,
        "measured": result.quantity,
        "value (95%)": result.measured,
        "scale": result.scale or "-",
        "behind it": "; ".join(filter(None, [result.behind, result.reason])),
    }


def _claim(result: "Result", verdict: str) -> str:
    """Return what is claimed, the claim's own verdict where the finding has another, and what was measured."""
    claim = result.text if result.verdict == verdict else f"{result.text} ({result.verdict})"
    measured = "" if result.measured == "-" else f"{result.levels}, {result.measured}"
    paper = "" if result.paper == "-" else f"the paper {result.paper}"
    return "; ".join(filter(None, [claim, measured, paper, _behind(result)]))


def _behind(result: "Result") -> str:
    return "; ".join(filter(None, [result.behind.strip("-"), result.reason]))


def _finding_rows(finding: "Finding", verdict: str, results: "Sequence[Result]") -> list[dict[str, Any]]:
    """Return a row for each claim of a finding, which only the first one names."""
    return [
        {
            "": "" if number else finding.number,
            "the paper finds": "" if number else finding.text,
            "verdict": "" if number else verdict,
            "claim": result.text,
            "this": result.verdict,
            "compared": result.levels or "-",
            "measured (95%)": result.measured,
            "paper": result.paper,
            "behind it": _behind(result),
        }
        for number, result in enumerate(results)
    ]

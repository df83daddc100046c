"""The commands that say what has come out: `status`, `emm`, `report` and `findings`."""

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import click

from diffmem.cli.options import json_option, profile_option, registered, store_option, stored
from diffmem.cli.tables import as_markdown, print_table


@click.command()
@click.argument("study")
@profile_option
@store_option
@json_option
def status(study: str, profile: str | None, store_path: Path, as_json: bool) -> None:
    """Show how far each cell of a study is, and why a failed one failed.

    STUDY is a study file or the name that the store knows it by.

    Example: diffmem status quickstart
    """
    from diffmem.report.estimates import cell_state, study_cells

    store, name = stored(store_path, study, profile)
    row = registered(store, name)
    with store.snapshot():
        cells, _ = study_cells(store, row)
    rows = [
        {
            "cell_id": cell["cell_id"],
            "P.size": cell["configuration"]["P"]["size"],
            **cell["axis_values"],
            "state": cell_state(cell),
            "checkpoints": f"{cell['measured']}/{cell['expected']}",
            "best ratio": cell["best"],
            "last ratio": cell["last"],
            "error": cell["error"] if cell_state(cell) == "failed" else None,
        }
        for cell in cells
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    failures = [(row["cell_id"], row["error"]) for row in rows if row["error"]]
    print_table(name, [{key: value for key, value in row.items() if key != "error"} for row in rows])
    for cell_id, error in failures:
        click.echo(f"{cell_id} failed: {error}")


@click.command()
@click.argument("study")
@profile_option
@store_option
@json_option
def emm(study: str, profile: str | None, store_path: Path, as_json: bool) -> None:
    """Estimate the effective model memorization: the largest N with ratio >= 1 - epsilon, for each curve.

    STUDY is a study file or the name that the store knows it by. The best checkpoint of each size counts, as
    in the paper; where the ratio does not cross the line between two sizes the answer is a bound.

    Example: diffmem emm quickstart --json
    """
    from diffmem.report.estimates import study_curves

    store, name = stored(store_path, study, profile)
    curves = study_curves(store, registered(store, name))
    rows = [
        {
            "curve": curve.label,
            "emm": str(curve.estimate) if curve.estimate else "not measured",
            "value": curve.estimate.value if curve.estimate else None,
            "lower": curve.estimate.lower if curve.estimate else None,
            "upper": curve.estimate.upper if curve.estimate else None,
            "ratios": {str(point.size): round(point.best, 6) for point in curve.points},
            "note": curve.note,
        }
        for curve in curves
    ]
    if as_json:
        click.echo(
            json.dumps({"study": name, "epsilon": curves[0].epsilon if curves else None, "curves": rows}, indent=2)
        )
        return
    table = [
        {
            "curve": row["curve"],
            "EMM": row["emm"],
            **{f"N={point.size}": point.best for point in curve.points},
            "note": curve.note,
        }
        for row, curve in zip(rows, curves, strict=True)
    ]
    print_table(f"{name}: largest N with memorization ratio >= {1 - curves[0].epsilon:g}", table)


@click.command()
@click.argument("studies", nargs=-1)
@profile_option
@click.option(
    "--store",
    "store_paths",
    type=click.Path(path_type=Path),
    multiple=True,
    envvar="DIFFMEM_STORE",
    default=[Path("store/diffmem.duckdb")],
    show_default="store/diffmem.duckdb",
    show_envvar=True,
    help="The DuckDB file that results are kept in; several are shown as one.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the page.  [default: report.html beside the store]",
)
def report(studies: tuple[str, ...], profile: str | None, store_paths: tuple[Path, ...], output: Path | None) -> None:
    """Write figures, EMM tables, generated images and provenance as one HTML page that opens offline.

    STUDIES are study files or names that the store knows them by; without any, all of the store's.

    Example: diffmem report quickstart -o quickstart.html
    """
    from diffmem.merging import merged
    from diffmem.report.page import write_page
    from diffmem.store import Store

    with merged(store_paths) if len(store_paths) > 1 else nullcontext(Store(store_paths[0])) as store:
        names = [stored(store.path, study, profile)[1] for study in studies]
        names = names or [row["study"] for row in store.studies()]
        path = output or store_paths[0].parent / "report.html"
        write_page(store, names, path, source=", ".join(map(str, store_paths)))
    click.echo(f"report: {path}")


@click.command()
@click.option("--profile", metavar="NAME", help="Check the studies of this profile, not those at the paper's scale.")
@store_option
@click.option("--markdown", is_flag=True, help="Print a table for a document.")
@json_option
def findings(profile: str | None, store_path: Path, markdown: bool, as_json: bool) -> None:
    """Check each of the paper's 17 findings against the store: holds, does not hold, cannot be told.

    A finding consists of claims about ratios, or differences of ratios (of the best checkpoint, as in the paper). One
    holds where its 95% interval lies inside the range that is claimed, does not hold where it lies outside, and
    cannot be told where it lies across. The intervals are over draws and seeds, Student's t, with their variance
    pooled over the two levels compared; with one draw and seed they have the noise of the images alone.

    Example: diffmem findings --profile laptop
    """
    from diffmem.report.findings import check_findings
    from diffmem.store import Store

    checked = check_findings(Store(store_path), profile)
    if as_json:
        rows = [
            {
                "number": finding.number,
                "finding": finding.text,
                "verdict": verdict,
                "claims": [vars(r) for r in results],
            }
            for finding, verdict, results in checked
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    rows = [
        {
            "": finding.number if first else "",
            "the paper finds": finding.text if first else "",
            "verdict": verdict if first else "",
            "claim": result.text,
            "this": result.verdict,
            "compared": result.levels or "-",
            "measured (95%)": result.measured,
            "paper": result.paper,
            "behind it": "; ".join(filter(None, [result.behind.strip("-"), result.reason])),
        }
        for finding, verdict, results in checked
        for first, result in [(number == 0, result) for number, result in enumerate(results)]
    ]
    if markdown:
        click.echo(as_markdown(rows))
        return
    print_table(f"The paper's findings in {store_path}" + (f" at profile {profile}" if profile else ""), rows)
    verdicts = Counter(verdict for _, verdict, _ in checked)
    click.echo(", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))

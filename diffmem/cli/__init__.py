"""The command line: parse, call one function, print. The only place that prints and that ends the process."""

import json
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.signals import StopOnSignal
from diffmem.cli.tables import as_markdown, duration, print_table, with_unit
from diffmem.errors import DiffmemError

if TYPE_CHECKING:
    from diffmem.compiling import Compile
    from diffmem.plan import PlannedCell, Throughput
    from diffmem.store import Row, Store
    from diffmem.study import Study

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Group(click.Group):
    """A group whose commands end with a sentence and an exit code where a DiffmemError comes through."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DiffmemError as error:
            click.echo(str(error), err=True)
            sys.exit(error.exit_code)


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(package_name="diffmem")
def main() -> None:
    """Measure how much of its training data a diffusion model copies, and up to how much data it does so.

    \b
    diffmem plan studies/quickstart.toml      what would be trained
    diffmem run studies/quickstart.toml       train and score what the store does not have yet
    diffmem emm quickstart                    the largest training sets that are still memorized
    diffmem report                            everything as one HTML page

    Exit codes: 0 done, 1 something could not be done, 2 wrong input, 130 and 143 stopped by a signal.
    """


def _store_option(command: Any) -> Any:
    return click.option(
        "--store",
        "store_path",
        type=click.Path(path_type=Path),
        envvar="DIFFMEM_STORE",
        default=Path("store/diffmem.duckdb"),
        show_default=True,
        show_envvar=True,
        help="The DuckDB file that results are kept in.",
    )(command)


def _profile_option(command: Any) -> Any:
    return click.option("--profile", metavar="NAME", help="The study at another scale: a table of its [profiles].")(
        command
    )


def _set_option(command: Any) -> Any:
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a setting, in TOML syntax: --set T.epochs=10 --set 'M.condition=\"true\"'.",
    )(command)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print data instead of a table.")


# --- run -----------------------------------------------------------------------------------------------


@main.command()
@click.argument("study", type=click.Path(path_type=Path))
@_profile_option
@_set_option
@_store_option
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    envvar="DIFFMEM_PROCESSES",
    show_envvar=True,
    help="Processes on this machine.  [default: one per GPU, or one per CPU core but no more than cells]",
)
@click.option(
    "--split",
    type=click.Choice(["auto", "cells", "batch"]),
    default="auto",
    help="Several processes train a cell each, or one cell together. auto: together where cells are fewer.",
)
@click.option(
    "--compile",
    "compiling",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    help="torch.compile the networks. auto: where a cell's work is long enough to pay for it.",
)
@click.option("--shard", metavar="I/N", help="Only the I-th of N parts of the cells, for machines that share no disk.")
@click.option(
    "--log-with",
    multiple=True,
    metavar="TRACKER",
    help="Also log loss and ratio of each checkpoint: tensorboard, wandb, mlflow, ... (those of Accelerate).",
)
@click.option("--fail-fast", is_flag=True, help="End at the first cell that fails.")
@click.option("--retry-failed", is_flag=True, help="Try cells again that have failed before.")
def run(
    study: Path,
    profile: str | None,
    overrides: tuple[str, ...],
    store_path: Path,
    processes: int | None,
    split: str,
    compiling: "Compile",
    shard: str | None,
    log_with: tuple[str, ...],
    fail_fast: bool,
    retry_failed: bool,
) -> None:
    """Train and score every cell of a study file that the store does not have yet.

    Stopped at any moment, the same command goes on where it was. Ctrl-C saves first; a second one does not.
    `accelerate launch -m diffmem run` and `torchrun -m diffmem run` use the processes that they start.

    Example: diffmem run studies/quickstart.toml
    """
    loaded = _load(study, profile, overrides)
    part = _shard(shard)
    if log_with:
        from diffmem.trackers import check_trackers, log_events, trackers_of

        check_trackers(log_with)
    stop = StopOnSignal()
    from diffmem.cellrun import Interrupted
    from diffmem.cli.progress import show
    from diffmem.launch import default_processes, join, launched, leave, start
    from diffmem.runner import Options, run_study
    from diffmem.search import most_cells
    from diffmem.store import Store

    store = Store(store_path)
    if not launched() and (count := processes or default_processes(_waiting(loaded, store))) > 1:
        arguments = ["run", str(study), *_given("--profile", profile), "--store", str(store_path), "--split", split]
        arguments += [part for override in overrides for part in ("--set", override)] + _given("--shard", shard)
        arguments += [part for tracker in log_with for part in ("--log-with", tracker)]
        arguments += ["--compile", compiling] + ["--fail-fast"] * fail_fast + ["--retry-failed"] * retry_failed
        sys.exit(start(count, arguments))
    group = join()
    options = Options(split, part, fail_fast, retry_failed, compiling)
    total = most_cells(loaded) if loaded.estimation.search == "bisect" else len(loaded.distinct)
    events = run_study(loaded, store, stop=stop, group=group, options=options)
    if log_with:
        events = log_events(events, trackers_of(log_with, study=loaded.name, folder=store_path.parent / "logs"))
    try:
        outcomes = show(
            events,
            total=total,
            label=f"[{group.rank}] " if group.count > 1 else "",
        )
    except Interrupted:
        if group.leads:
            click.echo("stopped; everything is saved, the same command goes on from here", err=True)
        sys.exit(128 + (stop.signal or signal.SIGINT))
    finally:
        leave()
    if busy := outcomes["busy elsewhere"]:
        click.echo(f"{busy} of {total} cells are being trained by another process; run this again after it")
    if failed := _failed(loaded, store, several=group.count > 1):
        tells = f"diffmem status {loaded.name} --store {store_path}"
        click.echo(f"{failed} of {total} cells failed; `{tells}` tells why, --retry-failed tries them again", err=True)
        sys.exit(1)


def _given(option: str, value: str | None) -> list[str]:
    return [] if value is None else [option, value]


def _shard(text: str | None) -> tuple[int, int]:
    """Read I/N."""
    if text is None:
        return 1, 1
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(f"{text!r} is not I/N with I from 1 to N, as in 2/8", param_hint="--shard")
    return int(number), int(count)


def _waiting(study: "Study", store: "Store") -> int:
    """Return how many cells of a study can be trained at once: all that are not finished; of a search one a curve."""
    if study.estimation.search == "bisect":
        return len({entry.curve for entry in study.cells})
    finished = store.finished_cells(study.name) if store.exists() else set()
    return sum(entry.cell.cell_id not in finished for entry in study.distinct)


def _failed(study: "Study", store: "Store", *, several: bool) -> int:
    """Return how many cells have failed; 0 from all but the last of several processes to end.

    A launcher takes another exit code than 0 for a reason to end the other processes.
    """
    states = {row["cell_id"]: row["outcome"] for row in store.cells(study.name) if row["measured"] < row["expected"]}
    if several and "running" in states.values():
        return 0
    return sum(outcome == "failed" for outcome in states.values())


def _load(path: Path, profile: str | None, overrides: tuple[str, ...]) -> "Study":
    from diffmem.study import Study

    return Study.load(path, profile=profile, overrides=overrides)


# --- what would be and has been run --------------------------------------------------------------------


@main.command()
@click.argument("study", type=click.Path(path_type=Path))
@_profile_option
@_set_option
@_store_option
@click.option("--measure", is_flag=True, help="Train and generate a little with each network to tell the time.")
@click.option(
    "--tflops", type=click.FloatRange(min=0, min_open=True), help="Tell the time at so many 10^12 operations a second."
)
@_json_option
def plan(
    study: Path,
    profile: str | None,
    overrides: tuple[str, ...],
    store_path: Path,
    measure: bool,
    tflops: float | None,
    as_json: bool,
) -> None:
    """Show the cells of a study file, how much of each the store already has, and what the rest costs.

    Nothing is written. Operations are floating-point operations of what is left to do; `shared` counts the
    other study files of the folder that have the cell too, so that it is trained for all of them at once.

    Example: diffmem plan studies/skip.toml --tflops 40
    """
    if measure and tflops:
        raise click.UsageError("--measure and --tflops are two ways to tell the time; take one")
    loaded = _load(study, profile, overrides)
    from diffmem.plan import Throughput, plan_cells, plan_search
    from diffmem.store import Store

    planned = plan_cells(loaded, Store(store_path), profile=profile)
    speed = None
    if tflops:
        speed = dict.fromkeys((each.cell.cell_id for each in planned), Throughput(tflops * 1e12, tflops * 1e12))
    elif measure:
        from diffmem.throughput import measure_cells

        speed = measure_cells([each.cell for each in planned if not each.finished])
    rows = [_planned_row(each, speed) for each in planned]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    units: dict[str, Callable[[float], str]] = {**dict.fromkeys(MAGNITUDES, with_unit), "seconds": duration}
    shown = [{key: units[key](value) if key in units else value for key, value in row.items()} for row in rows]
    print_table(f"{loaded.title} ({loaded.name})", shown)
    click.echo(
        f"{len(rows)} cells, {sum(each.finished for each in planned)} of them finished in {store_path}, "
        f"{sum(each.shared > 0 for each in planned)} shared with other studies of the folder"
    )
    trained, generated, operations = (with_unit(sum(row[key] for row in rows)) for key in MAGNITUDES[1:])
    click.echo(f"to go: {trained} images to train, {generated} to generate, {operations} floating-point operations")
    if loaded.estimation.search == "bisect":
        search = plan_search(loaded)
        click.echo(
            f"the two ends of the range are listed; the search trains at most {search.sizes} sizes a curve: "
            f"{with_unit(search.expected)} operations expected, {with_unit(search.worst)} at worst; "
            f"a grid as fine has {search.grid_sizes} sizes a curve and {with_unit(search.grid)} operations"
        )
    if speed is None:
        click.echo("--measure tells the time on this device, --tflops on another one")
    else:
        whence = "as measured on this device" if measure else f"at {tflops:g} TFLOP/s"
        click.echo(f"time on one device, {whence}: {duration(sum(row['seconds'] for row in rows))}")


MAGNITUDES = ("parameters", "images to train", "images to generate", "operations")
"""Columns of a plan that are shown with a unit; the last three add up."""


def _planned_row(planned: "PlannedCell", speed: "Mapping[str, Throughput] | None") -> dict[str, Any]:
    """Return a cell of a plan as a row, with its time where the speed is known."""
    cell, cost = planned.cell, planned.cost
    row = {
        "cell_id": cell.cell_id,
        "P.size": cell.P.size,
        **planned.entry.axis_values,
        "parameters": cost.parameters,
        "checkpoints": len(cell.checkpoints),
        "measured": planned.measured,
        "shared": planned.shared,
        "images to train": cost.images_trained,
        "images to generate": cost.images_generated,
        "operations": cost.operations,
    }
    if speed is not None:
        row["seconds"] = 0.0 if planned.finished else planned.seconds(speed[cell.cell_id])
    return row


@main.command()
@click.argument("study")
@_profile_option
@_store_option
@_json_option
def status(study: str, profile: str | None, store_path: Path, as_json: bool) -> None:
    """Show how far each cell of a study is, and why a failed one failed.

    STUDY is a study file or the name that the store knows it by.

    Example: diffmem status quickstart
    """
    from diffmem.report.estimates import cell_state, study_cells

    store, name = _stored(store_path, study, profile)
    row = _registered(store, name)
    with store.snapshot():
        cells, _ = study_cells(store, row)
    rows = [
        {
            "cell_id": cell["cell_id"],
            "P.size": cell["configuration"]["P"]["size"],
            **cell["axis_values"],
            "state": cell_state(cell),
            "checkpoints": f"{cell['measured']}/{cell['expected']}" if cell["expected"] else str(cell["measured"]),
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


@main.command()
@click.argument("study")
@_profile_option
@_store_option
@_json_option
def emm(study: str, profile: str | None, store_path: Path, as_json: bool) -> None:
    """Estimate the effective model memorization: the largest N with ratio >= 1 - epsilon, for each curve.

    STUDY is a study file or the name that the store knows it by. The best checkpoint of each size counts, as
    in the paper; where the ratio does not cross the line between two sizes the answer is a bound.

    Example: diffmem emm quickstart --json
    """
    from diffmem.report.estimates import study_curves

    store, name = _stored(store_path, study, profile)
    curves = study_curves(store, _registered(store, name))
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


@main.command()
@click.argument("studies", nargs=-1)
@_profile_option
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
        names = [_stored(store.path, study, profile)[1] for study in studies]
        names = names or [row["study"] for row in store.studies()]
        path = output or store_paths[0].parent / "report.html"
        write_page(store, names, path, source=", ".join(map(str, store_paths)))
    click.echo(f"report: {path}")


@main.group("store", cls=Group)
def store_group() -> None:
    """Work on stores themselves.

    Example: diffmem store merge one.duckdb two.duckdb -o both.duckdb
    """


@store_group.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The store to merge into.")
def merge(stores: tuple[Path, ...], output: Path) -> None:
    """Take what other stores have measured into one, which is made where it is not there.

    Again, or in another order, it gives the same. A checkpoint that two of them have measured differently is
    reported, and nothing of the second one is taken.

    Example: diffmem store merge machine1.duckdb machine2.duckdb -o store/diffmem.duckdb
    """
    from diffmem.merging import merge as take_over
    from diffmem.store import Store

    into = Store(output)
    for path in stores:
        click.echo(f"{path}: {take_over(into, path)} checkpoints taken into {output}")


@main.command()
@click.option("--profile", metavar="NAME", help="Check the studies of this profile, not those at the paper's scale.")
@_store_option
@click.option("--markdown", is_flag=True, help="Print a table for a document.")
@_json_option
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


@main.command()
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    required=True,
    help="Generated images: a folder of PNG files, a .npz, a Parquet file or a pattern of them.",
)
@click.option("--against", required=True, metavar="DATASET", help="The training set: a name or a path, as P.dataset.")
@_store_option
@_json_option
def score(images: Path, against: str, store_path: Path, as_json: bool) -> None:
    """Measure how many images of any generator are copies of training images.

    The score is stored like any other checkpoint; `diffmem report NAME` shows the images beside what they copy.

    Example: diffmem score --images samples/ --against data/train/
    """
    from diffmem.scoring import score_images
    from diffmem.store import Store

    result = score_images(images, against, Store(store_path))
    if as_json:
        click.echo(json.dumps({**vars(result), "ratio": result.ratio}, indent=2))
        return
    click.echo(
        f"memorization ratio {result.ratio:.4f} (95% interval {result.low:.4f} to {result.high:.4f}): "
        f"{result.memorized} of {result.samples} images are nearer than a third to one training image of {against}"
    )
    if result.most_copied:
        print_table("the training images that are copied most (position in the dataset)", result.most_copied)
    click.echo(f"`diffmem report {result.study}` shows them")


@main.command()
@click.option(
    "--compile", "compiled", is_flag=True, help="Measure compiled networks too; takes minutes the first time."
)
@click.option("--compare", is_flag=True, help="Measure torch.cdist beside it, and faiss and diffusers where installed.")
@click.option("--growth", is_flag=True, help="Measure how store and report grow up to 10,000 cells.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the figures as JSON, and beside it the plot of --growth as .html.",
)
@_json_option
def bench(compiled: bool, compare: bool, growth: bool, output: Path | None, as_json: bool) -> None:
    """Measure how fast this device trains, generates and finds neighbours, as shares of its matrix-product peak.

    All figures are from one run, measured in turn, since a time alone says little on a machine that does other things.

    Example: diffmem bench --compare -o bench.json
    """
    from diffmem import bench as figures
    from diffmem import comparison, scaling
    from diffmem.throughput import this_device

    device = this_device()
    rows = figures.bench(device, compiled=compiled) + (comparison.compare(device) if compare else [])
    grown = scaling.measure_growth() if growth else []
    data = json.dumps({"device": figures.name_of(device), "speed": rows, "growth": grown}, indent=2)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(data + "\n", encoding="utf-8")
        if grown:
            scaling.growth_figure(grown).write_html(output.with_suffix(".html"))
    if as_json:
        click.echo(data)
        return
    print_table(figures.name_of(device), rows)
    if grown:
        print_table("Seconds, by the number of cells in the store", grown)


@main.command()
def schema() -> None:
    """Print the JSON schema of a study file, for completion in an editor.

    Example: diffmem schema > studies/study.schema.json
    """
    from diffmem.study import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


def _stored(store_path: Path, study: str, profile: str | None) -> "tuple[Store, str]":
    """Return the store and the name that it knows a study by; StoreError where it does not."""
    from diffmem.store import Store
    from diffmem.study import study_name

    store = Store(store_path)
    name = study_name(Path(study), profile) if study.endswith(".toml") or profile else study
    _registered(store, name)
    return store, name


def _registered(store: "Store", name: str) -> "Row":
    return store.study(name)

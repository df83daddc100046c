"""The commands that work on stores themselves: the group `store`."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.models import prune
from diffmem.cli.options import FileName, json_option, store_option
from diffmem.cli.tables import echo, print_json
from diffmem.text import counted, with_unit

if TYPE_CHECKING:
    from diffmem.store import Store


@click.group("store")
def store_group() -> None:
    """Inspect, check, merge or prune stores.

    Example: diffmem store merge one.duckdb two.duckdb -o both.duckdb
    """


def _store_argument(command: Any) -> Any:
    """Add STORE, for those who name a file first, beside the --store of all commands."""
    return click.argument("named", metavar="[STORE]", type=FileName(), required=False)(store_option(command))


def _the_store(named: Path | None, store_path: Path) -> "Store":
    """Return the store that is named one way or the other; UsageError where it is both, and they differ."""
    from diffmem.store import Store

    source = click.get_current_context().get_parameter_source("store_path")
    if named not in (None, store_path) and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError(f"{named} and --store {store_path} are two stores; name one")
    return Store(named or store_path)


@store_group.command()
@_store_argument
@json_option
def info(named: Path | None, store_path: Path, as_json: bool) -> None:
    """Show what a store holds.

    This is its size and schema, its studies, its cells by state, and how much is measured.

    STORE is a DuckDB file; it means the same as --store STORE.

    Example: diffmem store info
    """
    from diffmem.store import cell_states, describe_store, listed

    store = _the_store(named, store_path)
    described = describe_store(store)
    states = Counter(cell_states(store))
    if as_json:
        print_json({**vars(described), "cells": dict(states)})
        return
    by_state = ", ".join(f"{count} {state}" for state, count in states.most_common()) or "none"
    lines = {
        "path": described.path,
        "size": f"{with_unit(described.bytes)}B",
        "schema": described.schema,
        "cells": by_state,
        "checkpoints": described.checkpoints,
        "generated images": described.generated,
        "rows of evidence": described.evidence,
        "training states": f"{described.training_states}, {with_unit(described.training_state_bytes)}B",
        "trained models": f"{described.trained_models}, {with_unit(described.trained_model_bytes)}B",
        "studies": len(described.studies),
    }
    for name, value in lines.items():
        echo(f"{name:18}{value}")
    for study in described.studies:
        echo(f"  {study.study}: {counted(study.cells, 'cell')}, {study.title}")
    if older := described.older_cells:
        echo(f"{'outdated results':18}{counted(older, 'cell')}; a run of their studies measures them anew")
    if loose := described.in_no_study:
        echo(f"{'in no study now':18}{listed(loose)}")


@store_group.command()
@_store_argument
@json_option
def check(named: Path | None, store_path: Path, as_json: bool) -> None:
    """Check that a store is undamaged and consistent.

    Each ratio must agree with its evidence, and each row with the rows it belongs to. Faults are printed one per line.
    Exits with 1 if there are any.

    STORE is a DuckDB file; it means the same as --store STORE.

    Example: diffmem store check results/1.duckdb
    """
    from diffmem.store import faults

    store = _the_store(named, store_path)
    found = faults(store)
    if as_json:
        print_json(found)
    else:
        for fault in found:
            echo(fault)
        if not found:
            echo(f"{store.path}: in order")
    sys.exit(1 if found else 0)


@store_group.command()
@click.argument("stores", nargs=-1, required=True, type=FileName())
@click.option("-o", "--output", required=True, type=FileName(), help="The store to merge into.")
@json_option
def merge(stores: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Merge what several stores have measured into one store.

    The output store is created if it does not exist. Merging again, or in another order, gives the same result. If two
    stores have measured a checkpoint differently, the command reports it and copies nothing from the second store.

    Example: diffmem store merge machine1.duckdb machine2.duckdb -o store/diffmem.duckdb
    """
    from diffmem.store import Store
    from diffmem.store import merge as take_over

    into, taken = Store(output), []
    for path in stores:
        taken.append({"store": str(path), "checkpoints taken": take_over(into, path)})
        if not as_json:
            echo(f"{path}: {taken[-1]['checkpoints taken']} checkpoints taken into {output}")
    if as_json:
        print_json(taken)


store_group.add_command(prune)

"""The commands that work on stores themselves: the group `store`."""

from pathlib import Path

import click


@click.group("store")
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

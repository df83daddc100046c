"""The commands to begin with: `init` and `list`."""

import shlex
from pathlib import Path
from typing import Any

import click

from diffmem.cli.options import FileName, json_option, store_option
from diffmem.cli.tables import echo, print_json, print_table
from diffmem.errors import DiffmemError


@click.command()
@click.argument("name", type=FileName(), default="study")
@click.option(
    "--images",
    "dataset",
    metavar="IMAGES",
    type=FileName(),
    default="emoji",
    help="Training images: a folder, or a .zip, .npz or Parquet file.  [default: emoji, which ship with diffmem]",
)
def init(name: Path, dataset: Path) -> None:
    """Write a commented study file to start from.

    The file is called NAME.toml. Its study is small; `diffmem plan NAME --measure` estimates how long it takes here.

    Example: diffmem init mine --images photos/
    """
    from diffmem.cli.reading import shown_reading
    from diffmem.study import starter, study_file

    stem = name.name.removesuffix(".toml")
    if stem in ("", "..") or not stem.isprintable():
        raise DiffmemError(f"{stem!r} is no name for a study; give another one, `diffmem init NAME`")
    path = name.with_name(f"{stem}.toml")
    with shown_reading():
        text = starter(stem, str(dataset))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise DiffmemError(f"{path}: exists already; give another name, `diffmem init NAME`") from None
    except OSError as error:
        raise DiffmemError(f"{path}: cannot be written: {error.strerror}") from error
    given = shlex.quote(str(name if study_file(name) == path else path))
    echo(
        f"{path}: written. `diffmem plan {given} --measure` shows what it trains and how long that takes, "
        f"`diffmem run {given}` trains it."
    )


@click.command("list")
@store_option
@json_option
def list_(store_path: Path, as_json: bool) -> None:
    """List stored studies and those that ship with diffmem.

    You can run a shipped study by its name, as in `diffmem run quickstart` or `diffmem run skip --profile laptop`.

    Example: diffmem list
    """
    from diffmem.store import NEEDS_NO_MORE, Store, state_of
    from diffmem.study import Study, profiles_of, shipped_studies

    store = Store(store_path)
    rows: list[dict[str, Any]] = []
    if store.exists():
        for study in store.studies():
            cells = {cell.cell_id: cell for cell in store.progress(study.study)}.values()
            finished = f"{sum(state_of(cell) in NEEDS_NO_MORE for cell in cells)}/{len(cells)}"
            rows.append({"study": study.study, "title": study.title, "finished": finished, "profiles": None})
    for name, path in shipped_studies().items():
        profiles = ", ".join(profiles_of(path))
        rows.append({"study": name, "title": Study.load(path).title, "finished": None, "profiles": profiles or None})
    if as_json:
        print_json(rows)
        return
    print_table("", rows)

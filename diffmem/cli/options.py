"""What several commands share: their options, and the study or store that an argument names."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.errors import StoreError

if TYPE_CHECKING:
    from diffmem.store import Row, Store
    from diffmem.study import Study


def store_option(command: Any) -> Any:
    """Add --store."""
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


def profile_option(command: Any) -> Any:
    """Add --profile."""
    return click.option("--profile", metavar="NAME", help="The study at another scale: a table of its [profiles].")(
        command
    )


def set_option(command: Any) -> Any:
    """Add --set."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a setting, in TOML syntax: --set T.epochs=10 --set 'M.condition=\"true\"'.",
    )(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print data instead of a table.")


def load_study(path: Path, profile: str | None, overrides: tuple[str, ...]) -> "Study":
    """Return the study of a file; StudyError with all its faults."""
    from diffmem.study import Study

    return Study.load(path, profile=profile, overrides=overrides)


def stored(store_path: Path, study: str, profile: str | None) -> "tuple[Store, str]":
    """Return the store and the name that it knows a study by; StoreError where it does not."""
    from diffmem.store import Store
    from diffmem.study import study_name

    store = Store(store_path)
    name = study_name(Path(study), profile) if study.endswith(".toml") or profile else study
    registered(store, name)
    return store, name


def registered(store: "Store", name: str) -> "Row":
    """Return what the store knows of a study; StoreError where that is nothing."""
    rows = store.studies()
    found = next((row for row in rows if row["study"] == name), None)
    if found is None:
        known = ", ".join(row["study"] for row in rows) or "none yet"
        raise StoreError(f"{store.path}: no study {name!r}; it has {known}. `diffmem run STUDY.toml` adds one")
    return found

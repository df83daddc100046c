"""What several commands share: their options, and the study or store that an argument names."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from diffmem.cli.tables import echo
from diffmem.errors import DiffmemError, NotInStore
from diffmem.measures import AUGMENTATIONS, MEASURES, SPACE_NAME, all_names, no_copies
from diffmem.store import DEFAULT_STORE

if TYPE_CHECKING:
    from diffmem.store import Store, StoredStudy
    from diffmem.study import Study


class FileName(click.Path):
    """A path as text: no name that only bytes can write, which no study, store or page could keep."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        try:
            usable = b"\0" not in str(value).encode()
        except UnicodeEncodeError:
            usable = False
        if not usable:
            self.fail(f"{str(value)!r} is not a file name in UTF-8", param, ctx)
        return super().convert(value, param, ctx)


class StudyFile(FileName):
    """A study file, or the name of one in the folder `studies` or of one that ships with diffmem."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of the file."""
        from diffmem.study import study_file

        return study_file(super().convert(value, param, ctx))


def store_option(command: Any) -> Any:
    """Add --store."""
    return click.option(
        "--store",
        "store_path",
        type=FileName(),
        envvar="DIFFMEM_STORE",
        default=DEFAULT_STORE,
        show_default=True,
        show_envvar=True,
        help="The DuckDB file that holds the results.",
    )(command)


def profile_option(command: Any) -> Any:
    """Add --profile."""
    return click.option(
        "--profile",
        metavar="NAME",
        shell_complete=complete_profile,
        help="Use the study at another scale: NAME is a table of its [profiles].",
    )(command)


def complete_profile(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the profiles that begin so: those of the study files before them, or those that the store has run."""
    from diffmem.study import profiles_of

    files = [text for text in context.args if text.endswith(".toml")]  # click leaves arguments to later than this
    names = {name for file in files for name in profiles_of(Path(file))}
    if not files:
        names = {each.study.partition("@")[2] for each in _studies(context)}
    return [CompletionItem(name) for name in sorted(names - {""}) if name.startswith(begun)]


def set_option(command: Any) -> Any:
    """Add --set."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        shell_complete=complete_key,
        help="Override a setting, in TOML syntax: --set T.epochs=10 --set 'M.condition=\"true\"'.",
    )(command)


def complete_key(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the keys of a study file that begin so, up to where the value begins."""
    from diffmem.study import known_keys

    return [CompletionItem(f"{key}=") for key in sorted(known_keys()) if f"{key}=".startswith(begun)]


def max_pixels_option(command: Any) -> Any:
    """Add --max-pixels, which is handed on in the environment, so that the processes of a run have it too."""
    return click.option(
        "--max-pixels",
        type=click.IntRange(1, 10**18),
        metavar="N",
        envvar="DIFFMEM_MAX_PIXELS",
        show_envvar=True,
        expose_value=False,
        callback=_hand_on_max_pixels,
        help="Limit on the pixels of one collection of images, summed over its decoded images.  [default: 5000000000]",
    )(command)


def _hand_on_max_pixels(context: click.Context, _parameter: click.Parameter, value: int | None) -> None:
    if value is not None:
        context.with_resource(_environment("DIFFMEM_MAX_PIXELS", str(value)))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment while the command runs."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


class MeasureName(click.Choice[str]):
    """The name of a measure, or of a feature space, which only a study or a store knows."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or refuse it."""
        of_space = value not in self.choices and re.fullmatch(SPACE_NAME, str(value))
        return str(value) if of_space else super().convert(value, param, ctx)


def check_name(name: str, known: Iterable[str]) -> None:
    """Raise what click does of an option that is none of its choices, if a measure is none of those known."""
    known = list(known)
    if name not in known:
        said = f"{name!r} is not one of {', '.join(map(repr, known))}."
        raise click.BadParameter(said, click.get_current_context(), param_hint="'--measure'")


def by_measure(study: "StoredStudy", name: str | None) -> "StoredStudy":
    """Return a study with its ratios by another measure that diffmem or its store knows, or by its own without one."""
    if name is None:
        return study
    check_name(name, study.measures)
    return study.by(study.measures[name])


class CopyMeasure(click.Choice[str]):
    """The name of a measure that tells copies; it says why another one is none."""

    def __init__(self) -> None:
        super().__init__(list(MEASURES))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or refuse it."""
        if value in all_names() and value not in MEASURES:
            self.fail(no_copies(str(value)), param, ctx)
        return super().convert(value, param, ctx)


class StoredMeasure(MeasureName, CopyMeasure):
    """The name of a measure that tells copies, also in a feature space, which only a store knows."""

    def __init__(self) -> None:
        CopyMeasure.__init__(self)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or refuse it."""
        return (CopyMeasure if value in all_names() else MeasureName).convert(self, value, param, ctx)


def measure_option(command: Any) -> Any:
    """Add --measure, which can be given once."""
    return click.option(
        "--measure",
        type=StoredMeasure(),
        metavar="MEASURE",
        help="Use the ratios of this measure; docs/measures.md lists them.  [default: emm.measure of the study]",
    )(command)


def measures_option(command: Any) -> Any:
    """Add --measure, which can be given several times."""
    return click.option(
        "--measure",
        "measures",
        multiple=True,
        type=CopyMeasure(),
        metavar="MEASURE",
        help="Also score by this measure; docs/measures.md lists them. The paper's measure is always included.",
    )(command)


def all_measures_option(command: Any) -> Any:
    """Add --measure, which can be given several times, for measures of any kind."""
    return click.option(
        "--measure",
        "measures",
        multiple=True,
        type=MeasureName(all_names()),
        metavar="MEASURE",
        help="Also score by this measure; docs/measures.md lists them. The paper's measure is always included.",
    )(command)


def space_option(command: Any) -> Any:
    """Add --space, which can be given several times."""
    return click.option(
        "--space",
        "spaces",
        multiple=True,
        metavar="NAME={...}",
        callback=_spaces,
        help="Also score in this feature space. It is given in TOML, with the keys of [spaces.NAME] in a study: "
        """--space 'sscd = {features = "sscd.pt", resize = "short 288", pixels = "imagenet", threshold = 0.5}'.""",
    )(command)


def _spaces(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the tables of spaces by name."""
    import tomli

    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        try:
            tables = tomli.loads(text)
        except (tomli.TOMLDecodeError, ValueError, RecursionError) as error:
            raise click.BadParameter(f"{text}: not NAME = {{...}} in TOML syntax") from error
        if not all(isinstance(table, dict) for table in tables.values()) or not tables.keys().isdisjoint(found):
            raise click.BadParameter(f"{text}: not NAME = {{...}}, each name once")
        found |= tables
    return found


def augment_option(command: Any) -> Any:
    """Add --augment, which can be given several times."""
    return click.option(
        "--augment",
        multiple=True,
        type=click.Choice(AUGMENTATIONS),
        help="Augmentation that the training used. The group of an image then includes its augmented versions.",
    )(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print data instead of a table.")


def load_study(path: Path, profile: str | None, overrides: tuple[str, ...]) -> "Study":
    """Return the study of a file, while a bar shows how far its images are read; StudyError with all its faults."""
    from diffmem.cli.reading import shown_reading
    from diffmem.study import Study

    with shown_reading():
        return Study.load(path, profile=profile, overrides=overrides)


# --- names of the store ---------------------------------------------------------------------------------


def stored(store_path: Path, study: str, profile: str | None = None) -> "tuple[Store, StoredStudy]":
    """Return the store and what it knows of a study, by its file, its name or the beginning of it.

    StoreError where that is none, or more than one. A file of the name that is not the one that was run is told of.
    """
    from diffmem.store import Store, as_options, find_study
    from diffmem.study import study_name

    store, is_file = Store(store_path), study.endswith(".toml")
    name = study_name(Path(study), profile) if is_file or profile else study
    try:
        row = find_study(store, name, exact=is_file)
    except NotInStore as error:
        if is_file and not os.path.exists(study):  # noqa: PTH110 - a Path raises of names that no file can have
            raise NotInStore(f"{study}: no such file, and {error}") from error
        raise
    if is_file and is_another_file(row, study):
        echo(f"note: this is the study of {file_of(row)}, the one of this name that was run last", err=True)
    if row.overrides:
        echo(f"note: {row.study} was run last with {' '.join(as_options(row.overrides))}", err=True)
    return store, row


def is_another_file(row: "StoredStudy", path: str) -> bool:
    """Return whether a study of the store was run from another file than this one, where both are here to compare."""
    if row.folder is None or not all(map(os.path.isfile, (path, file_of(row)))):  # a Path raises of impossible names
        return False
    return not os.path.samefile(path, file_of(row))  # noqa: PTH121


def file_of(row: "StoredStudy") -> str:
    """Return the file that a study of the store was run from, as it is called from here."""
    return os.path.relpath(os.path.join(row.folder or "", row.path))  # noqa: PTH118


def complete_study(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the studies of the store that begin so, or let the shell complete a file."""
    studies = [each for each in _studies(context) if each.study.startswith(begun)]
    return [CompletionItem(each.study, help=each.title) for each in studies] or [CompletionItem(begun, type="file")]


def _studies(context: click.Context) -> "list[StoredStudy]":
    """Return the studies of the store that a command line begun names; none where it cannot be read."""
    from diffmem.store import Store

    try:
        return Store(_store_of(context)).studies()
    except DiffmemError:
        return []


def complete_cell(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the cells of the store that begin so, with their studies and axis values."""
    from diffmem.store import Store, cell_names

    try:
        cells = cell_names(Store(_store_of(context)))
    except DiffmemError:
        return []
    return [CompletionItem(cell, help=name) for cell, name in cells.items() if cell.startswith(begun)]


def _store_of(context: click.Context) -> Path:
    """Return the store that a command line begun names: the first one, of several."""
    given = context.params.get("store_path") or context.params.get("store_paths")
    return Path(given[0] if isinstance(given, tuple | list) else given or DEFAULT_STORE)


study_argument = click.argument("study", shell_complete=complete_study)

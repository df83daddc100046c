"""Reading study files: TOML text with the line of every key, merged with what it extends, a profile and overrides."""

import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, get_args

import tomli

from diffmem.cells import DataDistribution, Estimation, ModelConfiguration, Scoring, Settings, TrainingProcedure
from diffmem.errors import StudyError

SECTIONS: dict[str, type[Settings]] = {
    "P": DataDistribution,
    "M": ModelConfiguration,
    "T": TrainingProcedure,
    "score": Scoring,
    "emm": Estimation,
}


def _keys_of(model: type[Settings], prefix: str) -> Iterator[str]:
    """Yield the dotted keys of a model, down to the keys of the models inside it."""
    for key, field_info in model.model_fields.items():
        inner = [
            kind for kind in get_args(field_info.annotation) if isinstance(kind, type) and issubclass(kind, Settings)
        ]
        if inner:
            yield from _keys_of(inner[0], f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}"


KEYS = {key for section, model in SECTIONS.items() for key in _keys_of(model, section)}
AXIS_KEYS = {key for key in KEYS if key.startswith(("P.", "M.", "T."))}
TEXTS = {
    "title": "What the report calls the study; default: the file's name.",
    "figure": "The figure or table of the paper that it is about.",
    "extends": "Another study file, relative to this one, whose tables this one's are merged over.",
}
"""Keys outside the tables, and their meaning."""

MOST_BYTES = 10_000_000
"""No study file is longer."""
MOST_BASES = 20
"""Files that extend one another in a row."""


class Place(NamedTuple):
    """Where a setting was written: a file and line, or the command line."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Setting(NamedTuple):
    """A value and where it was written."""

    value: Any
    place: Place


@dataclass
class Layer:
    """What one file, or one profile of it, says."""

    settings: dict[str, Setting] = field(default_factory=dict)
    axes: list[dict[str, Setting]] | None = None

    def over(self, below: "Layer") -> "Layer":
        """Return this layer on top of another: settings merge key by key, axes replace as a whole.

        A key that this layer sets leaves the axes of the one below: the upper layer wins.
        """
        axes = self.axes
        if axes is None and below.axes is not None:
            axes = [{key: axis[key] for key in axis if key not in self.settings} for axis in below.axes]
            axes = [axis for axis in axes if axis]
        return Layer({**below.settings, **self.settings}, axes)


class Faults:
    """Collects faults, each once, and tells them file by file in the order of their lines."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}

    def add(self, place: Place, key: str, message: str) -> None:
        """Note that `key`, written at `place`, is wrong."""
        self._places[f"{place}: {key}: {message}" if key else f"{place}: {message}"] = place

    def raise_if_any(self) -> None:
        """Raise a StudyError with all faults, if there are any."""
        if self._places:
            files = list(dict.fromkeys(place.source for place in self._places.values()))
            rank = {text: (files.index(place.source), place.line or math.inf) for text, place in self._places.items()}
            raise StudyError(sorted(rank, key=rank.__getitem__))


class FirstFault(Faults):
    """Ends at the first fault, for a study that is only of use without any."""

    def add(self, place: Place, key: str, message: str) -> None:
        """Raise a StudyError with this fault."""
        super().add(place, key, message)
        self.raise_if_any()


def read_study(
    path: Path, *, profile: str | None, overrides: Sequence[str], faults: Faults, most_bytes: int = MOST_BYTES
) -> Layer:
    """Return what a study file says in all: its bases, itself, the profile and the overrides, merged in this order.

    Faults are noted in `faults`; StudyError at once where a file cannot be read, or is longer than `most_bytes`, since
    the rest would mislead.
    """
    document = _read(path, faults, (), most_bytes)
    if document.unreadable:
        faults.raise_if_any()
    layer = document.layer
    if profile is not None:
        layer = _profile(document, profile, path, faults).over(layer)
    return _override(layer, overrides, faults)


def profiles_of(path: Path) -> list[str]:
    """Return the names of the profiles of a study file and of all that it extends; none where it cannot be read."""
    return sorted(_read(path, Faults(), ()).profiles)


@dataclass
class Document:
    """A file merged over the files that it extends."""

    layer: Layer = field(default_factory=Layer)
    profiles: dict[str, Layer] = field(default_factory=dict)
    unreadable: bool = False


def _read(path: Path, faults: Faults, above: tuple[Path, ...], most_bytes: int = MOST_BYTES) -> Document:
    """Read a file and all that it extends; `above` are the files that led here."""
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # it may never begin, or never end
            faults.add(Place(str(path)), "", "a pipe or a device, not a study file")
            return Document(unreadable=True)
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            faults.add(Place(str(path)), "", f"longer than {most_bytes} bytes; no study file is")
            return Document(unreadable=True)
        text = content.decode("utf-8-sig")  # some editors of Windows begin with a mark
        values = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        faults.add(Place(str(path), error.lineno), "", f"not valid TOML: {error.msg}{_toml_hint(error)}")
        return Document(unreadable=True)
    except UnicodeDecodeError:
        faults.add(Place(str(path)), "", "not valid TOML: not UTF-8 text")
        return Document(unreadable=True)
    except (ValueError, RecursionError) as error:
        faults.add(Place(str(path)), "", f"not valid TOML: {_first_words(error)}")
        return Document(unreadable=True)
    except OSError as error:
        where = f"; {above[-1]} extends it" if above else ""
        if path.suffix != ".toml":
            where += "; a study file ends in .toml, as studies/quickstart.toml"
        name = "".join(letter if letter.isprintable() else "?" for letter in str(path))
        faults.add(Place(name), "", f"cannot be read: {error.strerror or error}{where}")
        return Document(unreadable=True)
    lines = _line_numbers(text)

    def place(*keys: str) -> Place:
        found = (lines.get(keys[:n]) for n in range(len(keys), 0, -1))
        return Place(str(path), next((line for line in found if line), None))

    document = _document(values, place, faults)
    extends = values.get("extends")
    if not isinstance(extends, str):
        return document
    if "\0" in extends:
        faults.add(place("extends"), "extends", "not a file name")
        return document
    base_path = path.parent / extends
    if os.path.realpath(base_path) in map(os.path.realpath, (*above, path)):  # Path.resolve trips over a loop of links
        faults.add(place("extends"), "extends", f"{extends} leads back to this file")
        return document
    if len(above) == MOST_BASES:
        faults.add(place("extends"), "extends", f"more than {MOST_BASES} files extend one another")
        return document
    base = _read(base_path, faults, (*above, path), most_bytes)
    profiles = {
        name: document.profiles.get(name, Layer()).over(base.profiles.get(name, Layer()))
        for name in {**base.profiles, **document.profiles}
    }
    return Document(document.layer.over(base.layer), profiles, base.unreadable)


def _toml_hint(error: tomli.TOMLDecodeError) -> str:
    """Return what is likely meant by a value that is none: text, true or false."""
    if error.msg != "Invalid value" or not (word := re.match("[A-Za-z]+", error.doc[error.pos :])):
        return ""
    is_boolean = word[0].lower() in ("true", "false")
    return " (true and false are in small letters)" if is_boolean else " (text needs quotes)"


def _first_words(error: Exception) -> str:
    """Return what Python says of a number or a nesting that is too large, without what a program could do about it."""
    return str(error).partition(";")[0]


def _line_numbers(text: str) -> dict[tuple[str, ...], int]:
    """Return the line (from 1) of every key of a valid TOML text; a key has the line at which its statement begins.

    The elements of an array of tables are keyed by their index: ("axes", "0", "M", "width").
    """
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    for line, statement in _statements(text.replace("\r\n", "\n")):
        keys = _keys(tomli.loads(statement))
        is_table = statement.lstrip().startswith("[")
        if statement.lstrip().startswith("[["):
            number = counts.get(keys, 0)
            counts[keys] = number + 1
            keys = (*keys, str(number))
        elif is_table:
            keys = _in_last_element(keys, counts)
        table = keys if is_table else table
        path = keys if is_table else (*table, *keys)
        for length in range(1, len(path) + 1):
            lines.setdefault(path[:length], line)
    return lines


TOKENS = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\])*"|'[^']*'|#[^\n]*|[\[\]{}\n]''', re.DOTALL
)
"""What tells where a statement of a valid TOML text ends: texts, comments, brackets and line ends."""


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the statements of a valid TOML text with the line, from 1, that each begins at: a line end outside of
    brackets ends one."""
    start, line, depth, lines = 0, 1, 0, 0
    for token in TOKENS.finditer(text + "\n"):
        found = token[0]
        lines += found.count("\n")
        depth += (found in ("[", "{")) - (found in ("]", "}"))
        if found == "\n" and depth == 0:
            yield line, text[start : token.end()]
            start, line = token.end(), lines + 1


def _in_last_element(keys: tuple[str, ...], counts: Mapping[tuple[str, ...], int]) -> tuple[str, ...]:
    for length in range(len(keys), 0, -1):
        if keys[:length] in counts:
            return (*keys[:length], str(counts[keys[:length]] - 1), *keys[length:])
    return keys


def _keys(statement: dict[str, Any]) -> tuple[str, ...]:
    """Return the dotted key of a parsed statement, as far down as it names one thing."""
    keys: list[str] = []
    value: Any = statement
    while isinstance(value, dict) and len(value) == 1:
        key, value = next(iter(value.items()))
        keys.append(key)
    return tuple(keys)


PlaceOf = Callable[..., Place]


def _document(values: dict[str, Any], place: PlaceOf, faults: Faults) -> Document:
    profiles = values.get("profiles", {})
    if not isinstance(profiles, dict):
        faults.add(place("profiles"), "profiles", "must be a table of tables: [profiles.NAME]")
        profiles = {}
    document = Document(_layer(values, (), place, faults))
    for name, profile in profiles.items():
        if isinstance(profile, dict):
            document.profiles[name] = _layer(profile, ("profiles", name), place, faults)
        else:
            faults.add(place("profiles", name), f"profiles.{name}", "must be a table")
    return document


def _layer(values: dict[str, Any], prefix: tuple[str, ...], place: PlaceOf, faults: Faults) -> Layer:
    layer = Layer()
    known = [*SECTIONS, *TEXTS, "axes", "profiles"] if not prefix else [*SECTIONS, "title", "axes"]
    for name, value in values.items():
        where = place(*prefix, name)
        if name in SECTIONS:
            for keys, setting in _leaves(value, (name,)):
                key = ".".join(keys)
                layer.settings[key] = Setting(setting, place(*prefix, *keys))
        elif name == "axes":
            layer.axes = _axes(value, prefix, place, faults)
        elif name not in known:
            faults.add(where, name, no_such_key(name, known))
        elif name in TEXTS and not isinstance(value, str):
            faults.add(where, name, f"must be text, not {shown(value)}")
        elif name in TEXTS:
            layer.settings[name] = Setting(value, where)
    _drop_unknown(layer.settings, faults)
    return layer


def _leaves(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the dotted key and value of everything in a table that is not itself a table."""
    if isinstance(value, dict) and (value or len(keys) == 1):
        for key, inner in value.items():
            yield from _leaves(inner, (*keys, key))
    else:
        yield keys, value


def _axes(value: Any, prefix: tuple[str, ...], place: PlaceOf, faults: Faults) -> list[dict[str, Setting]]:
    if not isinstance(value, list) or not all(isinstance(axis, dict) for axis in value):
        faults.add(place(*prefix, "axes"), "axes", "must be [[axes]] tables of lists")
        return []
    axes = []
    for number, table in enumerate(value):
        at = (*prefix, "axes", str(number))
        axis = {}
        for keys, values in _leaves(table, ()):
            axis[".".join(keys)] = Setting(values, place(*at, *keys))
        _drop_unknown(axis, faults, AXIS_KEYS)
        _check_axis(axis, faults)
        if axis:
            axes.append(axis)
    _check_axes_are_distinct(axes, faults)
    return axes


def _check_axis(axis: dict[str, Setting], faults: Faults) -> None:
    """Note and drop the keys of an axis whose values are no list or not as many as the others'."""
    for key, (values, place) in list(axis.items()):
        if not isinstance(values, list) or not values:
            faults.add(place, key, f"an axis needs a list of values, not {shown(values)}")
            del axis[key]
    if len({len(setting.value) for setting in axis.values()}) > 1:
        counts = ", ".join(f"{key} has {len(setting.value)}" for key, setting in axis.items())
        key, setting = next(iter(axis.items()))
        faults.add(setting.place, key, f"keys of one axis move together and need equally many values: {counts}")
        axis.clear()


def _check_axes_are_distinct(axes: list[dict[str, Setting]], faults: Faults) -> None:
    seen: dict[str, Place] = {}
    for axis in axes:
        for key, setting in axis.items():
            if key in seen:
                faults.add(setting.place, key, f"is on an axis already, at {seen[key]}")
            seen.setdefault(key, setting.place)


def _drop_unknown(settings: dict[str, Setting], faults: Faults, known: set[str] = KEYS) -> None:
    for key, (value, place) in list(settings.items()):
        if key in known or (known is KEYS and key in TEXTS):
            continue
        inner = sorted(other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == key)
        if key in SECTIONS and known is KEYS:
            faults.add(place, key, f"must be a table, not {shown(value)}")
        elif inner:
            faults.add(place, key, f"must be a table of {', '.join(inner)}, not {shown(value)}")
        elif key in KEYS or key in TEXTS:
            faults.add(place, key, "cannot be on an axis; only keys of P, M and T can")
        elif not key:
            faults.add(place, "axes", "an axis needs a key with its values, as in P.size = [4, 8]")
        else:
            faults.add(place, key, no_such_key(key, known))
        del settings[key]


def shown(value: Any) -> str:
    """Return a value as a message shows it, the middle of a long one left out."""
    try:
        text = repr(value)
    except ValueError:  # a whole number in hex, of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-10:]}"


def no_such_key(key: str, known: Iterable[str]) -> str:
    """Return `no such key`, with the nearest valid one where there is one."""
    section, _, leaf = key.rpartition(".")
    moved = [other for other in sorted(known) if "." in other and other.rpartition(".")[2] == leaf]
    near = moved or get_close_matches(key, list(known), n=1, cutoff=0.6)
    if not near:
        return "no such key"
    guess = near[0]
    return f"no such key; did you mean {guess.rpartition('.')[2] if guess.startswith(f'{section}.') else guess}?"


def _profile(document: Document, name: str, path: Path, faults: Faults) -> Layer:
    if name in document.profiles:
        return document.profiles[name]
    known = ", ".join(sorted(document.profiles)) or "none"
    faults.add(Place(str(path)), "profiles", f"no profile {name!r}; there is {known}")
    return Layer()


def _override(layer: Layer, overrides: Sequence[str], faults: Faults) -> Layer:
    """Apply `KEY=VALUE` settings; a list replaces the values of an axis, a single value takes the key off it."""
    for text in overrides:
        place = Place(f"--set {text}")
        settings: dict[str, Setting] = {}
        try:
            text.encode()
            for keys, value in _leaves(tomli.loads(text), ()):
                settings[".".join(keys)] = Setting(value, place)
        except tomli.TOMLDecodeError as error:
            faults.add(place, "", f"not KEY=VALUE in TOML syntax: {error.msg} (text needs quotes)")
        except UnicodeEncodeError:
            faults.add(place, "", "not UTF-8 text")
        except (ValueError, RecursionError) as error:
            faults.add(place, "", f"not KEY=VALUE in TOML syntax: {_first_words(error)}")
        for key, setting in list(settings.items()):
            if key == "extends":
                faults.add(place, key, "cannot be overridden")
                del settings[key]
            elif key in TEXTS and not isinstance(setting.value, str):
                faults.add(place, key, f"must be text, not {shown(setting.value)}")
                del settings[key]
        _drop_unknown(settings, faults)
        for key, setting in settings.items():
            layer = _with_override(layer, key, setting, faults)
    return layer


def _with_override(layer: Layer, key: str, setting: Setting, faults: Faults) -> Layer:
    axes = [dict(axis) for axis in layer.axes or []]
    axis = next((axis for axis in axes if key in axis), None)
    if axis is None or not isinstance(setting.value, list):
        return Layer({key: setting}).over(layer)
    axis[key] = setting
    _check_axis(axis, faults)
    return Layer(layer.settings, [axis for axis in axes if axis])

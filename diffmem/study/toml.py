"""Reading study files: TOML text with the line of every key, merged with what it extends, a profile and overrides."""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tomli

from diffmem.errors import StudyError
from diffmem.study.layers import (
    DEFAULT_NETWORK,
    TEXTS,
    Document,
    Faults,
    Layer,
    Place,
    Setting,
    check_alternatives,
    check_axis,
    check_networks,
    document_of,
    drop_unknown,
    leaves_of,
    networks_of,
    shown,
)
from diffmem.study.shipped import shipped_studies

MOST_BYTES = 10_000_000
"""No study file is longer."""

MOST_BASES = 20
"""Files that extend one another in a row."""


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
    layer = _override(layer, overrides, faults)
    check_networks(layer, faults)
    return layer


def profiles_of(path: Path) -> list[str]:
    """Return the names of the profiles of a study file and of all that it extends; none where it cannot be read."""
    return sorted(_read(path, Faults(), ()).profiles)


def _read(path: Path, faults: Faults, above: tuple[Path, ...], most_bytes: int = MOST_BYTES) -> Document:
    """Read a file and all that it extends; `above` are the files that led here."""
    parsed = _parsed(path, faults, above, most_bytes)
    if parsed is None:
        return Document(unreadable=True)
    values, lines = parsed

    def place(*keys: str) -> Place:
        found = (lines.get(keys[:n]) for n in range(len(keys), 0, -1))
        return Place(str(path), next((line for line in found if line), None))

    document = document_of(values, place, faults)
    extends = values.get("extends")
    if not isinstance(extends, str):
        document.layer.networks = document.layer.networks or DEFAULT_NETWORK
        return document
    if fault := _cannot_extend(path, extends, above):
        faults.add(place("extends"), "extends", fault)
        return document
    base = _read(path.parent / extends, faults, (*above, path), most_bytes)
    profiles = {
        name: document.profiles.get(name, Layer()).over(base.profiles.get(name, Layer()))
        for name in {**base.profiles, **document.profiles}
    }
    return Document(document.layer.over(base.layer), profiles, base.unreadable)


def _cannot_extend(path: Path, extends: str, above: tuple[Path, ...]) -> str:
    """Return what keeps a file from extending another one; empty where nothing does."""
    if "\0" in extends:
        return "not a file name"
    base = os.path.realpath(path.parent / extends)  # Path.resolve trips over a loop of links
    if base in map(os.path.realpath, (*above, path)):
        return f"{extends} leads back to this file"
    return f"more than {MOST_BASES} files extend one another" if len(above) == MOST_BASES else ""


def _parsed(
    path: Path, faults: Faults, above: tuple[Path, ...], most_bytes: int
) -> tuple[dict[str, Any], dict[tuple[str, ...], int]] | None:
    """Return the values of a file and the lines of its keys; None, with the fault noted, where it cannot be read."""
    place, fault = Place(str(path)), ""
    try:
        text = _text_of(path, most_bytes)
        return tomli.loads(text), _line_numbers(text)
    except StudyError as error:
        fault = str(error)
    except tomli.TOMLDecodeError as error:
        place, fault = Place(str(path), error.lineno), f"not valid TOML: {error.msg}{_toml_hint(error)}"
    except UnicodeDecodeError:
        fault = "not valid TOML: not UTF-8 text"
    except (ValueError, RecursionError) as error:
        fault = f"not valid TOML: {_first_words(error)}"
    except OSError as error:
        where = f"; {above[-1]} extends it" if above else ""
        if path.suffix != ".toml":
            where += f"; {_no_study(path)}"
        place = Place("".join(letter if letter.isprintable() else "?" for letter in str(path)))
        fault = f"cannot be read: {error.strerror or error}{where}"
    faults.add(place, "", fault)
    return None


def _no_study(path: Path) -> str:
    """Return what to say of a path that is no study file: of a mere name, that no study has it."""
    if len(path.parts) != 1 or path.suffix or path.exists():
        return "a study file ends in .toml, as studies/quickstart.toml"
    near = "".join(f"; did you mean {name}?" for name in get_close_matches(str(path), list(shipped_studies()), n=1))
    return f"no study that ships has this name either{near or '; `diffmem list` shows them'}"


def _text_of(path: Path, most_bytes: int) -> str:
    """Return the text of a file; StudyError where it cannot be a study's, before it is read."""
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # it may never begin, or never end
        raise StudyError(["a pipe or a device, not a study file"])
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise StudyError([f"longer than {most_bytes} bytes; no study file is"])
    return content.decode("utf-8-sig")  # some editors of Windows begin with a mark


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


def _profile(document: Document, name: str, path: Path, faults: Faults) -> Layer:
    if name in document.profiles:
        return document.profiles[name]
    known = ", ".join(sorted(document.profiles)) or "none"
    faults.add(Place(str(path)), "profiles", f"no profile {name!r}; there is {known}")
    return Layer()


def _override(layer: Layer, overrides: Sequence[str], faults: Faults) -> Layer:
    """Apply `KEY=VALUE` settings; a list replaces the values of an axis, a single value takes the key off it."""
    given: dict[str, Setting] = {}
    for text in overrides:
        place = Place(f"--set {text}")
        settings: dict[str, Setting] = {}
        try:
            text.encode()
            for keys, value in leaves_of(tomli.loads(text), ()):
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
        drop_unknown(settings, faults)
        given |= settings
        for key, setting in settings.items():
            layer = _with_override(layer, key, setting, faults)
    check_alternatives(Layer(given), faults)
    return layer


def _with_override(layer: Layer, key: str, setting: Setting, faults: Faults) -> Layer:
    axes = [dict(axis) for axis in layer.axes or []]
    axis = next((axis for axis in axes if key in axis), None)
    if axis is None or not isinstance(setting.value, list):
        return Layer({key: setting}, networks=networks_of([{key: setting}])).over(layer)
    axis[key] = setting
    check_axis(axis, faults)
    return Layer(layer.settings, [axis for axis in axes if axis], layer.networks | networks_of([axis]))

"""What a study file says, as layers of settings with the line of each: merged, checked, and every fault kept."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

from diffmem.cells import (
    BUDGETS,
    DataDistribution,
    Estimation,
    ModelConfiguration,
    Scoring,
    SpaceSettings,
    TrainingProcedure,
)
from diffmem.errors import StudyError
from diffmem.networks import MEMBERS
from diffmem.settings import Settings

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


def models_of(section: str) -> list[type[Settings]]:
    """Return the models whose keys a section can have: of M, those of all networks."""
    return [*MEMBERS.values()] if section == "M" else [SECTIONS[section]]


def known_keys(sections: Iterable[str] = SECTIONS) -> set[str]:
    """Return the dotted keys of some sections, by default of all."""
    return {key for section in sections for model in models_of(section) for key in _keys_of(model, section)}


DEFAULT_NETWORK = frozenset({next(iter(MEMBERS))})
"""The network of a study that names none."""

SPACES = "spaces"
"""The table of feature spaces, each a table by its name."""

ON_AXES = ("P", "M", "T")
"""The sections whose keys can be on an axis."""

TEXTS = {
    "title": "What the report calls the study; default: the file's name.",
    "figure": "The figure or table of the paper that it is about.",
    "extends": "Another study file, relative to this one, whose tables this one's are merged over.",
}
"""Keys outside the tables, and their meaning."""


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
    networks: frozenset[str] = frozenset()  # that it names, and those below it

    def over(self, below: "Layer") -> "Layer":
        """Return this layer on top of another: settings merge key by key, axes replace as a whole.

        A key that this layer sets leaves the axes of the one below, and the keys in whose place it is go: the upper
        layer wins.
        """
        axes = self.axes
        replaced = _alternatives([self.settings, *(axes or [])])
        if axes is None and below.axes is not None:
            gone = self.settings.keys() | replaced
            axes = [{key: axis[key] for key in axis if key not in gone} for axis in below.axes]
            axes = [axis for axis in axes if axis]
        kept = {key: setting for key, setting in below.settings.items() if key not in replaced}
        return Layer({**kept, **self.settings}, axes, self.networks | below.networks)


ONE_OF = (tuple(f"T.{key}" for key in BUDGETS), ("score.every", "score.points"))
"""Keys of which a study has one, each in the place of the others."""


def _alternatives(tables: Iterable[Mapping[str, Setting]]) -> set[str]:
    """Return the keys in whose place those of some tables are."""
    named = {key for table in tables for key in table}
    return {key for keys in ONE_OF if named & {*keys} for key in keys} - named


class Faults:
    """Collects faults, each once, and reports them file by file, in line order."""

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


def check_alternatives(layer: Layer, faults: Faults) -> None:
    """Note and drop the keys of a layer in whose place another one of its keys is already."""
    tables = [layer.settings, *(layer.axes or [])]
    for keys in ONE_OF:
        named = [(table[key].place, key, table) for table in tables for key in keys if key in table]
        named.sort(key=lambda each: each[0].line or 0)
        for place, key, table in named[1:]:
            first, taken, _ = named[0]
            if key != taken:
                faults.add(place, key, f"{taken} is in its place already, at {first}; a study has one of {_or(keys)}")
                del table[key]
    if layer.axes is not None:
        layer.axes = [axis for axis in layer.axes if axis]


def _or(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:-1])} or {keys[-1]}"


@dataclass
class Document:
    """A file merged over the files that it extends."""

    layer: Layer = field(default_factory=Layer)
    profiles: dict[str, Layer] = field(default_factory=dict)
    unreadable: bool = False


PlaceOf = Callable[..., Place]


def document_of(values: dict[str, Any], place: PlaceOf, faults: Faults) -> Document:
    """Return what a parsed file says, and note every fault in its tables and keys; `place` gives their lines."""
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
    tables = [*SECTIONS, SPACES]
    known = [*tables, *TEXTS, "axes", "profiles"] if not prefix else [*tables, "title", "axes"]
    for name, value in values.items():
        where = place(*prefix, name)
        if name in tables:
            for keys, setting in leaves_of(value, (name,)):
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
    drop_unknown(layer.settings, faults)
    check_alternatives(layer, faults)
    layer.networks = networks_of([layer.settings, *(layer.axes or [])])
    return layer


def networks_of(tables: Iterable[Mapping[str, Setting]]) -> frozenset[str]:
    """Return the networks that settings and axes name."""
    values = [table["M.network"].value for table in tables if "M.network" in table]
    named = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return frozenset(map(str, named))


def check_networks(layer: Layer, faults: Faults) -> None:
    """Note and drop the keys of M that none of the networks has that a study names.

    Where it names one that is not trained, it may have keys of those that are, as it has of T.
    """
    names = layer.networks or DEFAULT_NETWORK
    named = {name: MEMBERS[name] for name in sorted(names) if name in MEMBERS}
    if len(named) < len(names) or not all(each.trained for each in named.values()):
        return
    for table in [layer.settings, *(layer.axes or [])]:
        for key, setting in list(table.items()):
            if key.startswith("M.") and not _having(key, named):
                others = f"{_all_of(_having(key, MEMBERS), 'has', 'have')} it"
                faults.add(setting.place, key, f"{_all_of(named, 'has', 'have')} no such key; {others}")
                del table[key]
    if layer.axes is not None:
        layer.axes = [axis for axis in layer.axes if axis]


def _having(key: str, networks: Mapping[str, type[ModelConfiguration]]) -> list[str]:
    """Return the names of the networks that have a key of M."""
    return [name for name, each in networks.items() if key.removeprefix("M.") in each.model_fields]


def _all_of(names: Collection[str], one: str, several: str) -> str:
    """Return names in a row with the verb that fits."""
    return f"{' and '.join(names)} {one if len(names) == 1 else several}"


def leaves_of(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the dotted key and value of everything in a table that is not itself a table."""
    if isinstance(value, dict) and (value or len(keys) == 1):
        for key, inner in value.items():
            yield from leaves_of(inner, (*keys, key))
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
        for keys, values in leaves_of(table, ()):
            axis[".".join(keys)] = Setting(values, place(*at, *keys))
        drop_unknown(axis, faults, on_axis=True)
        check_axis(axis, faults)
        if axis:
            axes.append(axis)
    _check_axes_are_distinct(axes, faults)
    return axes


def check_axis(axis: dict[str, Setting], faults: Faults) -> None:
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


def drop_unknown(settings: dict[str, Setting], faults: Faults, *, on_axis: bool = False) -> None:
    """Note and drop the settings whose keys are not known, or cannot be where they are."""
    known = known_keys(ON_AXES) if on_axis else known_keys()
    for key, (value, place) in list(settings.items()):
        if key in known or (not on_axis and (key in TEXTS or _of_space(key))):
            continue
        inner = sorted(other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == key)
        if key.partition(".")[0] == SPACES and not on_axis:
            faults.add(place, key, _no_space_key(key))
        elif key in SECTIONS and not on_axis:
            faults.add(place, key, f"must be a table, not {shown(value)}")
        elif inner:
            faults.add(place, key, f"must be a table of {', '.join(inner)}, not {shown(value)}")
        elif on_axis and (key in known_keys() or key in TEXTS or _of_space(key)):
            faults.add(place, key, "cannot be on an axis; only keys of P, M and T can")
        elif not key:
            faults.add(place, "axes", "an axis needs a key with its values, as in P.size = [4, 8]")
        else:
            faults.add(place, key, no_such_key(key, known))
        del settings[key]


def _of_space(key: str) -> bool:
    """Return whether a key is of a feature space: spaces.NAME.features, ..."""
    table, _, rest = key.partition(".")
    return table == SPACES and rest.rpartition(".")[0] != "" and key.rpartition(".")[2] in SpaceSettings.model_fields


def _no_space_key(key: str) -> str:
    """Say what a key of [spaces] is instead of one of a space."""
    if key.count(".") < 2:
        return f"must be a table of {', '.join(SpaceSettings.model_fields)}: [spaces.NAME]"
    space = key.rpartition(".")[0]
    return no_such_key(key, [f"{space}.{each}" for each in SpaceSettings.model_fields])


def shown(value: Any) -> str:
    """Return a value as a message shows it, the middle of a long one left out."""
    try:
        text = repr(value)
    except ValueError:  # a whole number in hex, of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-10:]}"


def no_such_key(key: str, known: Iterable[str]) -> str:
    """Return `no such key`, and the closest valid key if there is one."""
    section, _, leaf = key.rpartition(".")
    moved = [other for other in sorted(known) if "." in other and other.rpartition(".")[2] == leaf]
    near = moved or get_close_matches(key, list(known), n=1, cutoff=0.6)
    if not near:
        return "no such key"
    guess = near[0]
    return f"no such key; did you mean {guess.rpartition('.')[2] if guess.startswith(f'{section}.') else guess}?"

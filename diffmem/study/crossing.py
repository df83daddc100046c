"""The cells where the axes of a study cross, with every fault that their settings have."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from diffmem.cells import (
    REPLICATES,
    Cell,
    DataDistribution,
    Fault,
    ModelConfiguration,
    Scoring,
    TrainingProcedure,
    channels_of,
    fingerprints_of,
    impossible_checkpoints,
    impossible_data,
    impossible_groups,
    impossible_labels,
)
from diffmem.data import describe
from diffmem.errors import DataError
from diffmem.measures import Spaces
from diffmem.networks import member
from diffmem.settings import Settings
from diffmem.study.layers import ON_AXES, SECTIONS, Faults, Layer, Place, Setting, known_keys, shown

S = TypeVar("S", bound=Settings)

MOST_CELLS = 100_000


@dataclass(frozen=True)
class StudyCell:
    """A cell of a study and the axis values that lead to it."""

    cell: Cell
    axis_values: Mapping[str, Any]
    name: str  # the axis values as text
    curve: str  # the axis values that tell one EMM curve from another, as text
    number: int = 0  # among the cells of the study, each counted once, from 1
    spaces: Spaces = field(default_factory=dict, repr=False, compare=False)  # measures in the study's feature spaces


def resolve(layer: Layer, path: Path, faults: Faults) -> tuple[dict[str, str], list[list[str]], tuple[StudyCell, ...]]:
    """Return the texts, the axes and the cells of what a study file says, with every fault noted."""
    texts: dict[str, str] = {key: layer.settings[key].value for key in ("title", "figure") if key in layer.settings}
    axes = layer.axes or []
    count = math.prod(len(next(iter(axis.values())).value) for axis in axes)
    if count > MOST_CELLS:
        faults.add(Place(str(path)), "axes", f"cross to {count} cells; {MOST_CELLS} is the most")
        return texts, [], ()
    crossing = _Crossing(layer, path, faults)
    cells: dict[tuple[str, str], StudyCell] = {}
    for steps in itertools.product(*(range(len(next(iter(axis.values())).value)) for axis in axes)):
        cell = crossing.cell(steps)
        if cell is not None:
            curve, name = crossing.curve(steps), crossing.name(steps) or f"P.size = {cell.P.size}"
            cells.setdefault((cell.cell_id, curve), StudyCell(cell, crossing.values(steps), name, curve))
    return texts, [list(axis) for axis in axes], tuple(cells.values())


class _Built(NamedTuple):
    """A section from the settings that name it, None where it has none, and the keys whose values are refused."""

    section: Any
    bad: frozenset[str]


class _Images(NamedTuple):
    """The resolved P of a cell, what its datasets decide, and what is wrong with it."""

    P: DataDistribution
    channels: int
    fingerprints: dict[str, str]
    faults: list[Fault]


Steps = tuple[int, ...]
"""The number, from 0, of the value that is taken from each of some axes."""


class _Crossing:
    """The cells where the axes of a study cross; axes cross, keys within an axis move together.

    What cells have in common is built, checked and resolved once, and is theirs together.
    """

    def __init__(self, layer: Layer, path: Path, faults: Faults) -> None:
        self._settings, self._path, self._faults = layer.settings, path, faults
        self._axes = _each_key_once(layer.axes or [])
        self._own = {section: self._axes_of(f"{section}.") for section in ("P", "M", "T", "score")}
        self._section, self._images = cache(self._build), cache(self._read_images)
        self._network = cache(self._resolve_network)
        self._training, self._scoring = cache(self._resolve_training), cache(self._resolve_scoring)
        self._text, self._joined, self._facts_of = cache(self._text_of), cache(_joined), cache(describe)

    def cell(self, steps: Steps) -> Cell | None:
        """Return the cell at these steps, or None with every fault noted that its settings or two together have."""
        at = {section: tuple([steps[axis] for axis in own]) for section, own in self._own.items()}
        P, M, T, score = built = [self._section(section, own) for section, own in at.items()]
        if any(each.section is None for each in built):
            return None
        images = self._images(at["P"])
        if images is None:
            return None
        model, network_faults = self._network(at["M"], images.P.resolution or 0)
        # the size matters to few trainings; the others are resolved once for all sizes
        by_size = T.section.epochs is None or score.section.points is not None
        training, scoring, checkpoint_faults = self._training(at["T"], model.trained, P.section.size if by_size else 2)
        bad = P.bad | M.bad | T.bad | score.bad
        found = [*images.faults, *impossible_labels(P.section, M.section), *network_faults, *checkpoint_faults]
        if bad or found:
            self._note([fault for fault in found if not bad & set(fault.keys)], steps)
            return None
        return Cell(
            P=images.P,
            M=model,
            T=training,
            score=scoring,
            channels=images.channels,
            fingerprints=images.fingerprints,
        )

    def values(self, steps: Steps) -> dict[str, Any]:
        """Return the values on the axes by their keys."""
        return {
            key: setting.value[step]
            for axis, step in zip(self._axes, steps, strict=True)
            for key, setting in axis.items()
        }

    def name(self, steps: Steps) -> str:
        """Return the values on the axes as text."""
        return ", ".join([self._text(axis, step)[0] for axis, step in enumerate(steps)])

    def curve(self, steps: Steps) -> str:
        """Return the values that tell curves apart as text: not what moves with the size, and no replicate."""
        return self._joined(tuple([self._text(axis, step)[1] for axis, step in enumerate(steps)]))

    def _axes_of(self, prefix: str) -> list[int]:
        return [number for number, axis in enumerate(self._axes) if any(key.startswith(prefix) for key in axis)]

    def _text_of(self, axis: int, step: int) -> tuple[str, str]:
        """Return the values at a step of an axis as text, and those alone that tell curves apart."""
        values = {key: setting.value[step] for key, setting in self._axes[axis].items()}
        apart = {key: value for key, value in values.items() if key not in REPLICATES and "P.size" not in values}
        return as_text(values), as_text(apart)

    def _settings_at(self, axes: Iterable[int], steps: Steps) -> dict[str, Setting]:
        """Return the settings of the file with those at the steps of some axes."""
        on_axes = {
            key: Setting(setting.value[step], setting.place)
            for axis, step in zip(axes, steps, strict=True)
            for key, setting in self._axes[axis].items()
        }
        return {**self._settings, **on_axes}

    def _build(self, section: str, steps: Steps) -> _Built:
        """Build a section; with a size that is refused, of another one, so that the rest can still be checked."""
        settings = self._settings_at(self._own[section], steps)
        bad: set[str] = set()
        built = build_section(SECTIONS[section], section, settings, self._path, self._faults, bad)
        if built is None and "P.size" in bad:
            settings["P.size"] = Setting(2, Place(""))
            built = build_section(SECTIONS[section], section, settings, self._path, self._faults, bad)
        return _Built(built, frozenset(bad))

    def _read_images(self, steps: Steps) -> _Images | None:
        """Resolve P with the facts of its datasets; None, with the fault noted, where one cannot be read."""
        P: DataDistribution = self._section("P", steps).section
        settings = self._settings_at(self._own["P"], steps)
        facts = {}
        for name, key in [(P.dataset, "P.dataset"), *([(P.blend.dataset, "P.blend.dataset")] if P.blend else [])]:
            try:
                facts[name] = self._facts_of(name, P.resolution, P.labels if name == P.dataset else None)
            except DataError as error:
                self._faults.add(_place(settings, [key], self._path), key, str(error))
                return None
        resolved = P.resolved(facts[P.dataset])
        faults = impossible_data(P, facts)
        return _Images(resolved, channels_of(resolved, facts), fingerprints_of(resolved, facts), faults)

    def _resolve_network(self, steps: Steps, resolution: int) -> tuple[ModelConfiguration, list[Fault]]:
        M: ModelConfiguration = self._section("M", steps).section
        return M.resolved(resolution), M.faults(resolution) if resolution else []

    def _resolve_training(
        self, steps: Steps, trained: bool, size: int
    ) -> tuple[TrainingProcedure, Scoring, list[Fault]]:
        T, score = self._section("T", steps).section, self._section("score", ()).section
        resolved = T.resolved(size, trained=trained)
        scoring = self._scoring(resolved.epochs_begun(size), trained)
        return resolved, scoring, [*impossible_checkpoints(T, score, size), *impossible_groups(score)]

    def _resolve_scoring(self, epochs: int, trained: bool) -> Scoring:
        score: Scoring = self._section("score", ()).section
        return score.resolved(epochs, trained=trained)

    def _note(self, found: list[Fault], steps: Steps) -> None:
        """Note what two settings get wrong together, each where the first key of it that is written is."""
        settings = self._settings_at(range(len(self._axes)), steps)
        for fault in found:
            self._faults.add(_place(settings, fault.keys, self._path), fault.keys[0], fault.message)


def _place(settings: Mapping[str, Setting], keys: Sequence[str], path: Path) -> Place:
    """Return where the first of some keys that is written was written; the file as a whole where none is."""
    return next((settings[key].place for key in keys if key in settings), Place(str(path)))


def _each_key_once(axes: list[dict[str, Setting]]) -> list[dict[str, Setting]]:
    """Return axes with a key that is on several, which is a fault noted before, on the last one alone."""
    last = {key: number for number, axis in enumerate(axes) for key in axis}
    return [{key: axis[key] for key in axis if last[key] == number} for number, axis in enumerate(axes)]


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(filter(None, texts))


def as_text(values: Mapping[str, Any]) -> str:
    """Return settings as a study file writes them: `M.width = 64, T.seed = 0`."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return ", ".join(f"{key} = {text}" for key, text in texts.items())


def build_section(
    model: type[S], section: str, settings: dict[str, Setting], path: Path, faults: Faults, bad: set[str]
) -> S | None:
    """Build a section from the settings that name it.

    Every value that its type refuses is noted in `faults` and its key in `bad`; the section is then built
    without it, so that the other settings can still be checked. None if what is missing has no default. Of M, the keys
    that its network does not have are left out.
    """
    prefix = f"{section}."
    values = _nested({key.removeprefix(prefix): s.value for key, s in settings.items() if key.startswith(prefix)})
    for _ in range(2):
        try:
            return model(**(values if section != "M" else _own(values)))
        except ValidationError as error:
            for key, message in _messages(error, prefix).items():
                dotted = prefix + key
                if dotted not in bad:
                    faults.add(_place(settings, [dotted], path), dotted, message)
                bad.add(dotted)
                values.pop(key.partition(".")[0], None)
    return None


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of M that its network has."""
    fields = member(values.get("network")).model_fields
    return {key: value for key, value in values.items() if key in fields}


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return dotted keys as tables inside tables."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        outer, _, inner = key.partition(".")
        if inner:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[key] = value
    return nested


PLAIN_WORDS = {"tuple_type": "a list", "string_pattern_mismatch": "0s and 1s", "string_type": "text"}
"""What to say of a value instead of pydantic's words, which are Python's and not TOML's."""


def _messages(error: ValidationError, prefix: str) -> dict[str, str]:
    """Return one sentence per key of a section: the alternatives of a union are joined by `or`."""
    alternatives: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    advice: dict[str, str] = {}
    for item in error.errors():
        loc = [str(part) for part in item["loc"]]
        key = ".".join(loc[:2]) if prefix + ".".join(loc[:2]) in known_keys() else loc[0]
        text = item["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        text = PLAIN_WORDS.get(item["type"], text)
        alternatives.setdefault(key, []).append(text)
        values[key] = "missing" if item["type"] == "missing" else shown(item["input"])
        if prefix.rstrip(".") in ON_AXES and isinstance(item["input"], list):
            advice[key] = f"; several values are an axis: [[axes]] with {prefix}{key} = {shown(item['input'])}"
    return {
        key: "missing; every cell needs it"
        if values[key] == "missing"
        else f"must be {' or '.join(dict.fromkeys(texts))}, not {values[key]}{advice.get(key, '')}"
        for key, texts in alternatives.items()
    }

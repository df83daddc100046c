"""Studies: a study file resolved to its cells, every fault found, and the schema that editors use."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import ValidationError

from diffmem.cells import (
    REPLICATES,
    Cell,
    DataDistribution,
    Estimation,
    Fault,
    ModelConfiguration,
    Scoring,
    Settings,
    TrainingProcedure,
    channels_of,
    fingerprints_of,
    impossible_checkpoints,
    impossible_data,
    impossible_labels,
    impossible_network,
)
from diffmem.data import describe
from diffmem.errors import DataError
from diffmem.study.toml import KEYS, SECTIONS, TEXTS, Faults, Layer, Place, Setting, read_study, shown

S = TypeVar("S", bound=Settings)

MOST_CELLS = 100_000


@dataclass(frozen=True)
class StudyCell:
    """A cell of a study and the axis values that lead to it."""

    cell: Cell
    axis_values: Mapping[str, Any]
    name: str  # the axis values as text
    curve: str  # the axis values that tell one EMM curve from another, as text


@dataclass(frozen=True)
class Study:
    """A study file, resolved: its title, its cells and how its EMM is estimated.

    `cells` has every point of every curve; two of them may be the same cell, as the optimum is at every width.
    """

    name: str
    title: str
    figure: str
    path: str
    axes: tuple[tuple[str, ...], ...]
    cells: tuple[StudyCell, ...]
    estimation: Estimation
    overrides: tuple[str, ...] = ()  # what --set has changed, as it was given
    layer: Layer = field(default_factory=Layer, repr=False, compare=False)  # what the file says, to ask other sizes

    @classmethod
    def load(cls, path: Path | str, *, profile: str | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read a study file; raise StudyError with every fault that it has.

        `profile` names a table of [profiles]; `overrides` are `KEY=VALUE` in TOML syntax.
        """
        path = Path(path)
        faults = Faults()
        layer = read_study(path, profile=profile, overrides=overrides, faults=faults)
        bad: set[str] = set()
        estimation = _build(Estimation, "emm", layer.settings, path, faults, bad) or Estimation()
        searched = layer if bad & {"emm.search", "emm.range"} else _searched(layer, estimation, path, faults)
        texts, axes, cells = _resolve(searched, path, faults)
        faults.raise_if_any()
        return cls(
            name=study_name(path, profile),
            title=texts.get("title", path.stem),
            figure=texts.get("figure", ""),
            path=str(path),
            axes=tuple(tuple(axis) for axis in axes),
            cells=cells,
            estimation=estimation,
            overrides=tuple(overrides),
            layer=layer,
        )

    @property
    def search_range(self) -> tuple[int, int]:
        """Return the smallest and the largest size of a search; ValueError where the study is a grid."""
        if self.estimation.search != "bisect" or self.estimation.range is None:
            raise ValueError(f"{self.name} has no search")
        low, high = self.estimation.range
        return low, high

    @property
    def one_more_draw(self) -> int | None:
        """Return a draw that is not the study's; None where draws are on an axis, or are the file's order."""
        on_axis = any("P.draw" in axis for axis in self.axes)
        draw = self.cells[0].cell.P.draw
        return None if on_axis or isinstance(draw, str) else draw + 1

    def at(self, size: int, *, draw: int | None = None) -> list[StudyCell]:
        """Return the cells of a search at one size, on the study's draw or another one."""
        faults = Faults()
        fixed = {"P.size": size} | ({} if draw is None else {"P.draw": draw})
        above = Layer({key: Setting(value, Place(self.path)) for key, value in fixed.items()})
        _, _, cells = _resolve(above.over(self.layer), Path(self.path), faults)
        faults.raise_if_any()
        text = _as_text(fixed)
        return [
            replace(
                entry, axis_values={**entry.axis_values, **fixed}, name=", ".join(filter(None, [entry.curve, text]))
            )
            for entry in cells
        ]

    def listing(self, cells: "Sequence[StudyCell] | None" = None) -> dict[str, Any]:
        """Return what `Store.register` keeps of this study, with its own cells or others, by the names of its
        parameters."""
        return {
            "name": self.name,
            "title": self.title,
            "figure": self.figure,
            "path": self.path,
            "axes": self.axes,
            "estimation": self.estimation.model_dump(mode="json"),
            "overrides": self.overrides,
            "folder": str(Path.cwd()),
            "cells": [
                (entry.cell, entry.curve, entry.name, dict(entry.axis_values))
                for entry in (self.cells if cells is None else cells)
            ],
        }

    @property
    def distinct(self) -> list[StudyCell]:
        """Return each cell once."""
        return list({entry.cell.cell_id: entry for entry in reversed(self.cells)}.values())[::-1]


def study_name(path: Path, profile: str | None = None) -> str:
    """Return the name under which the store knows a study: `skip`, or `skip@laptop` with a profile."""
    return path.stem if profile is None else f"{path.stem}@{profile}"


def _searched(layer: Layer, estimation: Estimation, path: Path, faults: Faults) -> Layer:
    """Return the layer with the two ends of a search as its sizes, with the faults that a search can have noted."""
    settings = layer.settings
    place = next((settings[key].place for key in ("emm.range", "emm.search") if key in settings), Place(str(path)))
    if estimation.search == "grid":
        if estimation.range is not None:
            faults.add(place, "emm.range", 'is for a search; add search = "bisect", or put P.size on an axis')
        return layer
    if estimation.range is None:
        faults.add(
            place, "emm.range", "missing; a search needs its smallest and largest size, as in range = [16, 4096]"
        )
        return layer
    low, high = estimation.range
    if not 2 <= low < high:
        faults.add(place, "emm.range", f"must be two sizes from 2 on, the smaller one first, not {[low, high]}")
        return layer
    for axis in layer.axes or []:
        if "P.size" in axis:
            faults.add(axis["P.size"].place, "P.size", "is on an axis, but a search chooses the sizes itself")
            return layer
    kept = {key: setting for key, setting in settings.items() if key != "P.size"}
    return Layer(kept, [*(layer.axes or []), {"P.size": Setting([low, high], place)}])


def _resolve(layer: Layer, path: Path, faults: Faults) -> tuple[dict[str, str], list[list[str]], tuple[StudyCell, ...]]:
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
        training, scoring, checkpoint_faults = self._training(at["T"], model.network)
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
        return _as_text(values), _as_text(apart)

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
        built = _build(SECTIONS[section], section, settings, self._path, self._faults, bad)
        if built is None and "P.size" in bad:
            settings["P.size"] = Setting(2, Place(""))
            built = _build(SECTIONS[section], section, settings, self._path, self._faults, bad)
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
        return M.resolved(resolution), impossible_network(M, resolution) if resolution else []

    def _resolve_training(self, steps: Steps, network: str) -> tuple[TrainingProcedure, Scoring, list[Fault]]:
        T, score = self._section("T", steps).section, self._section("score", ()).section
        resolved = T.resolved(network)
        return resolved, self._scoring(resolved.epochs), impossible_checkpoints(T, score)

    def _resolve_scoring(self, epochs: int) -> Scoring:
        score: Scoring = self._section("score", ()).section
        return score.resolved(epochs)

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


def _as_text(values: Mapping[str, Any]) -> str:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return ", ".join(f"{key} = {text}" for key, text in texts.items())


def _build(
    model: type[S], section: str, settings: dict[str, Setting], path: Path, faults: Faults, bad: set[str]
) -> S | None:
    """Build a section from the settings that name it.

    Every value that its type refuses is noted in `faults` and its key in `bad`; the section is then built
    without it, so that the other settings can still be checked. None if what is missing has no default.
    """
    prefix = f"{section}."
    values = _nested({key.removeprefix(prefix): s.value for key, s in settings.items() if key.startswith(prefix)})
    for _ in range(2):
        try:
            return model(**values)
        except ValidationError as error:
            for key, message in _messages(error, prefix).items():
                dotted = prefix + key
                if dotted not in bad:
                    faults.add(_place(settings, [dotted], path), dotted, message)
                bad.add(dotted)
                values.pop(key.partition(".")[0], None)
    return None


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
    for item in error.errors():
        loc = [str(part) for part in item["loc"]]
        key = ".".join(loc[:2]) if prefix + ".".join(loc[:2]) in KEYS else loc[0]
        text = item["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        text = PLAIN_WORDS.get(item["type"], text)
        alternatives.setdefault(key, []).append(text)
        values[key] = "missing" if item["type"] == "missing" else shown(item["input"])
    return {
        key: "missing; every cell needs it"
        if values[key] == "missing"
        else f"must be {' or '.join(dict.fromkeys(texts))}, not {values[key]}"
        for key, texts in alternatives.items()
    }


# --- the schema that editors use -----------------------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a study file, for completion and checks in an editor."""
    sections = {section: _without_references(model.model_json_schema()) for section, model in SECTIONS.items()}
    axis = {
        section: {
            "type": "object",
            "additionalProperties": False,
            "properties": {key: _list_of(value) for key, value in sections[section]["properties"].items()},
        }
        for section in ("P", "M", "T")
    }
    axes = {
        "type": "array",
        "description": "Keys in one table move together; different tables cross.",
        "items": {"type": "object", "additionalProperties": False, "properties": axis},
    }
    texts = {name: {"type": "string", "description": TEXTS[name]} for name in TEXTS}
    profile = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"title": texts["title"], **sections, "axes": axes},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "diffmem study",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **texts,
            **sections,
            "axes": axes,
            "profiles": {
                "type": "object",
                "description": "What is different at another scale; `--profile NAME` asks for it.",
                "additionalProperties": profile,
            },
        },
    }


def _without_references(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a section's schema with the models inside it written out, and nothing required: a base may give it."""
    models = schema.pop("$defs", {})

    def written_out(part: Any) -> Any:
        if isinstance(part, list):
            return [written_out(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return written_out(models[part["$ref"].rpartition("/")[2]])
        return {key: written_out(value) for key, value in part.items() if key != "required"}

    plain: dict[str, Any] = written_out(schema)
    return plain


def _list_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a key on an axis: a list of its values; of a table, lists of the values inside."""
    tables = [option for option in schema.get("anyOf", []) if "properties" in option]
    if tables:
        return {**tables[0], "properties": {key: _list_of(value) for key, value in tables[0]["properties"].items()}}
    inner = {key: value for key, value in schema.items() if key != "default"}
    return {"type": "array", "minItems": 1, "items": inner}

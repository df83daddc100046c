"""Studies: a study file resolved to its cells, every fault found, and the schema that editors use."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from diffmem.config import (
    REPLICATES,
    Cell,
    DataDistribution,
    Estimation,
    Facts,
    ModelConfiguration,
    Scoring,
    Settings,
    TrainingProcedure,
    impossible_pairs,
)
from diffmem.data import describe
from diffmem.errors import DataError
from diffmem.studyfile import KEYS, SECTIONS, TEXTS, Faults, Layer, Place, Setting, read_study, shown

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
    cells: dict[tuple[str, str], StudyCell] = {}
    for values in _combinations(axes):
        cell = _cell({**layer.settings, **values}, path, faults)
        if cell is not None:
            axis_values = {key: setting.value for key, setting in values.items()}
            curve, name = _curve(axes, axis_values), _as_text(axis_values) or f"P.size = {cell.P.size}"
            cells.setdefault((cell.cell_id, curve), StudyCell(cell, axis_values, name, curve))
    return texts, [list(axis) for axis in axes], tuple(cells.values())


def _combinations(axes: list[dict[str, Setting]]) -> Iterator[dict[str, Setting]]:
    """Yield one setting per axis key for every cell: axes cross, keys within an axis move together."""
    steps = [range(len(next(iter(axis.values())).value)) for axis in axes]
    for indices in itertools.product(*steps):
        yield {
            key: Setting(setting.value[i], setting.place)
            for axis, i in zip(axes, indices, strict=True)
            for key, setting in axis.items()
        }


def _curve(axes: list[dict[str, Setting]], axis_values: Mapping[str, Any]) -> str:
    """Return the axis values that tell curves apart: not what moves with the size, and no replicate."""
    keys = [key for axis in axes if "P.size" not in axis for key in axis if key not in REPLICATES]
    return _as_text({key: axis_values[key] for key in keys})


def _as_text(values: Mapping[str, Any]) -> str:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return ", ".join(f"{key} = {text}" for key, text in texts.items())


def _cell(settings: dict[str, Setting], path: Path, faults: Faults) -> Cell | None:
    """Return the cell of these settings, or None with every fault noted that each of them or two together have."""
    bad: set[str] = set()
    P = _build(DataDistribution, "P", settings, path, faults, bad)
    M = _build(ModelConfiguration, "M", settings, path, faults, bad)
    T = _build(TrainingProcedure, "T", settings, path, faults, bad)
    score = _build(Scoring, "score", settings, path, faults, bad)
    if P is None and "P.size" in bad:
        P = _build(DataDistribution, "P", {**settings, "P.size": Setting(2, Place(""))}, path, faults, bad)
    if P is None or M is None or T is None or score is None:
        return None
    facts = _facts(P, settings, path, faults)
    if facts is None:
        return None
    found = [fault for fault in impossible_pairs(P, M, T, score, facts) if not bad & set(fault.keys)]
    for fault in found:
        written = [key for key in fault.keys if key in settings]
        place = settings[written[0]].place if written else Place(str(path))
        faults.add(place, fault.keys[0], fault.message)
    return None if found or bad else Cell.resolve(P, M, T, score, facts)


def _facts(P: DataDistribution, settings: dict[str, Setting], path: Path, faults: Faults) -> Facts | None:
    """Return the facts of the datasets of P; None, with the fault noted, where one cannot be read."""
    facts = {}
    for name, key in [(P.dataset, "P.dataset"), *([(P.blend.dataset, "P.blend.dataset")] if P.blend else [])]:
        try:
            facts[name] = describe(name, P.resolution)
        except DataError as error:
            place = settings[key].place if key in settings else Place(str(path))
            faults.add(place, key, str(error))
            return None
    return facts


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
                place = settings[dotted].place if dotted in settings else Place(str(path))
                if dotted not in bad:
                    faults.add(place, dotted, message)
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

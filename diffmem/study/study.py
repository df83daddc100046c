"""Studies: a study file resolved to its cells, every fault found, and the schema that editors use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from diffmem.cells import AUGMENTATIONS, Estimation
from diffmem.measures import (
    MEASURES,
    NEAREST,
    DeclaredSpace,
    Measure,
    Spaces,
    all_names,
    grouped_name,
    measure_named,
    no_copies,
)
from diffmem.notebook import html_table
from diffmem.study.crossing import StudyCell, as_text, build_section, resolve
from diffmem.study.layers import Faults, Layer, Place, Setting
from diffmem.study.spaces import check_used, spaces_of
from diffmem.study.toml import read_study
from diffmem.text import counted


@dataclass(frozen=True)
class Study:
    """A study file, resolved: its title, its cells and how its EMM is estimated. `Study.load` reads one.

    `cells` has every point of every curve, so a cell that lies on several curves comes several times; `distinct` has
    each cell once.
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
    spaces: Mapping[str, DeclaredSpace] = field(default_factory=dict)  # feature spaces, by name

    @classmethod
    def load(cls, path: Path | str, *, profile: str | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read a study file; raise StudyError with all its mistakes.

        `profile` names a table of [profiles]. `overrides` are `KEY=VALUE` in TOML syntax, as after --set.
        """
        path = Path(path)
        faults = Faults()
        layer = read_study(path, profile=profile, overrides=overrides, faults=faults)
        bad: set[str] = set()
        estimation = build_section(Estimation, "emm", layer.settings, path, faults, bad) or Estimation()
        spaces = spaces_of(layer.settings, path, faults)
        measures = {name: space.measure for name, space in spaces.items()}
        layer = _measured(layer, estimation, faults, bad, measures)
        searched = layer if bad & {"emm.search", "emm.range"} else _searched(layer, estimation, path, faults)
        texts, axes, cells = resolve(searched, path, faults)
        faults.raise_if_any()
        return cls(
            name=study_name(path, profile),
            title=texts.get("title", path.stem),
            figure=texts.get("figure", ""),
            path=str(path),
            axes=tuple(tuple(axis) for axis in axes),
            cells=tuple(replace(entry, spaces=measures) for entry in cells) if measures else cells,
            estimation=estimation,
            overrides=tuple(overrides),
            layer=layer,
            spaces=spaces,
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: its axes."""
        cells = f"{self.title} ({self.name}): {counted(len(self.cells), 'cell')}"
        rows = [
            {"axis": key, "values": ", ".join(dict.fromkeys(str(entry.axis_values[key]) for entry in self.cells))}
            for axis in self.axes
            for key in axis
        ]
        return html_table(cells, rows)

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
        _, _, cells = resolve(above.over(self.layer), Path(self.path), faults)
        faults.raise_if_any()
        text = as_text(fixed)
        return [
            replace(
                entry,
                axis_values={**entry.axis_values, **fixed},
                name=", ".join(filter(None, [entry.curve, text])),
                spaces=self.space_measures,
            )
            for entry in cells
        ]

    @property
    def folder(self) -> str:
        """Return the folder in which its path begins, if that is relative."""
        return str(Path.cwd())

    @property
    def measure(self) -> Measure:
        """Return the measure that its ratios are by."""
        return measure_named(self.estimation.measure, self.space_measures)

    @property
    def space_measures(self) -> Spaces:
        """Return the measures in its feature spaces, by name."""
        return {name: space.measure for name, space in self.spaces.items()}

    @property
    def threshold(self) -> float:
        """Return below which share of its reference a distance is a copy."""
        return self.measure.threshold if self.estimation.threshold is None else self.estimation.threshold

    @property
    def estimated(self) -> dict[str, Any]:
        """Return how its EMM is read off, as plain data."""
        return {**self.estimation.model_dump(mode="json"), "threshold": self.threshold}

    @property
    def distinct(self) -> list[StudyCell]:
        """Return each cell once, numbered."""
        once = list({entry.cell.cell_id: entry for entry in reversed(self.cells)}.values())[::-1]
        return [replace(entry, number=number) for number, entry in enumerate(once, start=1)]


def study_name(path: Path, profile: str | None = None) -> str:
    """Return the name under which the store knows a study: `skip`, or `skip@laptop` with a profile."""
    return path.stem if profile is None else f"{path.stem}@{profile}"


def _measured(layer: Layer, estimation: Estimation, faults: Faults, bad: set[str], spaces: Spaces) -> Layer:
    """Return the layer with the measure of the EMM among those that score, with the faults that measures can have."""
    settings = layer.settings
    scored = settings["score.measures"].value if "score.measures" in settings else []
    if not isinstance(scored, list):
        return layer  # its type is refused with the cells
    names = [name for name in scored if isinstance(name, str)]
    own = [(estimation.measure, "emm.measure")] if "emm.measure" in settings and "emm.measure" not in bad else []
    asked = [*((name, "score.measures") for name in names), *own]
    declared = {key.split(".")[1] for key in settings if key.startswith("spaces.")}  # at fault or not
    wrong = [
        (key, fault)
        for name, key in asked
        if name not in declared and (fault := _measure_fault(name, copies=key == "emm.measure"))
    ]
    for key, fault in wrong:
        faults.add(settings[key].place, key, fault)
    check_used(spaces, {name for name, _ in asked}, settings, faults)
    if wrong or any(name in declared and name not in spaces for name, _ in asked):
        return layer
    measure, grouped = {**MEASURES, **spaces}[estimation.measure], _grouped(settings)
    if estimation.threshold is not None and estimation.threshold > measure.largest:
        fault = f"must be at most {measure.largest:g} for the measure {measure.name}, not {estimation.threshold:g}"
        faults.add(settings["emm.threshold"].place, "emm.threshold", fault)
    wanted = {measure.name: settings["emm.measure"].place} if own and measure is not NEAREST else {}
    wanted |= {grouped: settings["score.groups"].place} if grouped else {}
    added = [name for name in wanted if name not in names]
    if not added:
        return layer
    return Layer({**settings, "score.measures": Setting([*names, *added], wanted[added[0]])}, layer.axes)


def _grouped(settings: Mapping[str, Setting]) -> str:
    """Return the name of the measure that score.groups and score.augment ask for; empty if none, or not rightly."""
    groups, augment = (
        settings[key].value if key in settings else default
        for key, default in (("score.groups", "none"), ("score.augment", []))
    )
    right = groups in ("exact", "near") and isinstance(augment, list) and all(each in AUGMENTATIONS for each in augment)
    return grouped_name(groups, augment) if right else ""


def _measure_fault(name: str, *, copies: bool) -> str:
    """Return what is wrong with the name of a measure, which has to tell copies or not; empty if nothing is."""
    known = [*MEASURES] if copies else all_names()
    if name in known:
        return ""
    if name in all_names():
        return no_copies(name)
    near = get_close_matches(name, known, n=1)
    there = f"there are {', '.join(known)}, and feature spaces that are declared as [spaces.NAME]"
    return f"no measure {name!r}; " + (f"did you mean {near[0]}?" if near else there)


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

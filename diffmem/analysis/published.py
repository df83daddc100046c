"""The numbers of the paper, from published.csv, as settings and values that compare with measured cells."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from diffmem.analysis.curves import CellWithSettings
from diffmem.errors import StoreError
from diffmem.store import Store

PUBLISHED = Path(__file__).with_name("published.csv")
ALL_KEPT = "111 111 111"
PAPER_EPOCHS = 4000
"""Fewest epochs that the paper trains for."""


@dataclass(frozen=True)
class Published:
    """One number of the paper: the settings that it names, by dotted key, and what was found with them."""

    source: str
    study: str
    settings: Mapping[str, Any]
    metric: str  # ratio, in 0..1, or emm, in training images
    value: float
    note: str


def published_values(store: Store, study: str) -> list[Published]:
    """Return the paper's numbers for a study (`skip`, or `skip@laptop`), or of `published.csv` beside the store."""
    beside_store = store.path.parent / PUBLISHED.name
    path = beside_store if beside_store.is_file() else PUBLISHED
    stem = study.partition("@")[0]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_published(row) for row in csv.DictReader(file) if row["study"] == stem]
    except (OSError, LookupError, TypeError, ValueError, csv.Error) as error:
        raise StoreError(f"{path}: not the table of the paper's numbers; restore it or move it away") from error


def _published(row: dict[str, str]) -> Published:
    settings = _settings(row["factor"], row["level"], row["note"])
    if row["size"]:
        settings["P.size"] = int(row["size"])
    percent = row["metric"] == "ratio_pct"
    value = float(row["value"])
    return Published(
        source=row["source"],
        study=row["study"],
        settings=settings,
        metric="ratio" if percent else row["metric"],
        value=value / 100 if percent else value,
        note=row["note"],
    )


def _settings(factor: str, level: str, note: str) -> dict[str, Any]:
    """Return the settings that a factor and its level stand for."""
    if factor.startswith("M.skips (single"):
        mask = ["1" if position == int(level) else "0" for position in range(1, 10)]
        return {"M.network": note, "M.skips": " ".join("".join(mask[i : i + 3]) for i in (0, 3, 6))}
    if factor.startswith("M.skips (three"):
        kept = {32: 0, 16: 1, 8: 2}[int(level)]
        return {"M.network": note, "M.skips": " ".join("111" if group == kept else "000" for group in range(3))}
    if factor == "M.network":
        return {factor: level, "M.skips": ALL_KEPT}
    if factor == "M.condition" and level.startswith("random"):
        return {factor: "random", "M.labels": int(level.removeprefix("random"))}
    if factor == "M.labels":
        return {"M.condition": "random", factor: int(level)}
    return {factor: _number(level)}


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def at_paper_scale(measured: CellWithSettings) -> bool:
    """Return whether a cell is one that the paper's numbers can be put beside."""
    settings = measured.settings
    return settings.get("P.dataset") == "cifar10" and (settings.get("T.epochs") or 0) >= PAPER_EPOCHS


@dataclass(frozen=True)
class Beside:
    """A ratio of the paper, and the mean best ratio of the cells that have its settings."""

    published: Published
    measured: float | None  # None: no cell has these settings
    cells: int
    curve: str | None  # that the cells are on

    @property
    def settings(self) -> str:
        """Return the settings as text."""
        return ", ".join(f"{key} = {value}" for key, value in self.published.settings.items())

    @property
    def size(self) -> int | None:
        """Return the training set size, where the paper's number is at one."""
        return self.published.settings.get("P.size")


def beside(published: Sequence[Published], cells: Sequence[CellWithSettings]) -> list[Beside]:
    """Return the paper's ratios, each with the mean best ratio of the cells that have its settings, if any."""
    measured = [(each.settings, each.cell.curve, each.best) for each in cells if each.best is not None]
    rows = []
    for number in published:
        if number.metric != "ratio":
            continue
        found = [(curve, best) for settings, curve, best in measured if number.settings.items() <= settings.items()]
        mean = fmean(best for _, best in found) if found else None
        rows.append(Beside(number, mean, len(found), found[0][0] if found else None))
    return rows

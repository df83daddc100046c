"""Every study file, at the paper's scale and at the two small ones, resolves, and its first cell takes a step."""

from pathlib import Path

import pytest
import torch

from diffmem.cells.cell import Cell
from diffmem.data.training_sets import SHIPPED
from diffmem.models.denoiser import build_denoiser
from diffmem.models.training import TrainingState, train
from diffmem.networks.closed_form import OptimalDenoiser
from diffmem.study.study import Study

STUDIES = Path(__file__).parents[2] / "studies"
PAPER = {
    "optimum": 2,
    "dataset_size": 12,
    "resolution": 18,
    "classes": 16,
    "blend": 15,
    "width": 20,
    "width_at_2k": 14,
    "depth": 24,
    "depth_at_2k": 10,
    "time_embedding": 16,
    "skip": 32,
    "skip_count": 66,
    "batch_size": 14,
    "weight_decay": 18,
    "ema": 18,
    "condition": 20,
    "random_labels": 30,
    "unique_50k": 2,
    "sample_size": 2,
    "paper": 1,
    "onset": 12,
    "two_halves": 16,
}
"""Cells of each study at the paper's scale: its levels times its sizes."""
SMALL = ("laptop", "desk")
PROFILES = [("quickstart", None), *((name, profile) for name in PAPER for profile in (None, *SMALL))]


def test_every_study_file_is_here() -> None:
    assert {path.stem for path in STUDIES.glob("*.toml")} == {*PAPER, "quickstart"}


@pytest.mark.parametrize(("name", "cells"), PAPER.items())
def test_a_study_has_the_papers_levels_and_sizes(name: str, cells: int) -> None:
    assert len(Study.load(STUDIES / f"{name}.toml").distinct) == cells


@pytest.mark.parametrize(
    "name", sorted(set(PAPER) - {"paper", "optimum", "dataset_size", "unique_50k", "onset", "two_halves"})
)
def test_a_study_keeps_the_papers_constants(name: str) -> None:
    basic = Study.load(STUDIES / "paper.toml").cells[0].cell.model_dump()
    axes = {key for axis in Study.load(STUDIES / f"{name}.toml").axes for key in axis}
    for entry in Study.load(STUDIES / f"{name}.toml").cells:
        for section in ("M", "T"):
            varied = {key.split(".")[1] for key in axes if key.startswith(f"{section}.")} | {
                "labels",
                "skips",
                "attention",
            }
            dumped = entry.cell.model_dump()[section]
            same = {key: value for key, value in dumped.items() if key not in varied | {"embedding"}}
            assert same == {key: basic[section][key] for key in same}


def small(name: str, profile: str | None) -> Cell:
    overrides = ["M.width=8", "T.batch_size=2", "P.size=20", "score.samples=2"]
    return Study.load(STUDIES / f"{name}.toml", profile=profile, overrides=overrides).cells[0].cell


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_the_first_cell_builds_and_takes_a_step(name: str, profile: str | None) -> None:
    cell = small(name, profile)
    side = cell.P.resolution or 0
    images = torch.randint(256, (20, cell.channels, side, side), dtype=torch.uint8)
    labels = torch.arange(20) % cell.labels if cell.labels else None
    if cell.M.network == "optimum":
        assert OptimalDenoiser(images.float() / 127.5 - 1)(images.float(), 1.0).isfinite().all()
        return
    denoiser = build_denoiser(cell.M, resolution=side, channels=cell.channels, labels=cell.labels)
    assert next(train(TrainingState(denoiser, cell.T), images, labels)).isfinite()


@pytest.mark.parametrize(
    ("name", "profile"), [("quickstart", None), *((name, profile) for name in PAPER for profile in SMALL)]
)
def test_a_small_study_uses_only_what_ships(name: str, profile: str | None) -> None:
    for entry in Study.load(STUDIES / f"{name}.toml", profile=profile).cells:
        assert {part.dataset for part in entry.cell.P.parts} <= set(SHIPPED)


def test_the_study_that_the_readme_explains_is_the_quickstart(tmp_path: Path) -> None:
    readme = (STUDIES.parent / "README.md").read_text()
    file = tmp_path / "readme.toml"
    file.write_text(readme.split("```toml\n")[1].split("```")[0])
    explained, quickstart = Study.load(file), Study.load(STUDIES / "quickstart.toml")
    assert [entry.cell for entry in explained.cells] == [entry.cell for entry in quickstart.cells]
    assert {entry.cell.T.epochs for entry in Study.load(file, profile="long").cells} == {36_000}

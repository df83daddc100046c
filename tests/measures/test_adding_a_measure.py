"""A measure is added as one member: everything that shows the paper's ratio then shows its share of copies too."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from click.testing import CliRunner
from torch import Tensor

import diffmem
from diffmem.cli import main
from diffmem.measures.measure import Compared, Measure
from diffmem.measures.members import MEASURES
from diffmem.report.page import render_page
from diffmem.store.store import Store
from diffmem.study.study import Study


def brightness(images: Tensor, training_images: Tensor, index: Tensor, _distance: Tensor) -> Compared:
    """A copy is as bright as its nearest training image, to a tenth of the scale."""
    bright, nearest = (each.double().mean(dim=(1, 2, 3)) for each in (images, training_images[index[:, 0]]))
    return Compared(index[:, 0], (bright - nearest).abs(), torch.full_like(bright, 255.0))


BRIGHTNESS = Measure(
    name="brightness",
    source="this test",
    ratio="equally bright share",
    copied="equally bright",
    rule="its mean differs from that of its nearest training image by less than {} of the scale",
    axis="difference of means / 255",
    threshold=0.1,
    largest=1.0,
    compare=brightness,
)
SIZES = tiny.TEXT.replace("M.dropout = [0.0, 0.2]", "P.size = [8, 16]")


@pytest.fixture
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEASURES, "brightness", BRIGHTNESS)


@pytest.mark.usefixtures("_added")
def test_a_member_is_all_that_a_measure_needs(tmp_path: Path) -> None:
    path = tiny.write(tmp_path, SIZES + '\n[emm]\nmeasure = "brightness"\n')
    study, store = Study.load(path), Store(tmp_path / "s.duckdb")
    for _ in diffmem.run_study(study, store):
        pass
    counted = store.rows(
        "SELECT cell_id, epoch, avg((distance < 0.1 * yardstick)::INT) AS share FROM measure_evidence GROUP BY ALL"
    )
    shares = {(row["cell_id"], row["epoch"]): row["share"] for row in counted}
    assert len(shares) == 2 * len(tiny.EPOCHS)
    best = [max(shares[entry.cell.cell_id, epoch] for epoch in tiny.EPOCHS) for entry in study.cells]
    (curve,) = diffmem.study_curves(store, "tiny")
    assert [point.best for point in curve.points] == pytest.approx(best)

    def printed(*arguments: object) -> str:
        result = CliRunner().invoke(main, [*map(str, arguments), "--store", str(store.path)])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert json.loads(printed("emm", "tiny", "--json"))["measure"] == "brightness"
    assert json.loads(printed("emm", "tiny", "--measure", "nearest", "--json"))["measure"] == "nearest"
    assert [row["best ratio"] for row in json.loads(printed("status", "tiny", "--json"))] == pytest.approx(best)
    assert "brightness_distance" in printed("export", "evidence").splitlines()[0]
    assert {row["measure"] for row in json.loads(printed("export", "emm", "--json"))} == {"nearest", "brightness"}
    assert printed("store", "check") == f"{store.path}: in order\n"
    page = render_page(store, ["tiny"])
    for said in (
        "Equally bright share against the number of training images",
        "difference of means / 255",
        "this test",
    ):
        assert said in page

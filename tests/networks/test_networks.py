"""A network is a file and its entry in MEMBERS: one that only these tests know is studied like the others."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from click.testing import CliRunner
from dit import DiT
from torch.utils.flop_counter import FlopCounterMode

from diffmem import ModelConfiguration, build_denoiser
from diffmem.cli import main
from diffmem.errors import StudyError
from diffmem.networks import MEMBERS
from diffmem.networks.member import TrainedModel
from diffmem.runs import generate_images, plan_cells, run_study
from diffmem.runs.kept_models import load_denoiser
from diffmem.runs.throughput import measure_cells
from diffmem.store.store import Store
from diffmem.study.keys import key_tables
from diffmem.study.schema import json_schema
from diffmem.study.study import Study

STUDY = """
[P]
dataset = "digits"
size = 8
[M]
network = "dit"
precondition = "edm"
hidden = 16
depth = 1
condition = "true"
[T]
epochs = 6
batch_size = 8
lr = 1e-3
warmup_epochs = 2
[score]
samples = 20
every = 3
steps = 3
"""


@pytest.fixture(autouse=True)
def dit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the transformer to the networks."""
    monkeypatch.setitem(MEMBERS, "dit", DiT)


def faults(text: str, folder: Path, *overrides: str) -> list[str]:
    """Return the faults of a study, without its folder."""
    with pytest.raises(StudyError) as caught:
        Study.load(tiny.write(folder, text, "study"), overrides=overrides)
    return [fault.removeprefix(f"{folder}/") for fault in caught.value.faults]


def names(text: str, folder: Path, *overrides: str) -> list[tuple[str, set[str]]]:
    """Return the networks of the cells of a study, with their keys."""
    cells = Study.load(tiny.write(folder, text, "study"), overrides=overrides).cells
    return [(entry.cell.M.network, set(entry.cell.configuration["M"])) for entry in cells]


COMMON = {"network", "condition", "labels"}
OF_DIT = COMMON | {"precondition", "patch", "hidden", "depth", "heads"}
OF_UNET = COMMON | {
    *("precondition", "width", "channel_mult", "blocks", "attention", "embedding", "skips", "dropout"),
}


# --- a member that diffmem does not know ---------------------------------------------------------------


def test_settings_are_those_of_the_network_that_is_named():
    assert isinstance(ModelConfiguration(network="dit", patch=4), DiT)
    assert type(ModelConfiguration()) is type(ModelConfiguration(width=8)) is MEMBERS["ddpm++"]
    with pytest.raises(ValueError, match="Input should be 'ddpm\\+\\+', 'ncsn\\+\\+', 'optimum' or 'dit'"):
        ModelConfiguration(network="vit")


def test_a_network_that_lacks_what_each_one_says_of_itself_cannot_be_configured():
    class Costless(TrainedModel):
        def build(self, **_: object) -> None: ...

    with pytest.raises(TypeError, match=r"Costless .*method .?work"):
        Costless()


@pytest.mark.parametrize("labels", [0, 5])
def test_its_cost_is_that_of_its_network(labels):
    M = DiT(patch=4, hidden=24, depth=3, heads=3)
    denoiser = build_denoiser(M, resolution=16, channels=3, labels=labels)
    work = M.work(resolution=16, channels=3, labels=labels, size=8)
    assert work.parameters == sum(weights.numel() for weights in denoiser.parameters())
    with FlopCounterMode(display=False) as counter:
        denoiser(torch.zeros(5, 3, 16, 16), 1.0, torch.zeros(5, dtype=torch.int64) if labels else None)
    assert work.forward * 5 == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_cell_of_it_is_planned_trained_scored_kept_and_generated_from(tmp_path):
    study, store = tiny.load(tmp_path, STUDY), Store(tmp_path / "a.duckdb")
    (planned,) = plan_cells(study, store)
    assert planned.cost.training == 3 * 6 * 8 * planned.cell.work.forward > 0
    list(run_study(study, store))
    cell = planned.cell
    assert [row["epoch"] for row in store.rows("FROM checkpoints ORDER BY epoch")] == [3, 6]
    assert set(json.loads(store.rows("FROM cells")[0]["configuration"])["M"]) == OF_DIT
    assert planned.cost.parameters == sum(w.numel() for w in load_denoiser(store, cell.cell_id).parameters())
    (images,) = generate_images(store, cell.cell_id, 20)
    assert images.images.shape == (20, 1, 8, 8)
    assert images.labels is not None
    (again,) = plan_cells(study, store)
    assert again.finished
    (speed,) = measure_cells([cell]).values()
    assert min(speed) > 0


def test_its_keys_are_in_the_schema_and_in_the_tables_of_keys():
    keys = json_schema()["properties"]["M"]["properties"]
    assert keys["network"]["enum"] == ["ddpm++", "ncsn++", "optimum", "dit"]
    assert set(keys) == OF_DIT | OF_UNET
    assert "| `M.patch` | integer >= 1 | `2` | Side of a patch in pixels. | not in it |" in key_tables()
    assert "| `M.hidden` | integer >= 2 | `32` | Features of a token. | - |" in key_tables()


# --- what is wrong with its settings -------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_one(tmp_path):
    text = STUDY.replace("hidden = 16", "hiden = 16")
    assert faults(text, tmp_path) == ["study.toml:8: M.hiden: no such key; did you mean hidden?"]


def test_a_wrong_value_is_refused_with_its_line(tmp_path):
    text = STUDY.replace("depth = 1", "depth = 0")
    assert faults(text, tmp_path) == ["study.toml:9: M.depth: must be greater than or equal to 1, not 0"]


def test_what_two_settings_get_wrong_together_is_said_by_the_network(tmp_path):
    found = faults(STUDY.replace("hidden = 16", "hidden = 16\npatch = 3\nheads = 5"), tmp_path)
    assert found == [
        "study.toml:8: M.hidden: 16 features do not split over 5 heads",
        "study.toml:9: M.patch: 8 pixels are no whole patches of 3",
    ]


def test_an_unknown_network_is_refused_with_those_that_there_are(tmp_path):
    (fault,) = faults(STUDY.replace('"dit"', '"vit"'), tmp_path)
    assert fault == "study.toml:6: M.network: must be 'ddpm++', 'ncsn++', 'optimum' or 'dit', not 'vit'"


# --- keys that only some networks have -----------------------------------------------------------------


def test_a_key_that_no_network_of_the_study_has_is_refused_with_those_that_have_it(tmp_path):
    (fault,) = faults(STUDY.replace("depth = 1", "width = 8"), tmp_path)
    assert fault == "study.toml:9: M.width: dit has no such key; ddpm++ and ncsn++ have it"
    (fault,) = faults(STUDY.replace("[score]", "[[axes]]\nM.blocks = [1, 2]\n[score]"), tmp_path)
    assert fault == "study.toml:17: M.blocks: dit has no such key; ddpm++ and ncsn++ have it"
    (fault,) = faults(STUDY, tmp_path, "M.width=8")
    assert fault == "--set M.width=8: M.width: dit has no such key; ddpm++ and ncsn++ have it"


def test_a_key_of_another_network_is_refused_where_no_network_is_named(tmp_path):
    (fault,) = faults('P.dataset = "digits"\nP.size = 8\nM.width = 8\nM.patch = 4\n', tmp_path)
    assert fault == "study.toml:4: M.patch: ddpm++ has no such key; dit has it"


AXIS = """
P.dataset = "digits"
P.size = 8
M.width = 8
M.channel_mult = [1, 1]
M.patch = 4
[[axes]]
M.network = ["ddpm++", "dit", "optimum"]
"""


def test_each_network_of_an_axis_takes_its_own_keys(tmp_path):
    assert names(AXIS, tmp_path) == [("ddpm++", OF_UNET), ("dit", OF_DIT), ("optimum", COMMON)]


def test_keys_on_axes_make_one_cell_of_the_networks_that_lack_them(tmp_path):
    study = Study.load(tiny.write(tmp_path, AXIS + "[[axes]]\nM.width = [4, 8]\n", "study"))
    assert [entry.cell.M.network for entry in study.cells] == ["ddpm++", "ddpm++", "dit", "dit", "optimum", "optimum"]
    assert [entry.cell.M.network for entry in study.distinct] == ["ddpm++", "ddpm++", "dit", "optimum"]


def test_what_a_base_or_a_file_says_may_be_of_another_network_than_a_profile_or_an_override_chooses(tmp_path):
    tiny.write(tmp_path, 'P.dataset = "digits"\nP.size = 8\nM.width = 8\nM.channel_mult = [1, 1]\n', "base")
    assert names('extends = "base.toml"\nM.network = "dit"\nM.patch = 4\n', tmp_path) == [("dit", OF_DIT)]
    assert names((tmp_path / "base.toml").read_text(), tmp_path, 'M.network="dit"') == [("dit", OF_DIT)]
    tiny.write(tmp_path, (tmp_path / "base.toml").read_text() + '[profiles.other.M]\nnetwork = "dit"\n', "study")
    (entry,) = Study.load(tmp_path / "study.toml", profile="other").cells
    assert set(entry.cell.configuration["M"]) == OF_DIT


def test_the_optimum_may_have_keys_of_networks_that_are_trained(tmp_path):
    text = 'P.dataset = "digits"\nP.size = 8\nM.network = "optimum"\nM.width = 3\nT.lr = 1.0\n'
    assert names(text, tmp_path) == [("optimum", COMMON)]


def test_the_command_says_which_network_lacks_a_key(tmp_path):
    path = tiny.write(tmp_path, STUDY.replace("depth = 1", "skips = '1'"), "study")
    result = CliRunner().invoke(main, ["plan", str(path), "--store", str(tmp_path / "a.duckdb")])
    assert result.exit_code == 2
    assert "study.toml:9: M.skips: dit has no such key; ddpm++ and ncsn++ have it" in result.stderr

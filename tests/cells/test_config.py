"""Settings, the identity of a cell, and what two settings cannot be together."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffmem.cells.cell import Cell, content_hash
from diffmem.cells.datasets import DATASETS, Dataset
from diffmem.cells.rules import impossible_pairs
from diffmem.cells.settings import DataDistribution, Estimation, ModelConfiguration, Scoring, TrainingProcedure
from diffmem.data import load_source
from diffmem.measures import MEASURES
from diffmem.models.denoiser import build_denoiser
from diffmem.networks import MEMBERS
from diffmem.networks.ddpmpp import DDPMpp
from diffmem.study.study import Study

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))

P = {"dataset": "digits", "size": 16}
M = {"width": 8, "channel_mult": [2, 2], "blocks": 1}
T = {"epochs": 40, "batch_size": 8}


def cell(**changes: Any) -> Cell:
    """Return the cell of small settings, changed by dotted keys written with two underscores: M__width=16."""
    sections: dict[str, dict[str, Any]] = {"P": dict(P), "M": dict(M), "T": dict(T), "score": {}}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        sections[section][name] = value
    return Cell.resolve(
        DataDistribution(**sections["P"]),
        ModelConfiguration(**sections["M"]),
        TrainingProcedure(**sections["T"]),
        Scoring(**sections["score"]),
    )


# --- the defaults --------------------------------------------------------------------------------------


def test_the_model_is_by_default_that_of_the_paper():
    model = ModelConfiguration()
    assert model.model_dump(include={"network", "precondition", "width", "channel_mult", "blocks", "dropout"}) == {
        "network": "ddpm++",
        "precondition": "vp",
        "width": 128,
        "channel_mult": (2, 2, 2),
        "blocks": 2,
        "dropout": 0.13,
    }
    assert (model.condition, model.labels) == ("none", None)
    assert model.skip_mask == (True,) * 9


def test_the_training_is_by_default_that_of_the_paper():
    assert TrainingProcedure().resolved(1000).model_dump() == {
        "epochs": 40_000,
        "steps": None,
        "images": None,
        "batch_size": 512,
        "lr": 2e-4,
        "warmup_epochs": 200,
        "optimizer": "adam",
        "momentum": None,
        "weight_decay": 0.0,
        "ema": 0.99929,
        "shuffle": "once",
        "precision": "fp32",
        "seed": 0,
    }


def test_scoring_and_estimation_are_by_default_those_of_the_paper():
    assert (Scoring().samples, Scoring().steps) == (10_000, 18)
    assert (Estimation().epsilon, Estimation().measure, Estimation().threshold) == (0.1, "nearest", None)
    assert MEASURES[Estimation().measure].threshold == 1 / 3


@pytest.mark.parametrize(("resolution", "attention"), [(32, (16,)), (16, (8,)), (8, (4,))])
def test_attention_sits_by_default_at_the_second_resolution(resolution, attention):
    assert ModelConfiguration().resolved(resolution).attention == attention


@pytest.mark.parametrize(("network", "embedding"), [("ddpm++", "positional"), ("ncsn++", "fourier")])
def test_the_embedding_is_by_default_that_of_the_network(network, embedding):
    assert ModelConfiguration(network=network).resolved(32).embedding == embedding


def test_sgd_has_by_default_the_momentum_of_the_released_code():
    assert TrainingProcedure(optimizer="sgd").resolved(2).momentum == 0.9


def test_a_cell_of_one_thousand_images_is_scored_sixteen_times_as_in_the_paper():
    paper = Cell.resolve(
        DataDistribution(dataset="digits", size=1000), ModelConfiguration(), TrainingProcedure(), Scoring()
    )
    released = cell(P__size=1000, T__epochs=40_000, score__every=2509)
    assert len(paper.checkpoints) == len(released.checkpoints) == 16


# --- the identity of a cell ----------------------------------------------------------------------------


def test_the_meaning_of_cells_has_not_changed_by_accident():
    """Where this fails, results already in a store are no longer found: raise RESULTS_VERSION or undo the change."""
    assert cell().cell_id == "689fa789f66fd3d5"
    assert cell(M__network="optimum").cell_id == "4c1692d061f6b100"


VARIED = [
    {"P__size": 8, "P__draw": "first"},
    {"P__classes": [0, 2]},
    {"P__blend": {"dataset": "digits", "share": 0.25, "classes": [5, 6]}, "P__classes": 5},
    {"P__resolution": 4},
    {"P__draw": 2**63 - 1},
], [
    {},
    {"M__network": "optimum"},
    {"M__network": "ncsn++", "M__precondition": "ve"},
    {"M__condition": "random", "M__labels": 3},
    {"M__skips": "1001", "M__attention": [4], "M__dropout": 0},
], [
    {},
    {"T__optimizer": "sgd", "T__weight_decay": -0.0},
    {"T__lr": 1e-30, "T__seed": 7, "T__precision": "bf16"},
], [
    {},
    {"score__precision": 0.01, "score__every": 7},
    {"score__samples": 5, "score__batch_size": 2, "score__pairs": 0},
]  # fmt: skip
"""Settings of P, M, T and the scoring, each with each."""


def test_varied_cells_keep_their_names_and_configurations():
    """The digest is that of each cell's `content_hash` and configuration before cells shared their sections."""
    cells = [cell(**P, **M, **T, **score) for P, M, T, score in itertools.product(*VARIED)]
    assert len({each.cell_id for each in cells}) > 100
    assert [each.cell_id for each in cells] == [content_hash(each.identity) for each in cells]
    text = "\n".join(f"{each.cell_id} {json.dumps(each.identity)}" for each in cells)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "a93e5a48499fd91c"


def test_a_copy_of_settings_forgets_what_was_worked_out_from_the_old_ones():
    procedure = TrainingProcedure(seed=1)
    assert json.loads(procedure.as_json)["seed"] == 1
    assert json.loads(procedure.model_copy(update={"seed": 2}).as_json)["seed"] == 2
    ours = cell()
    assert ours.cell_id != ours.model_copy(update={"T": ours.T.model_copy(update={"seed": 2})}).cell_id


@pytest.mark.parametrize(
    "changes", [{}, {"T__epochs": 1}, {"T__epochs": 41}, {"score__every": 7}, {"score__every": 99}]
)
@pytest.mark.parametrize("network", ["ddpm++", "optimum"])
def test_the_count_of_checkpoints_is_that_of_their_list(changes, network):
    ours = cell(M__network=network, **changes)
    assert ours.checkpoint_count == len(ours.checkpoints)


def test_a_cell_id_is_sixteen_hexadecimal_digits():
    assert len(cell().cell_id) == 16
    int(cell().cell_id, 16)


def test_the_configuration_writes_out_every_setting_that_changes_numbers():
    assert {section: set(values) for section, values in cell().identity.items()} == {
        "P": set(DataDistribution.model_fields) - set(DataDistribution.NEUTRAL),
        "M": set(ModelConfiguration().model_dump()),
        "T": set(TrainingProcedure.model_fields) - set(TrainingProcedure.NEUTRAL),
        "score": {"samples", "every", "steps"},
    }


def test_a_new_key_leaves_the_names_of_all_cells_of_all_studies_alone_at_its_neutral_value(monkeypatch):
    class WithKey(DDPMpp):
        NEUTRAL: ClassVar = {**DDPMpp.NEUTRAL, "newest": 0}
        newest: int = 0

    def names() -> list[str]:
        return [entry.cell.cell_id for path in STUDIES for entry in Study.load(path).distinct]

    before = names()
    monkeypatch.setitem(MEMBERS, "ddpm++", WithKey)
    after = [entry.cell for path in STUDIES for entry in Study.load(path).distinct]
    assert [each.cell_id for each in after] == before
    networks = {type(each.M) for each in after}
    assert WithKey in networks
    assert DDPMpp not in networks
    changed = {
        entry.cell.cell_id
        for path in STUDIES
        for entry in Study.load(path, overrides=["M.newest=1"]).distinct
        if entry.cell.M.network == "ddpm++"
    }
    assert len(changed) > 100
    assert not changed & set(before)


@pytest.mark.parametrize(
    ("section", "model"), [("P", DataDistribution), ("T", TrainingProcedure), ("score", Scoring)], ids=str
)
def test_a_new_key_of_any_section_names_a_cell_only_where_it_changes_something(section, model):
    class WithKey(model):
        NEUTRAL: ClassVar = {**model.NEUTRAL, "newest": 0.5}
        newest: float = 0.5

    ours = cell()
    written = getattr(ours, section).model_dump()
    neutral, other = (ours.model_copy(update={section: WithKey(**written, **more)}) for more in ({}, {"newest": 0.25}))
    assert neutral.cell_id == ours.cell_id
    assert "newest" not in neutral.configuration[section]
    assert other.cell_id != ours.cell_id
    assert other.configuration[section]["newest"] == 0.25


def test_a_key_that_came_later_is_part_of_a_cell_only_where_it_changes_something():
    assert "balance" not in cell().configuration["P"]
    assert cell(P__balance=True, P__labels=None).cell_id == cell().cell_id
    assert cell(P__balance=False).configuration["P"]["balance"] is False
    assert len({cell(**other).cell_id for other in ({}, {"P__balance": False}, {"P__labels": "category"})}) == 3


SAME = {
    "plain": {},
    "ncsn++": {"M__network": "ncsn++"},
    "optimum": {"M__network": "optimum"},
    "optimum, random labels": {"M__network": "optimum", "M__condition": "random", "M__labels": 3},
    "one resolution": {"M__channel_mult": [2]},
    "no attention": {"M__attention": []},
    "three resolutions": {"M__channel_mult": [1, 2, 2]},
    "some skips": {"M__skips": "1000"},
    "sgd": {"T__optimizer": "sgd"},
    "random labels": {"M__condition": "random", "M__labels": 5},
    "few classes": {"P__classes": 2, "P__resolution": 4},
    "first": {"P__draw": "first"},
    "one checkpoint": {"score__every": 1000},
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_writing_out_every_default_names_the_same_cell_and_is_possible(changes):
    sections = {"P": DataDistribution, "M": ModelConfiguration, "T": TrainingProcedure, "score": Scoring}
    configuration = cell(**changes).identity
    written = [model.model_validate(configuration[section]) for section, model in sections.items()]
    assert impossible_pairs(*written) == []
    assert Cell.resolve(*written).cell_id == cell(**changes).cell_id


@pytest.mark.parametrize(
    "changes",
    [
        {"P__resolution": 8},
        {"P__classes": 10},
        {"P__draw": 0},
        {"M__attention": [4]},
        {"M__embedding": "positional"},
        {"M__skips": "11 11"},
        {"M__skips": "1111"},
        {"M__skips": [1, 1, 1, 1]},
        {"M__dropout": 0.13},
        {"T__lr": 0.0002},
        {"T__weight_decay": 0},
        {"score__every": 3},
    ],
    ids=str,
)
def test_a_default_written_out_is_the_same_cell(changes):
    assert cell(**changes).cell_id == cell().cell_id


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({"M__labels": 7}, {}),
        ({"T__momentum": 0.5}, {}),
        ({"score__every": 40}, {"score__every": 41}),
        ({"M__attention": [8, 4]}, {"M__attention": [4, 8]}),
        ({"M__attention": [4, 4]}, {"M__attention": [4]}),
        ({"T__optimizer": "sgd"}, {"T__optimizer": "sgd", "T__momentum": 0.9}),
    ],
    ids=str,
)
def test_what_has_no_effect_does_not_make_another_cell(changes, others):
    assert cell(**changes).cell_id == cell(**others).cell_id


CHANGED: dict[str, Any] = {
    "P__dataset": "others",
    "P__size": 17,
    "P__draw": "first",
    "P__resolution": 4,
    "P__classes": 2,
    "P__blend": {"dataset": "others", "share": 0.5},
    "M__network": "ncsn++",
    "M__precondition": "edm",
    "M__width": 16,
    "M__channel_mult": [1, 2],
    "M__blocks": 2,
    "M__attention": [8],
    "M__embedding": "fourier",
    "M__skips": "0111",
    "M__dropout": 0.5,
    "M__condition": "unique",
    "M__labels": 6,
    "T__epochs": 41,
    "T__batch_size": 9,
    "T__lr": 1e-3,
    "T__warmup_epochs": 1,
    "T__optimizer": "adam",
    "T__momentum": 0.5,
    "T__weight_decay": 0.1,
    "T__ema": 0.5,
    "T__shuffle": "epoch",
    "T__precision": "bf16",
    "T__seed": 1,
    "score__samples": 10,
    "score__every": 2,
    "score__steps": 9,
}


def test_the_table_of_changes_has_every_key_that_changes_numbers():
    configuration = cell().identity
    assert set(CHANGED) == {f"{section}__{key}" for section, values in configuration.items() for key in values}


@pytest.mark.parametrize("key", CHANGED)
def test_changing_a_key_makes_another_cell(key, monkeypatch):
    monkeypatch.setitem(DATASETS, "others", DATASETS["digits"])
    base = {"M__condition": "random", "M__labels": 5, "T__optimizer": "sgd"}
    assert cell(**{**base, key: CHANGED[key]}).cell_id != cell(**base).cell_id


@pytest.mark.parametrize("changes", [{"score__batch_size": 7}, {"score__pairs": 0}], ids=str)
def test_what_changes_only_speed_or_looks_is_not_part_of_a_cell(changes):
    assert cell(**changes).cell_id == cell().cell_id


@pytest.mark.parametrize(
    "changes",
    [
        {"M__width": 64},
        {"M__channel_mult": [1]},
        {"M__precondition": "edm"},
        {"M__dropout": 0.0},
        {"M__skips": "0000"},
        {"M__labels": 4},
        {"T__lr": 1.0},
        {"T__epochs": 7},
        {"T__optimizer": "sgd"},
        {"score__every": 2},
    ],
    ids=str,
)
def test_the_optimum_is_not_trained_so_its_training_and_network_make_no_other_cell(changes):
    assert cell(M__network="optimum", **changes).cell_id == cell(M__network="optimum").cell_id


@pytest.mark.parametrize(
    "changes",
    [{"P__size": 20}, {"P__draw": 1}, {"M__condition": "unique"}, {"T__seed": 1}, {"score__samples": 9}],
    ids=str,
)
def test_what_changes_the_images_of_the_optimum_makes_another_cell(changes):
    assert cell(M__network="optimum", **changes).cell_id != cell(M__network="optimum").cell_id


def test_random_labels_are_part_of_the_optimum():
    few, many = (cell(M__network="optimum", M__condition="random", M__labels=labels) for labels in (2, 3))
    assert few.cell_id != many.cell_id


# --- what follows from the settings --------------------------------------------------------------------


def test_checkpoints_are_every_so_many_epochs_and_at_the_end():
    assert cell(T__epochs=10, score__every=4).checkpoints == [(4, 8), (8, 16), (10, 20)]


def test_the_last_checkpoint_is_there_once_where_the_epochs_divide_evenly():
    assert cell(T__epochs=8, score__every=4).checkpoints == [(4, 8), (8, 16)]


def test_a_checkpoint_is_at_the_first_step_that_completes_its_epoch():
    assert cell(P__size=10, T__epochs=3, T__batch_size=4, score__every=1).checkpoints == [(1, 3), (2, 5), (3, 8)]


def test_a_training_shorter_than_the_distance_of_checkpoints_has_one_at_its_end():
    assert cell(T__epochs=3, score__every=100).checkpoints == [(3, 6)]


def test_the_optimum_has_one_checkpoint_before_any_step():
    assert cell(M__network="optimum", T__epochs=100).checkpoints == [(0, 0)]


# --- budgets -------------------------------------------------------------------------------------------


def budget(**said: int) -> dict[str, Any]:
    """Return changes of a cell whose training is as long as said, in the place of its epochs."""
    return {f"T__{key}": said.get(key) for key in ("epochs", "steps", "images")}


@given(epochs=st.integers(1, 10**6), size=st.integers(2, 1700), batch=st.integers(1, 1000))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_the_same_training_said_in_epochs_and_in_images_is_one_cell(epochs, size, batch):
    same = {"P__size": size, "T__batch_size": batch, "score__every": 10**6}
    one, other = (cell(**same, **budget(**said)) for said in ({"epochs": epochs}, {"images": epochs * size}))
    assert (one.cell_id, one.checkpoints) == (other.cell_id, other.checkpoints)


@given(epochs=st.integers(1, 10**6), size=st.integers(2, 1700), data=st.data())
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_the_same_training_said_in_epochs_and_in_steps_is_one_cell(epochs, size, data):
    batch = data.draw(st.integers(1, size))  # of larger batches, several epochs can end at one step
    steps = -(-epochs * size // batch)
    same = {"P__size": size, "T__batch_size": batch, "score__every": 10**6}
    one, other = (cell(**same, **budget(**said)) for said in ({"epochs": epochs}, {"steps": steps}))
    assert one.checkpoints[-1] == other.checkpoints[-1]
    assert one.cell_id == other.cell_id


def test_of_several_epochs_that_end_at_one_step_steps_mean_the_most():
    several = [cell(P__size=10, T__batch_size=64, **budget(epochs=epochs)) for epochs in range(6, 14)]
    ends = [each.checkpoints[-1][1] for each in several]
    assert ends == [1, 2, 2, 2, 2, 2, 2, 3]  # 7 to 12 epochs of 10 images are two batches of 64
    said = cell(P__size=10, T__batch_size=64, **budget(steps=2))
    assert said.cell_id == several[6].cell_id
    assert said.T.epochs == 12


def test_a_training_whose_last_step_ends_no_epoch_has_the_steps_in_its_name():
    short, longer = (cell(P__size=10, T__batch_size=4, score__every=1, **budget(steps=steps)) for steps in (7, 8))
    assert longer.cell_id == cell(P__size=10, T__batch_size=4, score__every=1, **budget(epochs=3)).cell_id
    assert short.identity["T"]["steps"] == 7
    assert short.identity["T"]["epochs"] is None
    assert "images" not in short.identity["T"]
    assert (short.clock, longer.clock) == ("step", "epoch")
    assert short.checkpoints == [(3, 3), (5, 5), (7, 7)]  # after the first epoch, after the second, and at the end


def test_images_that_fill_no_batch_are_trained_in_a_whole_one():
    said, steps = (cell(P__size=10, T__batch_size=4, **budget(**said)) for said in ({"images": 25}, {"steps": 7}))
    assert said.cell_id == steps.cell_id


def test_a_training_shorter_than_an_epoch_has_a_cell():
    found = cell(P__size=1000, T__batch_size=10, score__points=3, **budget(steps=9))
    assert found.checkpoints == [(1, 1), (3, 3), (9, 9)]
    assert Cell.of(found.configuration).cell_id == found.cell_id


def test_the_optimum_has_no_budget():
    ids = {cell(M__network="optimum", **budget(**said)).cell_id for said in ({"epochs": 9}, {"steps": 7})}
    ids.add(cell(M__network="optimum", score__points=3).cell_id)
    assert ids == {cell(M__network="optimum").cell_id}


def test_a_training_has_one_budget():
    words = "one of epochs, steps, images says how long a model is trained, not 2 of them"
    with pytest.raises(ValueError, match=words):
        TrainingProcedure(epochs=3, steps=4)
    with pytest.raises(ValueError, match="one of every, points says where the checkpoints are, not both"):
        Scoring(every=3, points=4)


@given(last=st.integers(1, 10**6), data=st.data())
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_log_spaced_checkpoints_are_as_many_as_asked_for_and_end_at_the_last_step(last, data):
    points = data.draw(st.integers(1, min(last, 300)))
    found = cell(P__size=16, T__batch_size=16, score__points=points, **budget(steps=last))
    steps = [step for _, step in found.checkpoints]
    assert steps == sorted(set(steps))
    assert (len(steps), found.checkpoint_count, steps[-1]) == (points, points, last)
    assert steps[0] >= 1


def test_log_spaced_checkpoints_grow_by_one_factor_over_three_decades():
    found = cell(P__size=16, T__batch_size=16, score__points=7, **budget(steps=64_000))
    expected = np.geomspace(64, 64_000, 7)
    assert [step for _, step in found.checkpoints] == np.round(expected).astype(int).tolist()


def test_log_spaced_checkpoints_of_a_short_training_are_its_steps():
    found = cell(P__size=16, T__batch_size=16, score__points=5, **budget(steps=6))
    assert [step for _, step in found.checkpoints] == [1, 2, 3, 4, 6]


@given(epochs=st.integers(1, 5000))
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_there_are_by_default_up_to_sixteen_checkpoints_and_the_last_is_the_end(epochs):
    points = [epoch for epoch, _ in cell(T__epochs=epochs).checkpoints]
    assert len(points) == min(epochs, len(points)) <= 16
    assert points == sorted(set(points))
    assert points[-1] == epochs


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, 0),
        ({"M__condition": "true"}, 10),
        ({"M__condition": "true", "P__classes": 3}, 3),
        ({"M__condition": "random", "M__labels": 4}, 4),
        ({"M__condition": "unique"}, 16),
    ],
    ids=str,
)
def test_the_number_of_labels_is_that_of_the_condition(changes, labels):
    assert cell(**changes).labels == labels


def test_a_skip_mask_is_grouped_by_resolution_highest_first():
    model = ModelConfiguration(channel_mult=[2, 2], blocks=2, skips=[1, 0, 0, 0, 1, 1]).resolved(8)
    assert model.skips == "100 011"
    assert model.skip_mask == (True, False, False, False, True, True)


# --- settings that agree can be built -------------------------------------------------------------------


@pytest.mark.parametrize("network", ["ddpm++", "ncsn++"])
@pytest.mark.parametrize(("channel_mult", "blocks"), [([1], 1), ([2, 2], 1), ([1, 2, 3], 2), ([3, 1], 3)], ids=str)
def test_normalised_channels_are_those_of_the_network(network, channel_mult, blocks):
    model = ModelConfiguration(network=network, width=12, channel_mult=channel_mult, blocks=blocks)
    denoiser = build_denoiser(model, resolution=8, channels=1)
    norms = {module.num_channels for module in denoiser.modules() if isinstance(module, nn.GroupNorm)}
    assert model.normalised_channels(8) == norms


@pytest.mark.parametrize("network", ["ddpm++", "ncsn++"])
@pytest.mark.parametrize("channel_mult", [[1], [2], [1, 3], [2, 2], [1, 1, 1, 1]], ids=str)
def test_a_model_without_a_fault_can_be_built_and_used(network, channel_mult):
    """Shapes only: on the meta device nothing is computed."""
    for width in range(1, 13):
        model = ModelConfiguration(network=network, width=width, channel_mult=channel_mult, blocks=1)
        if impossible_pairs(DataDistribution(**P), model, TrainingProcedure(), Scoring()):
            continue
        denoiser = build_denoiser(model, resolution=8, channels=1).to("meta")
        assert denoiser(torch.empty(2, 1, 8, 8, device="meta"), 1.0).shape == (2, 1, 8, 8), width


@pytest.mark.parametrize("classes", [1, 2, 9, 10])
def test_a_size_is_a_fault_exactly_where_the_source_has_too_few_images(classes):
    counts = np.bincount(load_source("digits", None).classes)[:classes]
    largest = classes * int(counts.min())
    fits, too_large = (DataDistribution(dataset="digits", size=n, classes=classes) for n in (largest, largest + 1))
    assert impossible_pairs(fits, ModelConfiguration(), TrainingProcedure(), Scoring()) == []
    assert [
        fault.keys[0] for fault in impossible_pairs(too_large, ModelConfiguration(), TrainingProcedure(), Scoring())
    ] == ["P.size"]


def test_images_of_many_sizes_need_a_common_one():
    facts = {"mine": Dataset((50, 50), resolution=None, channels=1)}
    M, T, score = ModelConfiguration(channel_mult=(2, 2)), TrainingProcedure(), Scoring()
    (fault,) = impossible_pairs(DataDistribution(dataset="mine", size=8), M, T, score, facts)
    assert fault.keys == ("P.resolution", "P.dataset")
    assert fault.message == "missing; the images of mine differ in size, so a common one must be chosen"
    assert impossible_pairs(DataDistribution(dataset="mine", size=8, resolution=8), M, T, score, facts) == []

"""Costs counted from settings, against the networks themselves and torch's own counter of operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffmem.cells.cell import Cell
from diffmem.cells.cost import cell_cost
from diffmem.cells.settings import DataDistribution, ModelConfiguration, Scoring, TrainingProcedure
from diffmem.data import training_set
from diffmem.models.denoiser import Denoiser, build_denoiser
from diffmem.networks.closed_form import OptimalDenoiser


def cell(
    P: dict[str, object] | None = None, *, T: dict[str, object] | None = None, score: object = None, **M: object
) -> Cell:
    return Cell.resolve(
        DataDistribution.model_validate({"dataset": "digits", "size": 8, **(P or {})}),
        ModelConfiguration.model_validate({"width": 8, "channel_mult": [2, 2], **M}),
        TrainingProcedure.model_validate({"epochs": 12, "batch_size": 4, **(T or {})}),
        Scoring.model_validate(score or {"samples": 10, "every": 4}),
    )


def network(of: Cell) -> Denoiser:
    return build_denoiser(of.M, resolution=of.P.resolution or 0, channels=of.channels, labels=of.labels)


def counted(denoiser: Denoiser, of: Cell, images: int, *, backward: bool) -> int:
    """Count the operations of a pass over `images` images with torch's own counter."""
    side = of.P.resolution or 0
    labels = torch.zeros(images, dtype=torch.int64) if of.labels else None
    denoiser.network.draw_dropout(torch.Generator(), total=images)
    with FlopCounterMode(display=False) as counter:
        result = denoiser(torch.zeros(images, of.channels, side, side), 1.0, labels)
        if backward:
            result.sum().backward()
    return counter.get_total_flops()


NETWORKS = {
    "attention": {"attention": [8, 4]},
    "no attention": {"attention": []},
    "three blocks": {"blocks": 3},
    "labels": {"condition": "unique"},
    "uneven levels": {"channel_mult": [1, 3, 2]},
    "ncsn++": {"network": "ncsn++", "precondition": "ve", "channel_mult": [2, 2, 2]},
}

PAPER = {"width": 128, "channel_mult": [2, 2, 2], "blocks": 2}


@pytest.mark.parametrize("M", NETWORKS.values(), ids=NETWORKS)
def test_parameters_are_those_of_the_network(M):
    assert cell(**M).work.parameters == sum(p.numel() for p in network(cell(**M)).parameters())


@pytest.mark.parametrize(
    ("M", "published"),
    [
        ({}, 35_125_251),
        ({"width": 192}, 78_984_195),
        ({"width": 256}, 140_374_019),
        ({"width": 320}, 219_294_723),
        ({"blocks": 4}, 55_732_739),
        ({"blocks": 12}, 138_162_691),
    ],
    ids=str,
)
def test_parameters_are_the_published_ones(M, published):
    assert cell({"dataset": "cifar10", "size": 1000}, **{**PAPER, **M}).work.parameters == published


@pytest.mark.parametrize("M", NETWORKS.values(), ids=NETWORKS)
def test_a_forward_pass_is_what_torch_counts_up_to_the_resampling_filters(M):
    ours = cell(**M)
    assert ours.work.forward * 5 == pytest.approx(counted(network(ours), ours, 5, backward=False), rel=0.01)


@pytest.mark.parametrize("M", NETWORKS.values(), ids=NETWORKS)
def test_a_training_step_is_three_forward_passes_as_torch_counts_it(M):
    ours = cell(**M)
    counter = counted(network(ours).train(), ours, 4, backward=True)
    per_step = cell_cost(ours).training / ours.checkpoints[-1][1]
    assert per_step == pytest.approx(counter, rel=0.03)


def test_a_cell_trains_and_generates_what_its_checkpoints_say():
    cost = cell_cost(cell())
    assert (cost.images_trained, cost.images_generated) == (12 * 8, 3 * 10)
    assert cost.generation == 3 * 10 * 35 * cell().work.forward
    assert cost.scoring == 3 * 10 * 2 * 8 * 64
    assert cost.operations == cost.training + cost.generation + cost.scoring


def test_what_is_measured_costs_nothing_more():
    cost = cell_cost(cell(), measured=2)
    assert (cost.images_trained, cost.images_generated) == (4 * 8, 10)
    assert cell_cost(cell(), measured=3).operations == 0


def test_the_optimum_is_generated_from_two_products_with_the_training_images():
    ours = cell(network="optimum")
    optimum = OptimalDenoiser(torch.from_numpy(training_set(ours).images).float() / 127.5 - 1)
    with FlopCounterMode(display=False) as counter:
        optimum(torch.zeros(10, 1, 8, 8), 1.0)
    cost = cell_cost(ours)
    assert cost.parameters == cost.training == 0
    assert cost.generation == pytest.approx(35 * counter.get_total_flops(), rel=0.01)

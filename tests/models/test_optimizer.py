"""The optimizers against those of torch.optim, whose states they also take."""

import pytest
import torch
from torch import Tensor

from diffmem.cells import TrainingProcedure
from diffmem.models.optimizer import Optimizer


def as_torch_has_it(weights: Tensor, T: TrainingProcedure) -> torch.optim.Optimizer:
    if T.optimizer == "adam":
        return torch.optim.Adam([weights], betas=(0.9, 0.999), eps=1e-8, weight_decay=T.weight_decay, fused=True)
    momentum = 0.9 if T.momentum is None else T.momentum
    return torch.optim.SGD([weights], momentum=momentum, weight_decay=T.weight_decay, fused=True)


@pytest.mark.parametrize(
    "chosen",
    [{}, {"weight_decay": 0.1}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.1}],
    ids=["adam", "adam with decay", "sgd", "sgd without momentum"],
)
def test_weights_are_those_of_torch_bit_by_bit_also_from_its_state_on(chosen: dict[str, object]) -> None:
    T = TrainingProcedure(**chosen)  # type: ignore[arg-type]
    start = torch.randn(50, generator=torch.Generator().manual_seed(1))
    ours, theirs = start.clone(), start.clone()
    gradients = torch.zeros(50)
    theirs.grad = gradients
    reference, own = as_torch_has_it(theirs, T), Optimizer(ours, gradients, T)
    for step in range(6):
        gradients.copy_(torch.randn(50, generator=torch.Generator().manual_seed(step)))
        reference.param_groups[0]["lr"] = 0.01 * (step + 1)
        reference.step()
        own.step(0.01 * (step + 1))
        assert torch.equal(ours, theirs), step
        if step == 2:  # as a state that an older diffmem has saved
            saved = reference.state_dict()
            own = Optimizer(ours, gradients, T)
            own.load_state_dict(saved)


def test_a_state_of_another_optimizer_is_no_state_of_this_one() -> None:
    adam, sgd = (
        Optimizer(torch.zeros(3), torch.zeros(3), TrainingProcedure(optimizer=name)) for name in ("adam", "sgd")
    )
    with pytest.raises(KeyError):
        adam.load_state_dict(sgd.state_dict())
    other = Optimizer(torch.zeros(4), torch.zeros(4), TrainingProcedure())
    with pytest.raises(RuntimeError):
        adam.load_state_dict(other.state_dict())

"""The optimizers of training, as torch's fused kernels on one flat tensor.

torch.optim's own classes do the same by the same kernels, but the first one made in a process imports torch's compiler,
which takes seconds.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from diffmem.cells import TrainingProcedure

BETAS = (0.9, 0.999)
EPS = 1e-8
MOMENTUM = 0.9


class Optimizer:
    """Adam (0.9, 0.999), eps 1e-8, or SGD with momentum; weight decay is added to the gradient in both.

    `weights` and `gradients` are flat; `moments` are zero at first.
    """

    def __init__(self, weights: Tensor, gradients: Tensor, T: TrainingProcedure) -> None:
        self.weights, self.gradients, self.T = weights, gradients, T
        self.momentum = MOMENTUM if T.momentum is None else T.momentum
        names = ("exp_avg", "exp_avg_sq") if T.optimizer == "adam" else ("momentum_buffer",) * (self.momentum > 0)
        self.moments = {name: torch.zeros_like(weights) for name in names}
        if T.optimizer == "adam":
            self.moments["step"] = torch.zeros((), device=weights.device)

    def step(self, lr: float) -> None:
        """Change the weights by their gradients, at a learning rate."""
        decay, known = self.T.weight_decay, self.moments
        weights, gradients = [self.weights], [self.gradients]
        if self.T.optimizer == "sgd":
            sgd(
                *(weights, gradients, [known.get("momentum_buffer")]),
                lr=lr,
                momentum=self.momentum,
                weight_decay=decay,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                fused=True,
            )
            return
        adam(
            *(weights, gradients, [known["exp_avg"]], [known["exp_avg_sq"]], [], [known["step"]]),
            lr=lr,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPS,
            weight_decay=decay,
            amsgrad=False,
            maximize=False,
            fused=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the moments as torch.optim keeps those of its only parameter."""
        return {"state": {0: self.moments}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with these moments; KeyError or RuntimeError if they are of another optimizer or network."""
        found = state["state"][0] if self.moments else {}
        for name, moment in self.moments.items():
            moment.copy_(found[name])

"""Parameter groups and the learning rate, as in the original."""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: parameters with more than one dimension decay, all others do not.

    So the kernels and the classifier are pulled towards zero, batch norm is not.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def linear_decay(optimizer: Optimizer, total_iters: int) -> LambdaLR:
    """A learning rate that falls linearly to 0: base * (1 - k / total_iters) after k calls of step().

    As in the original, step() is called *before* the update of an iteration, so that the k-th
    update (k = 1, 2, ...) uses exactly that rate, and the last one uses 0.
    """
    return LambdaLR(optimizer, lambda k: max(0.0, 1.0 - k / total_iters))

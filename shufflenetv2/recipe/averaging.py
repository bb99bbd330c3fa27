"""Parameter groups and the learning rate, as in the original; averaged weights, which it had not."""

import copy
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..network import ShuffleNetV2


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


class AveragedWeights:
    """An exponential moving average of a network's weights and batch-norm statistics, beside the network.

    Args:
        network: what is averaged, on its device; the average starts as a copy of it.
        decay: share of the average that an update keeps, 0 to below 1.
        warmup: keep less at first: at most 1 - k ** (-2/3) in the k-th update, as timm's ModelEmaV3 does.
        device: where the average is kept, if not beside the network.

    Attributes:
        network: the average, in eval mode.
    """

    def __init__(
        self, network: ShuffleNetV2, decay: float, *, warmup: bool = False, device: torch.device | None = None
    ) -> None:
        self.network = copy.deepcopy(network).to(device).eval().requires_grad_(False)
        self.decay, self.warmup = decay, warmup

    def on(self, device: torch.device) -> ShuffleNetV2:
        """The average on another device: itself if it is there, else a copy."""
        return self.network if next(self.network.parameters()).device == device else copy.deepcopy(self.network).to(device)

    def decay_of(self, iteration: int) -> float:
        """The share of the average that the update of an iteration (1, 2, ...) keeps."""
        return min(self.decay, 1 - iteration ** (-2 / 3)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, network: ShuffleNetV2, iteration: int) -> None:
        """Moves the average towards the network as it is now, after an iteration."""
        averages, values = ((*each.parameters(), *each.buffers()) for each in (self.network, network))
        pairs = [(average, value.to(average.device)) for average, value in zip(averages, values, strict=True)]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        weight = 1 - self.decay_of(iteration)
        torch._foreach_lerp_([average for average, _ in floats], [value for _, value in floats], weight)
        for average, value in pairs:
            if not average.is_floating_point():  # how many batches were seen
                average.copy_(value)

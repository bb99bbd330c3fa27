"""Exponential moving average of the weights."""

import copy

import torch

from ..config import OptimizationConfig
from ..network import ShuffleNetV2


def build_averaging(network: ShuffleNetV2, config: OptimizationConfig) -> "AveragedWeights | None":
    """Build the average of a network's weights, or return None where `model_ema` is off."""
    if not config.model_ema:
        return None
    device = torch.device("cpu") if config.model_ema_force_cpu else None
    return AveragedWeights(network, config.model_ema_decay, warmup=config.model_ema_warmup, device=device)


class AveragedWeights:
    """An exponential moving average of a network's weights and batch-norm statistics, kept in a second network.

    Args:
        network: the network to average, on its device; the average starts as a copy of it.
        decay: fraction of the average that an update keeps, 0 to below 1.
        warmup: use a smaller decay at first: at most 1 - k ** (-2/3) in the k-th update, as timm's ModelEmaV3 does.
        device: device of the average; default: that of the network.

    Attributes:
        network: the averaged network, in eval mode.
    """

    def __init__(
        self, network: ShuffleNetV2, decay: float, *, warmup: bool = False, device: torch.device | None = None
    ) -> None:
        self.network = copy.deepcopy(network).to(device).eval().requires_grad_(False)
        self.decay, self.warmup = decay, warmup

    def on(self, device: torch.device) -> ShuffleNetV2:
        """Return the averaged network on a device: itself if it is already there, else a copy."""
        return self.network if next(self.network.parameters()).device == device else copy.deepcopy(self.network).to(device)

    def decay_of(self, iteration: int) -> float:
        """Return the fraction of the average that the update of an iteration (1, 2, ...) keeps."""
        return min(self.decay, 1 - iteration ** (-2 / 3)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, network: ShuffleNetV2, iteration: int) -> None:
        """Move the average towards the current weights, after the update of an iteration."""
        averages, values = ((*each.parameters(), *each.buffers()) for each in (self.network, network))
        pairs = [(average, value.to(average.device)) for average, value in zip(averages, values, strict=True)]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        weight = 1 - self.decay_of(iteration)
        torch._foreach_lerp_([average for average, _ in floats], [value for _, value in floats], weight)
        for average, value in pairs:
            if not average.is_floating_point():  # num_batches_tracked
                average.copy_(value)

"""Channel permutations between the original's network and that of torchvision and mmpretrain.

The original shuffles the channels of a unit's input and then splits them: the even channels pass, and the odd ones go through
the main branch. torchvision and mmpretrain shuffle the output of the previous unit and split in halves: the first half passes,
and the second one goes through the main branch. The two networks therefore compute the same function with the same weights in
another order of channels.

The order follows from when a channel is consumed. Each channel that a branch produces passes through some units unchanged and
is then consumed exactly once: by the main branch of a later unit, or by what follows the stage. The index of its consumer is
the lifetime of the channel. In both networks every branch produces equally many channels of each lifetime, so the first channel
with some lifetime in one network corresponds to the first channel with that lifetime in the other one, and so on.
"""

import torch
from torch import Tensor

from ..network import SIZES, STAGE_UNITS, STEM_CHANNELS

CHANNEL_PARAMETERS = ("weight", "bias", "running_mean", "running_var")


def permutations(model_size: str) -> dict[tuple[str, int], Tensor]:
    """Return where each channel of the original's order stands in torchvision's order.

    Returns:
        {(module name in the original, dimension of its weight): int64 index}. Dimension 0 holds the channels that the module
        produces, dimension 1 those that it consumes. Element i of an index is the position in torchvision's order of the
        original's channel i. A module and dimension without an entry has the same order in both networks.
    """
    orders: dict[tuple[str, int], Tensor] = {}
    stage_input = torch.arange(STEM_CHANNELS)
    first_index = 0
    for units, channels in zip(STAGE_UNITS, SIZES[model_size][0], strict=True):
        produced, consumed = _match_stage(units, channels // 2)
        first = f"features.{first_index}"
        for layer in (0, 1):  # depthwise: produces channels in the order in which it consumes them
            orders[f"{first}.branch_proj.{layer}", 0] = stage_input
        orders[f"{first}.branch_proj.2", 1] = orders[f"{first}.branch_main.0", 1] = stage_input
        for layer in (2, 3):
            orders[f"{first}.branch_proj.{layer}", 0] = produced[0]
        for unit in range(units):
            main = f"features.{first_index + unit}.branch_main"
            if unit:
                orders[f"{main}.0", 1] = consumed[unit - 1]
            for layer in (5, 6):
                orders[f"{main}.{layer}", 0] = produced[unit + 1]
        stage_input = consumed[-1]
        first_index += units
    orders["conv_last.0", 1] = stage_input
    return orders


def to_original_order(state_dict: dict[str, Tensor], model_size: str) -> dict[str, Tensor]:
    """Return a state dict whose channels are in torchvision's order with its channels in the original's order.

    The names are the original's. The input of the first convolution changes from RGB to BGR.
    """
    return _reorder(state_dict, permutations(model_size))


def to_torchvision_order(state_dict: dict[str, Tensor], model_size: str) -> dict[str, Tensor]:
    """Return a state dict whose channels are in the original's order with its channels in torchvision's order.

    The names are the original's. The input of the first convolution changes from BGR to RGB.
    """
    return _reorder(state_dict, {key: order.argsort() for key, order in permutations(model_size).items()})


def _reorder(state_dict: dict[str, Tensor], orders: dict[tuple[str, int], Tensor]) -> dict[str, Tensor]:
    reordered = dict(state_dict)
    for (module, dimension), order in orders.items():
        for parameter in CHANNEL_PARAMETERS:
            name = f"{module}.{parameter}"
            if name in reordered:
                reordered[name] = reordered[name].index_select(dimension, order.to(reordered[name].device))
    reordered["first_conv.0.weight"] = reordered["first_conv.0.weight"].flip(1)  # RGB <-> BGR
    return reordered


def _match_stage(units: int, half: int) -> tuple[Tensor, list[Tensor]]:
    """Match the channels of one stage, whose branches produce `half` channels each.

    Returns:
        produced: (units + 1, half). For every branch (the projection, then the main branches) and every channel that it
            produces in the original, the index of the same channel in torchvision.
        consumed: the same for the input of every main branch after the first, and for the output of the stage.
    """
    original, torchvision = (_channel_flow(units, half, shuffle_first=shuffle_first) for shuffle_first in (True, False))
    original_order, torchvision_order = (
        _lifetimes(flow, units, half).argsort(dim=1, stable=True) for flow in (original, torchvision)
    )
    produced = torch.empty_like(original_order).scatter_(1, original_order, torchvision_order)
    counterpart = (produced + half * torch.arange(units + 1)[:, None]).flatten()
    consumed = []
    for original_channels, torchvision_channels in zip(original, torchvision, strict=True):
        position = torch.empty_like(counterpart)
        position[torchvision_channels] = torch.arange(len(torchvision_channels))
        consumed.append(position[counterpart[original_channels]])
    return produced, consumed


def _lifetimes(flow: list[Tensor], units: int, half: int) -> Tensor:
    """Return the index of the consumer of every channel, (units + 1, half)."""
    lifetimes = torch.empty((units + 1) * half, dtype=torch.int64)
    for consumer, channels in enumerate(flow):
        lifetimes[channels] = consumer
    return lifetimes.view(units + 1, half)


def _channel_flow(units: int, half: int, *, shuffle_first: bool) -> list[Tensor]:
    """Return the channels that each main branch after the first consumes, and those that leave the stage, in their order.

    Channel b * half + i is the i-th one that branch b produces: b = 0 is the projection, 1 the main branch of the first unit.
    """

    def shuffle(channels: Tensor) -> Tensor:
        return channels.view(2, -1).T.flatten()

    flow = []
    channels = torch.arange(2 * half)
    for unit in range(1, units):
        left, right = (channels[0::2], channels[1::2]) if shuffle_first else shuffle(channels).chunk(2)
        flow.append(right)
        channels = torch.cat((left, torch.arange((unit + 1) * half, (unit + 2) * half)))
    return [*flow, channels if shuffle_first else shuffle(channels)]

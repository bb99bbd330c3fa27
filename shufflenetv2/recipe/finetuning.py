"""Training that starts from weights: what is taken over, what stays as it is, and what learns more slowly."""

import difflib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from ..network import STAGE_UNITS, ShuffleNetV2, published_name
from ..weights import Weights, describe_mismatch
from .optimizers import parameter_groups

HEAD = "classifier."


class FreezeError(UserError):
    """A part of the network that cannot be frozen."""


def start_from(network: ShuffleNetV2, weights: Weights, class_names: list[str] | None = None) -> str:
    """Loads weights into a network, in place, all but a head that does not fit.

    A head fits that has the same shape and, where both are known, the same classes; its rows are
    put in the order of the network's classes. One that does not fit is left as it is initialised.

    Args:
        class_names: what the network's logits stand for.

    Returns:
        A line for the log.

    Raises:
        UserError: where the weights are of another model size, or a tensor outside the head is
            missing, superfluous or of another shape. The network is as it was before.
    """
    if weights.model_size != network.model_size:
        raise UserError(
            f"--initial-checkpoint {weights.path} holds a {weights.model_size} model, "
            f"and --model-size says {network.model_size}"
        )
    expected, found = network.state_dict(), dict(weights.state_dict)
    line = f"started from {weights.path} ({weights.model_size}, {weights.n_class} classes)"
    head, new_head = ({name: each[name].shape for name in each if name.startswith(HEAD)} for each in (found, expected))
    theirs, ours = weights.class_names or [], class_names or []
    others = bool(theirs and ours) and set(theirs) != set(ours)
    if head != new_head or others:
        line += f"; the head is new, for {network.n_class}{' other' if head == new_head else ''} classes"
        found = {name: tensor for name, tensor in found.items() if name not in head}
        expected = {name: tensor for name, tensor in expected.items() if name not in new_head}
    elif theirs and ours and theirs != ours:
        line += "; the rows of the head are put in the order of the classes here"
        rows = [theirs.index(name) for name in ours]
        found.update({name: found[name][rows] for name in head})

    if wrong := describe_mismatch(expected, found):
        raise UserError(f"--initial-checkpoint {weights.path} does not fit this ShuffleNetV2 {network.model_size}: {wrong}")
    network.load_state_dict(found, strict=False)
    if weights.preprocessing:
        mean, std = tuple(weights.preprocessing.mean), tuple(weights.preprocessing.std)
        if (mean, std) != (network.mean, network.std):
            line += f"; these weights are used to --mean {_numbers(mean)} --std {_numbers(std)}"
    return line


def freeze(network: ShuffleNetV2, names: Sequence[str]) -> str:
    """Makes parts of a network learn nothing any more, in place: neither weights nor batch-norm statistics.

    Their batch norm becomes torchvision's FrozenBatchNorm2d, which computes what batch norm does in
    eval mode, also in train mode and when the statistics are recalibrated. The names in the state dict stay,
    except that nothing counts batches there. Call it before the optimizer is made, and before batch
    norm is converted otherwise.

    Args:
        names: 'stem', 'stage2', 'stage3', 'stage4', 'conv_last', 'head', 'backbone' (all but the head), or
            modules by their path, such as 'features.3'.

    Returns:
        A line for the log.

    Raises:
        FreezeError: for a name that stands for no weights, or where nothing would be left to train.
            The network is as it was before.
    """
    from torchvision.ops import FrozenBatchNorm2d

    paths = {name: [name] for name, module in network.named_modules() if name and list(module.parameters())}
    paths |= _parts()
    names = [published_name(name) for name in names]
    for name in names:
        if name not in paths:
            near = difflib.get_close_matches(name, paths, 1, cutoff=0)[0]
            raise FreezeError(f"--freeze {name}: no part of the network with weights is called that; the nearest is {near}")
    prefixes = tuple(f"{path}." for name in names for path in paths[name])

    frozen = [parameter for name, parameter in network.named_parameters() if name.startswith(prefixes)]
    everything = list(network.parameters())
    if len(frozen) == len(everything):
        raise FreezeError(f"--freeze {' '.join(names)}: nothing would be left to train; leave a part out")
    count, total = (sum(parameter.numel() for parameter in each) for each in (frozen, everything))
    for parameter in frozen:
        parameter.requires_grad_(False)
    for name, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm) and f"{name}.".startswith(prefixes):
            fixed = FrozenBatchNorm2d(module.num_features, module.eps).to(module.weight)
            fixed.load_state_dict(module.state_dict())
            parent, _, own_name = name.rpartition(".")
            setattr(network.get_submodule(parent), own_name, fixed.train(module.training))
    return f"frozen: {', '.join(names)} ({count:,} of {total:,} parameters)"


def fine_tuning_groups(
    network: ShuffleNetV2, weight_decay: float, learning_rate: float, backbone_lr_scale: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer, each with its learning rate: the base for the classifier, and that times a scale for the rest.

    Within both, what decays is as in `parameter_groups`. The classifier's come first, so that the
    first group's rate is the base; a group without parameters is left out.

    Args:
        backbone_lr_scale: 0 or more.
    """
    head = {id(parameter) for parameter in network.classifier.parameters()}
    groups = []
    for of_head, scale in ((True, 1.0), (False, backbone_lr_scale)):
        for group in parameter_groups(network, weight_decay):
            parameters = [parameter for parameter in group["params"] if (id(parameter) in head) is of_head]
            if parameters:
                groups.append({**group, "params": parameters, "lr": learning_rate * scale})
    return groups


def _parts() -> dict[str, list[str]]:
    """The paths of the modules that make up what the paper names."""
    ends = list(accumulate(STAGE_UNITS))
    stages = {
        f"stage{number}": [f"features.{unit}" for unit in range(end - units, end)]
        for number, end, units in zip((2, 3, 4), ends, STAGE_UNITS, strict=True)
    }
    return {"stem": ["first_conv"], **stages, "head": ["classifier"], "backbone": ["first_conv", "features", "conv_last"]}


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)

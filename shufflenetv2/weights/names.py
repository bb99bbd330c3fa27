"""Tensor names of each project, and what the names and shapes of a state dict reveal about its network.

The state dicts of this trainer use the names of the original. torchvision and mmpretrain implement the same network under
other names and with another order of channels (see permutations.py).
"""

import re
from collections.abc import Mapping
from typing import Any

from ..network import SIZES, STAGE_UNITS, STEM_CHANNELS, published_name

# Prefixes that wrappers put before tensor names: DataParallel, timm's and torch's averaged models, torch.compile.
WRAPPER_PREFIXES = re.compile(r"^((module|_orig_mod)\.)+")

# (index in `features`, stage, index in the stage) of every unit
UNITS = [(sum(STAGE_UNITS[:stage]) + unit, stage, unit) for stage, units in enumerate(STAGE_UNITS) for unit in range(units)]
# Name of a branch in the original, its name in torchvision and mmpretrain, and the indices of its convolutions and batch norms
BRANCHES = (("branch_proj", "branch1", (0, 1, 2, 3)), ("branch_main", "branch2", (0, 1, 3, 4, 5, 6)))


def _torchvision_names() -> dict[str, str]:
    names = {"first_conv.0": "conv1.0", "first_conv.1": "conv1.1"}
    for index, stage, unit in UNITS:
        for original_branch, branch, layers in BRANCHES:
            for layer in layers:
                names[f"features.{index}.{original_branch}.{layer}"] = f"stage{stage + 2}.{unit}.{branch}.{layer}"
    return names | {"conv_last.0": "conv5.0", "conv_last.1": "conv5.1", "classifier.0": "fc"}


def _mmpretrain_names() -> dict[str, str]:
    names = {"first_conv.0": "backbone.conv1.conv", "first_conv.1": "backbone.conv1.bn"}
    for index, stage, unit in UNITS:
        for original_branch, branch, layers in BRANCHES:
            for position, layer in enumerate(layers):
                conv_module = f"backbone.layers.{stage}.{unit}.{branch}.{position // 2}"
                names[f"features.{index}.{original_branch}.{layer}"] = f"{conv_module}.{('conv', 'bn')[position % 2]}"
    names |= {"conv_last.0": "backbone.layers.3.conv", "conv_last.1": "backbone.layers.3.bn"}
    return names | {"classifier.0": "head.fc"}


# Project -> {module name in the original: module name in the project}, for every module with weights
MODULE_NAMES = {"torchvision": _torchvision_names(), "mmpretrain": _mmpretrain_names()}


def project_name(project: str, name: str) -> str:
    """Return the name that a project gives to a tensor of the original: `classifier.0.weight` -> `fc.weight`."""
    module, _, parameter = name.rpartition(".")
    return f"{MODULE_NAMES[project][module]}.{parameter}"


def unwrapped_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict without the prefixes and entries that training wrappers add, and with published names."""
    return {
        published_name(WRAPPER_PREFIXES.sub("", str(name))): tensor
        for name, tensor in state_dict.items()
        # torch's AveragedModel counts its updates in `n_averaged`. The auxiliary statistics of split batch norm belong to
        # augmented images and are not used for evaluation.
        if name != "n_averaged" and ".aux_bn." not in str(name)
    }


def recognize_names(state_dict: Mapping[str, Any]) -> str | None:
    """Return the project whose tensor names a state dict has: 'original', 'torchvision', 'mmpretrain', or None.

    Weights of this trainer have the names of the original.
    """
    if infer_model_size(state_dict) is not None:
        return "original"
    return next((project for project in MODULE_NAMES if infer_model_size(state_dict, project) is not None), None)


def infer_model_size(state_dict: Mapping[str, Any], project: str = "original") -> str | None:
    """Return the model size for which the last convolution and the classifier have the right shapes, or None."""
    names = ["conv_last.0.weight", "classifier.0.weight"]
    if project != "original":
        names = [project_name(project, name) for name in names]
    conv_last, classifier = (_shape(state_dict, name) for name in names)
    for size, (stages, last) in SIZES.items():
        if conv_last == (last, stages[-1], 1, 1) and classifier[1:] in ((last,), (2 * last,)) and classifier[0]:
            return size
    return None


def _shape(state_dict: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Return the shape of a tensor; () if it is missing."""
    return tuple(getattr(state_dict.get(name), "shape", ()))


def infer_architecture(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `ShuffleNetV2.architecture` that the shapes of a state dict with the original's names determine."""
    last, pooled = _shape(state_dict, "conv_last.0.weight")[0], _shape(state_dict, "classifier.0.weight")[1]
    projected, main = first_unit_channels(state_dict)
    return {
        "in_chans": 1 if _shape(state_dict, "first_conv.0.weight")[1:2] == (1,) else 3,
        "pooling": "catavgmax" if pooled == 2 * last else "avg",
        "layout": "torchvision" if projected == main != 0 else "original",
        "head_bias": "classifier.0.bias" in state_dict,
    }


def first_unit_channels(state_dict: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of channels that the two branches of the first unit produce: projection, main.

    The projection keeps the 24 channels of the stem in the original, and produces half of the output in torchvision and
    mmpretrain. A missing tensor counts 0.
    """
    shapes = (_shape(state_dict, f"features.0.{name}.weight") for name in ("branch_proj.2", "branch_main.5"))
    projected, main = (shape[0] if shape else 0 for shape in shapes)
    return projected, main


def is_original(state_dict: Mapping[str, Any]) -> bool:
    """Return whether the original's network, with its first unit and its head without biases, can have written the weights."""
    architecture = infer_architecture(state_dict)
    is_projected = first_unit_channels(state_dict)[0] == STEM_CHANNELS
    return is_projected and architecture["in_chans"] == 3 and not architecture["head_bias"]

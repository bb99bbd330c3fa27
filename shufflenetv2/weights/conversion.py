"""Conversion of state dicts between this trainer, the original, torchvision and mmpretrain.

Conversion changes only the names of tensors and the order of channels. Weights that are converted to another project and back
are therefore bit-identical.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..network import SIZES, STEM_CHANNELS, ShuffleNetV2
from .file import Preprocessing, Weights, describe_mismatch
from .names import first_unit_channels, infer_architecture, infer_model_size, project_name
from .permutations import to_original_order, to_torchvision_order

# ImageNet's normalization as torchvision and mmpretrain apply it, in BGR order on the scale 0..255
IMAGENET_MEAN, IMAGENET_STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
# Short side in pixels to which torchvision resizes validation images for its published weights, where it is not 256
TORCHVISION_RESIZE_SIZES = {"1.5x": 232, "2.0x": 232}
BN_EPS = 1e-5  # epsilon of batch norm in the other projects' networks


def from_torchvision(state_dict: Mapping[str, Tensor], path: str | Path = "torchvision weights") -> Weights:
    """Convert the state dict of torchvision's `shufflenet_v2_x*`.

    Args:
        state_dict: the result shares the memory of tensors whose channels keep their order.
        path: where the weights come from, for error messages.

    Returns:
        Weights of a network that computes, for BGR images on 0..255, the logits that torchvision's network computes for the
        same images as normalized RGB. A head whose biases are all zero becomes a head without biases; `to_torchvision` adds
        zero biases again.

    Raises:
        UserError: if a tensor is missing, unknown or of another shape.
    """
    weights = _from_project("torchvision", state_dict, Path(path))
    resize_size = TORCHVISION_RESIZE_SIZES.get(weights.model_size, 256)
    weights.preprocessing = Preprocessing(resize_size=resize_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return weights


def from_mmpretrain(state_dict: Mapping[str, Tensor], path: str | Path = "mmpretrain weights") -> Weights:
    """Convert the state dict of mmpretrain's (or mmclassification's) ShuffleNetV2 classifier, like `from_torchvision`."""
    weights = _from_project("mmpretrain", state_dict, Path(path))
    weights.preprocessing = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return weights


def to_torchvision(weights: Weights) -> dict[str, Tensor]:
    """Return a state dict that torchvision's `shufflenet_v2_x*(num_classes=weights.n_class)` loads with strict=True.

    torchvision's network expects RGB images normalized with the mean and standard deviation of `weights.preprocessing`, which
    a state dict does not contain; see `rgb_normalization`. (They cannot be folded into the first convolution, because its zero
    padding would then stand for another pixel value.)

    Raises:
        UserError: for a first unit, pooling or batch-norm epsilon that torchvision's network does not have.
    """
    return _to_project("torchvision", weights)


def to_mmpretrain(weights: Weights) -> dict[str, Tensor]:
    """Return a state dict for mmpretrain's ImageClassifier with backbone ShuffleNetV2 and head LinearClsHead.

    Raises:
        UserError: as `to_torchvision`.
    """
    return _to_project("mmpretrain", weights)


def to_original(weights: Weights) -> dict[str, Tensor]:
    """Return a state dict that the original's `ShuffleNetV2(n_class=weights.n_class)` loads with strict=True.

    The original's network does not normalize. Its input are BGR images on 0..255, normalized beforehand with the mean and
    standard deviation of `weights.preprocessing`; weights trained with the original recipe need no normalization.

    Raises:
        UserError: for a first unit, head, pooling or batch-norm epsilon that the original's network does not have.
    """
    refusal = _refusal("original", weights)
    state_dict = dict(weights.state_dict)
    projected, main = first_unit_channels(state_dict)
    if projected != STEM_CHANNELS:
        raise UserError(
            f"{refusal} first unit has {STEM_CHANNELS} + {projected + main - STEM_CHANNELS} output channels, not "
            f"{projected} + {main}; it takes weights of layout 'original' and those of size 0.5x"
        )
    if state_dict.pop("classifier.0.bias", torch.zeros(1)).any():
        raise UserError(f"{refusal} head has no biases, but these weights have")
    return state_dict


def rgb_normalization(preprocessing: Preprocessing | None) -> tuple[list[float], list[float]]:
    """Return the arguments of torchvision's `Normalize` for a converted network: mean and std, in RGB order on 0..1."""
    preprocessing = preprocessing or Preprocessing()
    mean, std = ([value / 255 for value in reversed(values)] for values in (preprocessing.mean, preprocessing.std))
    return mean, std


def _from_project(project: str, state_dict: Mapping[str, Tensor], path: Path) -> Weights:
    model_size = infer_model_size(state_dict, project)
    if model_size is None:
        raise UserError(f"{path} holds no weights of {project}'s ShuffleNetV2 classifier")
    n_class = state_dict[project_name(project, "classifier.0.weight")].shape[0]
    with torch.device("meta"):  # only names and shapes are needed
        network = ShuffleNetV2(n_class=n_class, model_size=model_size, layout="torchvision", head_bias=True)
    original_names = {project_name(project, name): name for name in network.state_dict()}
    expected = {project_name(project, name): tensor for name, tensor in network.state_dict().items()}
    if mismatch := describe_mismatch(expected, state_dict):
        raise UserError(f"{path} does not fit {project}'s ShuffleNetV2 {model_size}: {mismatch}")
    converted = to_original_order({original_names[name]: tensor for name, tensor in state_dict.items()}, model_size)
    if not converted["classifier.0.bias"].any():
        del converted["classifier.0.bias"]
    return Weights(path, converted, model_size, n_class, architecture=infer_architecture(converted), origin=project)


def _to_project(project: str, weights: Weights) -> dict[str, Tensor]:
    refusal = _refusal(project, weights)
    projected, main = first_unit_channels(weights.state_dict)
    if projected != main:
        half = SIZES[weights.model_size][0][0] // 2
        raise UserError(
            f"{refusal} first unit has {half} + {half} output channels, not {projected} + {main}; "
            "it takes weights of layout 'torchvision' and those of size 0.5x"
        )
    converted = to_torchvision_order(weights.state_dict, weights.model_size)
    head = weights.state_dict["classifier.0.weight"]
    converted.setdefault("classifier.0.bias", head.new_zeros(len(head)))
    return {project_name(project, name): tensor for name, tensor in converted.items()}


def _refusal(project: str, weights: Weights) -> str:
    """Raise a UserError for properties that no other project's network has; else return the beginning of further messages."""
    weights.network()  # raises a UserError for incomplete weights
    refusal = f"{weights.path} cannot be converted to {project}, whose"
    if weights.channels != 3:
        raise UserError(f"{refusal} images have three channels; these weights take grey images")
    pooling, eps = weights.architecture.get("pooling", "avg"), weights.architecture.get("bn_eps", BN_EPS)
    if pooling != "avg":
        raise UserError(f"{refusal} pooling is 'avg', not {pooling!r}")
    if eps != BN_EPS:
        raise UserError(f"{refusal} batch-norm epsilon is {BN_EPS:g}, not {eps:g}")
    return refusal

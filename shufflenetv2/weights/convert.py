"""Weights of torchvision's and mmpretrain's ShuffleNetV2 become ours, and ours become theirs.

We shuffle a unit's channels and then split them: the even ones pass, the odd ones are worked on. They
split what the unit before has shuffled: the first half passes, the second is worked on. So the same
weights want their channels in another order, and nothing but the order changes: there and back, every
tensor is the same bit for bit.

What the orders are follows from when a channel is used. The main branch of a later unit takes each
channel exactly once, or the end of the stage does; that is its lifetime. A branch makes equally many
channels of every lifetime in both networks, so the first of ours with some lifetime is the first of
theirs with that lifetime, and so on; see `_match`.

Besides, their first convolution wants RGB where ours wants BGR: its input channels are reversed.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..network import SIZES, STAGE_UNITS, STEM_CHANNELS, ShuffleNetV2, published_name
from .file import (
    Preprocessing,
    Weights,
    WeightsError,
    architecture_of,
    from_content,
    misfit,
    read_content,
    size_of,
    take_description,
)  # fmt: skip

# ImageNet's normalisation, which both projects use: BGR, 0..255
MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
# torchvision's published weights of these sizes are evaluated at another size than 256
TORCHVISION_RESIZE = {"1.5x": 232, "2.0x": 232}
BN_EPS = 1e-5  # theirs, and our default
# What a file of theirs has no place for, and is needed again when it comes back, goes under this name; see `content_for`
OURS = "shufflenetv2"
WRAPPINGS = ("state_dict", "model", "model_ema")  # where trainers put a state dict; the first one present is read
PREFIXES = re.compile(r"^((module|_orig_mod)\.)+")  # DataParallel's, an average's, torch.compile's

# Every unit's stage and number in the stage
UNITS = [(stage, unit) for stage, units in enumerate(STAGE_UNITS) for unit in range(units)]
# Our name of a branch, theirs, and where its convolutions and batch norms stand in ours
BRANCHES = (("branch_proj", "branch1", (0, 1, 2, 3)), ("branch_main", "branch2", (0, 1, 3, 4, 5, 6)))


def _torchvision_names() -> dict[str, str]:
    names = {"first_conv.0": "conv1.0", "first_conv.1": "conv1.1"}
    for number, (stage, unit) in enumerate(UNITS):
        for ours, theirs, layers in BRANCHES:
            for layer in layers:
                names[f"features.{number}.{ours}.{layer}"] = f"stage{stage + 2}.{unit}.{theirs}.{layer}"
    return names | {"conv_last.0": "conv5.0", "conv_last.1": "conv5.1", "classifier.0": "fc"}


def _mmpretrain_names() -> dict[str, str]:
    names = {"first_conv.0": "backbone.conv1.conv", "first_conv.1": "backbone.conv1.bn"}
    for number, (stage, unit) in enumerate(UNITS):
        for ours, theirs, layers in BRANCHES:
            for place, layer in enumerate(layers):
                their_layer = f"{theirs}.{place // 2}.{('conv', 'bn')[place % 2]}"
                names[f"features.{number}.{ours}.{layer}"] = f"backbone.layers.{stage}.{unit}.{their_layer}"
    last = {"conv_last.0": "backbone.layers.3.conv", "conv_last.1": "backbone.layers.3.bn"}
    return names | last | {"classifier.0": "head.fc"}


# Our names of modules with weights -> theirs
NAMES = {"torchvision": _torchvision_names(), "mmpretrain": _mmpretrain_names()}


def recognise(state_dict: Mapping[str, Any]) -> str | None:
    """Whose weights these are, by names and shapes: 'ours' (the original's as well), 'torchvision', 'mmpretrain' or None."""
    if size_of(state_dict) is not None:
        return "ours"
    return next((project for project in NAMES if _their_size(state_dict, project) is not None), None)


def from_torchvision(state_dict: Mapping[str, Tensor], path: str | Path = "torchvision's weights") -> Weights:
    """Our weights from those of torchvision's `shufflenet_v2_x*`.

    Args:
        state_dict: the model's; tensors whose order stays are shared with it.
        path: where it comes from, for messages.

    Returns:
        weights whose network gives, for BGR 0..255, what theirs gives for the same image as normalised RGB.
        A head whose biases are all zero becomes one without, which is how `to_torchvision` writes ours.

    Raises:
        WeightsError: where a tensor is missing, superfluous or of another shape.
    """
    weights = _from("torchvision", state_dict, Path(path))
    resize_size = TORCHVISION_RESIZE.get(weights.model_size, 256)
    weights.preprocessing = Preprocessing(resize_size=resize_size, mean=MEAN, std=STD)
    return weights


def from_mmpretrain(state_dict: Mapping[str, Tensor], path: str | Path = "mmpretrain's weights") -> Weights:
    """Our weights from those of mmpretrain's (mmclassification's) ShuffleNetV2 classifier; else as `from_torchvision`."""
    weights = _from("mmpretrain", state_dict, Path(path))
    weights.preprocessing = Preprocessing(mean=MEAN, std=STD)
    return weights


def to_torchvision(weights: Weights) -> dict[str, Tensor]:
    """The state dict that torchvision's `shufflenet_v2_x*(num_classes=weights.n_class)` loads with strict=True.

    It wants RGB, normalised with the mean and std of `weights.preprocessing`. They are not in the state
    dict, so where they are not ImageNet's, whoever uses it must be told; see `rgb_normalisation`. (A mean
    cannot be folded into the first convolution: what the border is padded with would be another colour.)

    Raises:
        WeightsError: for a first unit, a pooling or an epsilon of batch norm that their network does not have.
    """
    return _to("torchvision", weights)


def to_mmpretrain(weights: Weights) -> dict[str, Tensor]:
    """The state dict of mmpretrain's ImageClassifier: backbone ShuffleNetV2, LinearClsHead; else as `to_torchvision`."""
    return _to("mmpretrain", weights)


def to_original(weights: Weights) -> dict[str, Tensor]:
    """The state dict that the original's ShuffleNetV2(n_class=weights.n_class) loads with strict=True.

    It wants BGR, 0..255, less the mean and divided by the std of `weights.preprocessing`: for
    weights that were trained with the original recipe, just as it is.

    Raises:
        WeightsError: for a first unit, a head, a pooling or an epsilon of batch norm that the original does not have.
    """
    refusal = _refusal("the original's", weights)
    ours = dict(weights.state_dict)
    made = _first_unit(ours)
    if made[0] != STEM_CHANNELS:
        raise WeightsError(
            f"{refusal} first unit makes {STEM_CHANNELS} + {sum(made) - STEM_CHANNELS} channels, not {made[0]} + {made[1]}; "
            "only layout 'original' and 0.5x fit"
        )
    if ours.pop("classifier.0.bias", torch.zeros(1)).any():
        raise WeightsError(f"{refusal} head has no biases, and these weights have")
    return ours


def content_for(project: str, weights: Weights) -> dict[str, Any]:
    """What `torch.save` is to write for 'original', 'torchvision' or 'mmpretrain' to read.

    What the other project has no place for (preprocessing, classes, ...) travels where it does not disturb, so that
    `read_any` gives back what came. torchvision's file is the state dict, bare; the original's has
    'module.' before the names, which it expects when it goes on on a GPU, and does not mind in an evaluation.

    Raises:
        WeightsError: where the other network cannot hold these weights.
    """
    told = {OURS: weights.description()}
    if project == "torchvision":
        state_dict = OrderedDict(to_torchvision(weights))
        state_dict._metadata = told  # type: ignore[attr-defined]  # as torch keeps versions of modules there
        return state_dict
    if project == "mmpretrain":
        classes = {"dataset_meta": {"classes": weights.class_names}} if weights.class_names else {}
        return {"state_dict": to_mmpretrain(weights), "meta": classes, **told}
    return {"state_dict": {f"module.{name}": tensor for name, tensor in to_original(weights).items()}, **told}


def rgb_normalisation(preprocessing: Preprocessing | None) -> tuple[list[float], list[float]]:
    """What torchvision's `Normalize` is given before a converted network: mean and std in RGB order, on 0..1."""
    use = preprocessing or Preprocessing()
    mean, std = ([value / 255 for value in reversed(values)] for values in (use.mean, use.std))
    return mean, std


def pretrained(model_size: str, *, progress: bool = True) -> Weights:
    """torchvision's published weights for a size, converted; downloaded once, into torch.hub's folder (TORCH_HOME).

    They want images resized as Pillow does it; what OpenCV's makes of them costs a little accuracy.

    Args:
        model_size: '0.5x', '1.0x', '1.5x' or '2.0x'.
        progress: whether to show the download on stderr.

    Raises:
        WeightsError: without a network, or for a download that is damaged.
    """
    from torchvision.models import get_model_weights  # here, since it takes a second to load

    published = get_model_weights(f"shufflenet_v2_x{model_size[:-1].replace('.', '_')}").DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", Path(published.url).name)
    try:
        state_dict = published.get_state_dict(progress=progress, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # the network, the disk and torch's reader raise nearly anything
        if file.exists():
            raise WeightsError(f"{file} is damaged, or holds more than weights; delete it to download again") from error
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"--pretrained: {published.url} cannot be downloaded ({reason}); give a file with --initial-checkpoint"
        ) from error
    weights = from_torchvision(state_dict, file)
    images = published.transforms()
    mean, std = (tuple(round(255 * value, 6) for value in reversed(values)) for values in (images.mean, images.std))
    weights.preprocessing = Preprocessing(images.crop_size[0], images.resize_size[0], mean, std)
    weights.class_names = list(published.meta["categories"])
    return weights


def read_any(path: str | Path) -> Weights:
    """Reads the weights in a file: ours, the original's, torchvision's or mmpretrain's, told apart by what is in it.

    Those of others are a state dict, bare or under 'state_dict', 'model' or 'model_ema', with or
    without 'module.' or '_orig_mod.' before the names; torch's file or .safetensors.

    Raises:
        WeightsError: for a file that is missing, damaged, or holds something else.
    """
    path = Path(path)
    content = read_content(path)
    if "model_size" in content:
        return from_content(content, path)  # it says what it is
    wrapped = next((content[key] for key in WRAPPINGS if isinstance(content.get(key), Mapping)), content)
    # n_averaged: torch's AveragedModel counts in its state dict
    found = {published_name(PREFIXES.sub("", str(name))): tensor for name, tensor in wrapped.items() if name != "n_averaged"}
    project = recognise(found)
    if project == "torchvision":
        weights = from_torchvision(found, path)
    elif project == "mmpretrain":
        weights = from_mmpretrain(found, path)
        weights.class_names = _mmpretrain_classes(content.get("meta"), weights.n_class)
    elif project == "ours":
        weights = from_content(found, path)
    else:
        first = next(iter(found), "none")
        shape = tuple(getattr(found.get(first), "shape", ()))
        raise WeightsError(
            f"{path} holds no weights of a ShuffleNetV2 classifier, neither ours nor the original's, torchvision's or "
            f"mmpretrain's: {len(found)} entries, {first!r} {f'of shape {shape} ' if shape else ''}first"
        )
    for told in (content, getattr(wrapped, "_metadata", None)):
        if isinstance(told, Mapping) and isinstance(told.get(OURS), Mapping):
            take_description(weights, told[OURS])
    return weights


def load_model(path: str | Path) -> ShuffleNetV2:
    """The model in a weight file of any origin (see `read_any`), in eval mode on the CPU.

    Shape:
        images (N, 3, H, W), BGR, 0..255 -> logits (N, n_class). Whatever normalisation the
        weights want, the model does itself.

    Raises:
        WeightsError: for a file that is missing, damaged, or of another kind of model.
    """
    return read_any(path).network()


def permutations(model_size: str) -> dict[tuple[str, int], Tensor]:
    """Where our channels are in their network.

    Returns:
        by module of ours and dimension of its weights (0: the channels that it makes, 1: those that it
        takes), for each of our channels the number of the same channel in theirs, int64. A module and
        dimension that is not named keeps its order.
    """
    orders: dict[tuple[str, int], Tensor] = {}
    entering = torch.arange(STEM_CHANNELS)  # what the stage takes: for each of our channels, the one of theirs
    number = 0
    for units, channels in zip(STAGE_UNITS, SIZES[model_size][0], strict=True):
        made, taken = _match(units, channels // 2)
        first = f"features.{number}"
        for layer in (0, 1):  # depthwise: what it makes is in the order of what it takes
            orders[f"{first}.branch_proj.{layer}", 0] = entering
        orders[f"{first}.branch_proj.2", 1] = orders[f"{first}.branch_main.0", 1] = entering
        for layer in (2, 3):
            orders[f"{first}.branch_proj.{layer}", 0] = made[0]
        for unit in range(units):
            main = f"features.{number + unit}.branch_main"
            if unit:
                orders[f"{main}.0", 1] = taken[unit - 1]
            for layer in (5, 6):
                orders[f"{main}.{layer}", 0] = made[unit + 1]
        entering = taken[-1]
        number += units
    orders["conv_last.0", 1] = entering
    return orders


def _match(units: int, half: int) -> tuple[Tensor, list[Tensor]]:
    """The orders of the channels in one stage of `units` units, whose branches make `half` channels each.

    Returns:
        made: (units + 1, half). For every branch (the projection, then the main ones) and each channel
            it makes in our network, the number of the same channel in theirs.
        taken: the same for what every main branch after the first takes, and for what leaves the stage.
    """
    ours, theirs = _flow(units, half, shuffles_first=True), _flow(units, half, shuffles_first=False)
    lifetimes = []  # (units + 1, half) each
    for flow in (ours, theirs):
        lifetime = torch.empty((units + 1) * half, dtype=torch.int64)
        for when, channels in enumerate(flow):
            lifetime[channels] = when
        lifetimes.append(lifetime.view(units + 1, half))
    our_order, their_order = (lifetime.argsort(dim=1, stable=True) for lifetime in lifetimes)
    made = torch.empty_like(our_order).scatter_(1, our_order, their_order)
    same = (made + half * torch.arange(units + 1)[:, None]).flatten()
    taken = []
    for our_channels, their_channels in zip(ours, theirs, strict=True):
        place = torch.empty_like(same)
        place[their_channels] = torch.arange(len(their_channels))
        taken.append(place[same[our_channels]])
    return made, taken


def _flow(units: int, half: int, *, shuffles_first: bool) -> list[Tensor]:
    """The channels that every main branch after the first takes, and those that leave the stage, each in order.

    Channel b * half + i is the i-th that branch b makes: 0 is the projection, 1 the first unit's main branch, ...
    """

    def shuffled(x: Tensor) -> Tensor:
        return x.view(2, -1).T.flatten()

    taken = []
    channels = torch.arange(2 * half)
    for unit in range(1, units):
        if shuffles_first:
            passing, working = channels[0::2], channels[1::2]
        else:
            passing, working = shuffled(channels).chunk(2)
        taken.append(working)
        channels = torch.cat((passing, torch.arange((unit + 1) * half, (unit + 2) * half)))
    return [*taken, channels if shuffles_first else shuffled(channels)]


def _from(project: str, state_dict: Mapping[str, Tensor], path: Path) -> Weights:
    size = _their_size(state_dict, project)
    if size is None:
        raise WeightsError(f"{path} holds no weights of {project}'s ShuffleNetV2 classifier")
    n_class = state_dict[_name(project, "classifier.0.weight")].shape[0]
    with torch.device("meta"):  # names and shapes, without the weights
        network = ShuffleNetV2(n_class=n_class, model_size=size, layout="torchvision", head_bias=True)
    theirs = {_name(project, name): name for name in network.state_dict()}
    if wrong := misfit({_name(project, name): tensor for name, tensor in network.state_dict().items()}, state_dict):
        raise WeightsError(f"{path} does not fit {project}'s ShuffleNetV2 {size}: {wrong}")
    ours = _reordered({theirs[name]: tensor for name, tensor in state_dict.items()}, size)
    if not ours["classifier.0.bias"].any():
        del ours["classifier.0.bias"]
    return Weights(path, ours, size, n_class, architecture=architecture_of(ours), origin=project)


def _to(project: str, weights: Weights) -> dict[str, Tensor]:
    refusal = _refusal(f"{project}'s", weights)
    ours = weights.state_dict
    made = _first_unit(ours)
    if made[0] != made[1]:
        half = SIZES[weights.model_size][0][0] // 2
        raise WeightsError(
            f"{refusal} first unit makes {half} + {half} channels, not {made[0]} + {made[1]}; "
            "only layout 'torchvision' and 0.5x fit"
        )
    theirs = _reordered(ours, weights.model_size, inverse=True)
    head = ours["classifier.0.weight"]
    theirs.setdefault("classifier.0.bias", head.new_zeros(len(head)))
    return {_name(project, name): tensor for name, tensor in theirs.items()}


def _refusal(whose: str, weights: Weights) -> str:
    """How a refusal to convert these weights begins; refuses what no other project has."""
    weights.network()  # refuses what is not complete
    refusal = f"{weights.path} cannot be converted to {whose} network, whose"
    pooling, eps = weights.architecture.get("pooling", "avg"), weights.architecture.get("bn_eps", BN_EPS)
    if pooling != "avg":
        raise WeightsError(f"{refusal} pooling is 'avg', not {pooling!r}")
    if eps != BN_EPS:
        raise WeightsError(f"{refusal} batch norm adds {BN_EPS:g}, not {eps:g}")
    return refusal


def _first_unit(ours: Mapping[str, Tensor]) -> tuple[int, int]:
    """The channels that its two branches make."""
    return len(ours["features.0.branch_proj.2.weight"]), len(ours["features.0.branch_main.5.weight"])


def _reordered(state_dict: dict[str, Tensor], model_size: str, *, inverse: bool = False) -> dict[str, Tensor]:
    """Under our names, weights in their order of channels put into ours; or back."""
    result = dict(state_dict)
    for (module, dimension), order in permutations(model_size).items():
        for part in ("weight", "bias", "running_mean", "running_var"):
            name = f"{module}.{part}"
            if name in result:
                places = order.argsort() if inverse else order
                result[name] = result[name].index_select(dimension, places.to(result[name].device))
    result["first_conv.0.weight"] = result["first_conv.0.weight"].flip(1)  # RGB <-> BGR
    return result


def _name(project: str, name: str) -> str:
    """Their name of a tensor of ours."""
    module, _, part = name.rpartition(".")
    return f"{NAMES[project][module]}.{part}"


def _their_size(state_dict: Mapping[str, Any], project: str) -> str | None:
    ours = {name: state_dict.get(_name(project, name)) for name in ("conv_last.0.weight", "classifier.0.weight")}
    return None if ours["classifier.0.weight"] is None else size_of(ours)


def _mmpretrain_classes(meta: Any, n_class: int) -> list[str] | None:
    """Class names where mmpretrain keeps them ('dataset_meta'), or mmclassification did ('CLASSES')."""
    if not isinstance(meta, Mapping):
        return None
    described = meta.get("dataset_meta")
    names = described.get("classes") if isinstance(described, Mapping) else meta.get("CLASSES")
    return [str(name) for name in names] if isinstance(names, list | tuple) and len(names) == n_class else None

"""Fine-tuning: start training from existing weights, and freeze parts of the network."""

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor, nn

from ..config import FineTuningConfig, ModelConfig
from ..errors import UserError, nearest
from ..network import STAGE_UNITS, ShuffleNetV2, published_name
from ..weights import Weights, describe_mismatch, pretrained_weights, read_weights

CLASSIFIER = "classifier."
STEM = "first_conv.0.weight"


def read_initial_weights(fine_tuning: FineTuningConfig, model: ModelConfig) -> Weights | None:
    """Read the weights from which training starts; None if it starts from newly initialized weights.

    With `pretrained` these are torchvision's published weights, which are downloaded unless they are cached.

    Raises:
        UserError: for a file that cannot be read or does not hold weights of a ShuffleNetV2, or a failed download.
    """
    if fine_tuning.pretrained:
        return pretrained_weights(model.model_size)
    return read_weights(fine_tuning.initial_checkpoint) if fine_tuning.initial_checkpoint else None


def start_from(network: ShuffleNetV2, weights: Weights, class_names: list[str] | None = None) -> str:
    """Load weights into a network, in place. If the file's classifier does not fit, the network's stays as initialized.

    The file's classifier fits if it has the same shape and, where the class names of both are known, the same class names. If
    these are in another order, the rows of the classifier are reordered.

    Args:
        class_names: names of the network's classes.

    Returns:
        A line for the log.

    Raises:
        UserError: for weights of another model size, or with a tensor outside the classifier that is missing, superfluous or
            of another shape. The network is unchanged then.
    """
    if weights.model_size != network.model_size:
        raise UserError(
            f"`initial_checkpoint` {weights.path} holds a {weights.model_size} model, and `model_size` is {network.model_size}"
        )
    expected, state_dict = network.state_dict(), dict(weights.state_dict)
    line = f"started from {weights.path} ({weights.model_size}, {weights.n_class} classes)"
    state_dict[STEM], how = _adapt_stem(state_dict[STEM], network.in_chans)
    line += how
    shapes, network_shapes = (
        {name: state[name].shape for name in state if name.startswith(CLASSIFIER)} for state in (state_dict, expected)
    )
    file_classes, classes = weights.class_names or [], class_names or []
    has_other_classes = bool(file_classes and classes) and set(file_classes) != set(classes)
    if shapes != network_shapes or has_other_classes:
        line += f"; the classifier is new, for {network.n_class}{' other' if shapes == network_shapes else ''} classes"
        state_dict = {name: tensor for name, tensor in state_dict.items() if name not in shapes}
        expected = {name: tensor for name, tensor in expected.items() if name not in network_shapes}
    elif file_classes and classes and file_classes != classes:
        line += "; the rows of the classifier were put in the order of the classes of the training images"
        rows = [file_classes.index(name) for name in classes]
        state_dict.update({name: state_dict[name][rows] for name in shapes})

    if difference := describe_mismatch(expected, state_dict):
        raise UserError(
            f"`initial_checkpoint` {weights.path} does not fit this ShuffleNetV2 {network.model_size}: {difference}"
        )
    network.load_state_dict(state_dict, strict=False)
    if weights.preprocessing:
        mean, std = tuple(weights.preprocessing.mean), tuple(weights.preprocessing.std)
        if weights.preprocessing.normalization(network.in_chans) != (network.mean, network.std):
            line += f"; they were trained with mean {_in_words(mean)} and std {_in_words(std)}"
    return line


def _adapt_stem(weight: Tensor, in_chans: int) -> tuple[Tensor, str]:
    """Return the weights of the first convolution for another number of input channels, as in timm, and a text for the log."""
    if weight.shape[1] == in_chans:
        return weight, ""
    if in_chans == 1:
        return weight.sum(1, keepdim=True), "; the first convolution sums its weights for the three colours, for grey images"
    return weight.repeat(1, 3, 1, 1) / 3, "; a third of the weights of the first convolution goes to each of the three colours"


def freeze(network: ShuffleNetV2, names: Sequence[str]) -> str:
    """Exclude parts of a network from training, in place: weights and batch-norm statistics keep their values.

    Batch norm in these parts is replaced by torchvision's FrozenBatchNorm2d, which computes what batch norm computes in eval
    mode, also in train mode and during recalibration. State-dict names stay the same, but for `num_batches_tracked`, which
    disappears. Call this function before the optimizer is built, and before other conversions of batch norm.

    Args:
        names: 'stem', 'stage2', 'stage3', 'stage4', 'conv_last', 'head' (the classifier), 'backbone' (all but the
            classifier), or paths of modules such as 'features.3'.

    Returns:
        A line for the log.

    Raises:
        UserError: for an unknown name, or if no parameter would be left to train. The network is then unchanged.
    """
    from torchvision.ops import FrozenBatchNorm2d

    paths = {name: [name] for name, module in network.named_modules() if name and list(module.parameters())}
    paths |= _paths_of_parts()
    names = [published_name(name) for name in names]
    for name in names:
        if name not in paths:
            near = nearest(name, paths, cutoff=0)
            raise UserError(f"`freeze` {name}: no part of the network with weights has this name; did you mean {near}?")
    prefixes = tuple(f"{path}." for name in names for path in paths[name])

    frozen = [parameter for name, parameter in network.named_parameters() if name.startswith(prefixes)]
    parameters = list(network.parameters())
    if len(frozen) == len(parameters):
        raise UserError(f"`freeze` {' '.join(names)}: nothing would be left to train; leave a part out")
    frozen_count, total_count = (sum(parameter.numel() for parameter in group) for group in (frozen, parameters))
    for parameter in frozen:
        parameter.requires_grad_(False)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and f"{name}.".startswith(prefixes):
            frozen_norm = FrozenBatchNorm2d(module.num_features, module.eps).to(module.weight)
            frozen_norm.load_state_dict(module.state_dict())
            parent, _, own_name = name.rpartition(".")
            setattr(network.get_submodule(parent), own_name, frozen_norm.train(module.training))
    return f"frozen: {', '.join(names)} ({frozen_count:,} of {total_count:,} parameters)"


def _paths_of_parts() -> dict[str, list[str]]:
    """Return {name of a part: paths of its modules} for the names that are not paths themselves."""
    ends = list(accumulate(STAGE_UNITS))
    stages = {
        f"stage{number}": [f"features.{unit}" for unit in range(end - units, end)]
        for number, end, units in zip((2, 3, 4), ends, STAGE_UNITS, strict=True)
    }
    return {"stem": ["first_conv"], **stages, "head": ["classifier"], "backbone": ["first_conv", "features", "conv_last"]}


def _in_words(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)

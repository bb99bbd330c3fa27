"""Options of the network, and of other networks that it starts from or learns from."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from .fields import group, option
from .types import (
    File,
    FractionAbove0,
    FractionBelow1,
    IntegerChoice,
    Names,
    Positive,
    Probability,
    Text,
)


def _read_size(value: Any) -> Any:
    """Return 1.0x for torchvision's name of that network, shufflenet_v2_x1_0; any other value as it is."""
    return re.sub(r"^shufflenet_v2_x(\d)_(\d)$", r"\1.\2x", value) if isinstance(value, str) else value


def _read_pooling(value: Any) -> Any:
    """Return avg for timm's name of that pooling, fast; any other value as it is."""
    return "avg" if value == "fast" else value


Size = Literal["0.5x", "1.0x", "1.5x", "2.0x"]
SizeName = Literal["shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"]
Pooling = Literal["avg", "max", "avgmax", "catavgmax"]


@group("model")
class ModelConfig:
    """The network."""

    model_size: Annotated[Size, BeforeValidator(_read_size, json_schema_input_type=Size | SizeName)] = option(
        "1.5x", "width of the network", aliases=("--model",), recipe=True
    )
    in_chans: Annotated[Literal[1, 3], IntegerChoice] = option(
        3, "number of channels of the images: 3 for colour, 1 for grey", recipe=True
    )
    init: Literal["original", "torch"] = option(
        "original",
        "distribution of the initial weights: as published (original), or PyTorch's default for each layer, as torchvision's "
        "network has it (torch), which learns faster from few images",
        recipe=True,
    )
    gp: Annotated[Pooling, BeforeValidator(_read_pooling, json_schema_input_type=Pooling | Literal["fast"])] = option(
        "avg", "global pooling before the classifier", recipe=True
    )
    drop: FractionBelow1 | None = option(
        None, "dropout rate before the classifier; default: 0.2 for 2.0x, 0 for the others", recipe=True
    )
    drop_path: FractionBelow1 = option(
        0.0,
        "stochastic-depth rate of the last unit; it falls linearly to 0 at the first",
        aliases=("--drop-connect",),
        recipe=True,
    )
    drop_block: FractionBelow1 = option(0.0, "DropBlock rate in the last two stages", recipe=True)
    bn_momentum: FractionAbove0 | None = option(None, "momentum of batch norm; default: 0.1", recipe=True)
    bn_eps: Positive | None = option(None, "epsilon of batch norm; default: 1e-5", recipe=True)
    bn_tf: bool = option(False, "use TensorFlow's batch-norm settings: momentum 0.01, epsilon 1e-3", recipe=True)
    sync_bn: bool = option(False, "compute batch-norm statistics over the batches of all processes (one GPU each)", recipe=True)
    dist_bn: Literal["broadcast", "reduce"] = option(
        "broadcast", "running batch-norm statistics of several processes: those of the first, or their average", recipe=True
    )
    split_bn: bool = option(False, "keep separate batch-norm statistics for each view of `aug_splits`", recipe=True)


@group("fine-tuning")
class FineTuningConfig:
    """Training that starts from given weights."""

    initial_checkpoint: File = option(
        "", "weight file to start from; a classifier for other classes is initialised anew", recipe=True
    )
    pretrained: bool = option(False, "start from the weights that torchvision publishes (they are downloaded)", recipe=True)
    freeze: Names = option(
        (),
        "parts not to train: stem, stage2, stage3, stage4, conv_last, backbone (everything but the classifier), or the name "
        "of a module",
        recipe=True,
    )
    backbone_lr_scale: Positive = option(
        1.0, "learning rate of everything but the classifier, as a multiple of the classifier's", recipe=True
    )


@group("distillation")
class DistillationConfig:
    """A second network whose outputs are learnt as well."""

    teacher: Text = option(
        "",
        "classifier to learn from as well: a weight file of this program, or a model name of torchvision or timm",
        recipe=True,
        aliases=("--kd-model-name",),
    )
    teacher_checkpoint: File = option(
        "", "weights of the teacher, trained on the same classes; default: its published weights", recipe=True
    )
    distill_alpha: Probability = option(0.5, "weight of the teacher's part of the loss", recipe=True)
    distill_temperature: Positive = option(
        4.0, "temperature by which both networks' logits are divided", aliases=("--kd-temperature",), recipe=True
    )

"""Describe a weight file: its origin, network, preprocessing and training."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torchinfo

from ..config import height_width
from ..network import SIZES, STEM_CHANNELS
from .file import TRAINING_DETAILS
from .reading import read_weights


def describe(path: str | Path, *, use_ema: bool = False, check_weights: bool = True) -> dict[str, Any]:
    """Describe a weight file of this trainer, the original, torchvision or mmpretrain.

    Args:
        path: the file.
        use_ema: describe the averaged weights (EMA) of a checkpoint.
        check_weights: see `read_weights`.

    Returns:
        A dict of plain values with these keys. The value is None for information that the file does not contain.

        - path, bytes: the file and its size.
        - origin: the project that trained the weights, 'shufflenetv2', 'original', 'torchvision' or 'mmpretrain'.
        - model_size, n_class, class_names.
        - layout: 'original', 'torchvision', or 'both' for size 0.5x, whose layouts are equal.
        - in_chans, head_bias, pooling, bn_eps: further arguments of ShuffleNetV2.
        - preprocessing: dict with the fields of Preprocessing.
        - iteration, accuracy, options (the recipe), version, host, time: information about the training.
        - averaged: these are averaged weights (EMA); recalibrated: batch norm was recalibrated after the training.
        - stop_reason: why the training ended early; history: earlier changes of the recipe.
        - parameters, mult_adds: number of parameters, and of multiply-adds for one image of the model's input size.
        - table: text that lists the layers with their output shapes, parameters and multiply-adds.

    Raises:
        UserError: if the file is missing, damaged, or contains something else.

    Example:
        >>> describe("models/model.pkl")["accuracy"]
        {'top1': 0.694, 'top5': 0.889, 'loss': 1.32, 'balanced_accuracy': 0.694, 'macro_f1': 0.691}
    """
    weights = read_weights(path, use_ema=use_ema, check_weights=check_weights)
    network = weights.network().to("meta")  # shapes are enough, and an image of the model's input size may be large
    preprocessing = weights.preprocessing_or_default()
    summary = torchinfo.summary(
        network,
        input_data=torch.empty(1, preprocessing.channels, *height_width(preprocessing.input_size), device="meta"),
        depth=2,
        mode="eval",
        device="meta",
        verbose=0,
        col_names=("output_size", "num_params", "mult_adds"),
    )
    architecture = dict(network.architecture)
    if SIZES[weights.model_size][0][0] == 2 * STEM_CHANNELS:
        architecture["layout"] = "both"
    return {
        "path": str(path),
        "bytes": weights.path.stat().st_size,
        "origin": weights.origin,
        "model_size": weights.model_size,
        **architecture,
        "n_class": weights.n_class,
        "class_names": weights.class_names,
        "preprocessing": dataclasses.asdict(weights.preprocessing) if weights.preprocessing else None,
        "iteration": weights.iteration or None,
        **{name: weights.details.get(name) for name in TRAINING_DETAILS if name != "samples"},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "mult_adds": summary.total_mult_adds,
        # Since Python 3.11 torchinfo prints "(Units.MEGABYTES)" in place of "(M)".
        "table": str(summary).replace("(Units.MEGABYTES)", "(M)"),
    }

"""Export a weight file: write the format, compare it with the weights on real images, quantize it, and save it."""

import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import files
from ..config import CALIBRATION_IMAGES, OPSETS, ExportConfig
from ..data import Dataset, FolderDataset, Transform, build_evaluation_transform, evaluation_batches
from ..errors import UserError
from ..terminal import progress
from ..weights import Weights, read_weights
from .formats import export, largest_difference
from .images import DIGITS, open_images, select_evenly
from .prediction import accuracy
from .quantization import quantize
from .runtimes import open_program

MAX_DIFFERENCE = 1e-4  # between the logits of the file and those of the weights, relative to the largest logit
COMPARED_IMAGES = 16
BATCH_SIZE = 16


def export_file(config: ExportConfig, log: Callable[[str], object] = print) -> str:
    """Export a weight file to a file that is written only if its logits agree with those of the weights.

    Args:
        log: called with lines that report the comparison and the accuracy.

    Returns:
        A line about the resulting file.

    Raises:
        UserError: for an option or a file that cannot be used, or logits that differ by more than MAX_DIFFERENCE.
    """
    config.check()
    format, path = config.chosen_format, config.path
    weights = read_weights(config.model, use_ema=config.use_ema)
    preprocessing = weights.preprocessing_or_default()
    network = weights.network(preprocessing)
    transform = build_evaluation_transform(preprocessing)
    # Open all images first: a mistake should be reported before an export that takes minutes.
    calibration_set = (
        select_evenly(open_images(config.calibrate, "train", "calibrate"), CALIBRATION_IMAGES) if config.int8 else None
    )
    compared_set = select_evenly(open_images(config.images or config.calibrate or DIGITS, "val", "images"), COMPARED_IMAGES)
    val_set = _open_validation_set(config.val_dir, weights) if config.val_dir else None
    images = torch.cat([images for images, _ in evaluation_batches(compared_set, transform, BATCH_SIZE)])
    with torch.inference_mode():
        expected = network(images)

    content = export(
        weights,
        format,
        fold_bn=config.fold_bn,
        uint8_input=config.uint8_input,
        dynamic_batch=config.dynamic_batch,
        opset=config.opset or OPSETS[0],
    )
    program = open_program(format, content, str(path))
    difference = largest_difference(program(images), expected)
    log(f"largest difference between the logits on {len(images)} images: {difference:.1e} of the largest logit")
    if not difference <= MAX_DIFFERENCE:  # also true for NaN
        raise UserError(f"{path} is not written: its logits differ by {difference:.1e}, more than {MAX_DIFFERENCE:g}", status=1)

    if calibration_set is not None:
        batches = (images for images, _ in _shown(calibration_set, transform, "calibrating"))
        quantized = quantize(content, program.metadata, batches)
        program = open_program(format, quantized, str(path))
        difference = largest_difference(program(images), expected)
        ratio = len(quantized) / len(content)
        log(f"int8: {difference:.1e}; {ratio:.2f} times the size, calibrated on {len(calibration_set)} images")
        content = quantized
        if val_set is not None:
            for name, logits in (("float32", network), ("int8", program)):
                top1, top5 = accuracy(logits, _shown(val_set, transform, f"{name} validation"))
                log(f"{name:8} top-1 {top1:.2%}, top-5 {top5:.2%} of {len(val_set):,} images")
    files.write_bytes(path, content)
    return f"{path}: {len(content) / 1e6:.2f} MB; takes {program.metadata}"


def _shown(dataset: Dataset, transform: Transform, description: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a data set, and show the progress."""
    batches = evaluation_batches(dataset, transform, BATCH_SIZE)
    return progress(batches, description, len(dataset), "images", lambda batch: len(batch[1]))


def _open_validation_set(source: str, weights: Weights) -> Dataset:
    dataset: Dataset
    if source == DIGITS and not os.path.exists(source):
        dataset = open_images(source, "val", "val_dir")
    else:
        dataset = FolderDataset(source, weights.class_names)
    if len(dataset.class_names) != weights.n_class:
        raise UserError(f"{weights.path} has {weights.n_class} classes, but `val_dir` {source} has {len(dataset.class_names)}")
    return dataset

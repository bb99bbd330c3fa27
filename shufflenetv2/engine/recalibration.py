"""Recalibration of a weight file: batch-norm statistics recomputed as plain averages over training images."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import files
from ..config import OPTIONS, Config
from ..data import (
    BadImages,
    DataIterator,
    Dataset,
    build_evaluation_transform,
    build_preprocessing,
    build_train_transform,
    evaluation_batches,
    open_datasets,
    open_validation_set,
    worker_count,
)
from ..errors import UserError
from ..recipe import freeze
from ..terminal import progress
from ..weights import Weights, read_weights
from .devices import Devices, choose_devices
from .evaluation import evaluate
from .loop import recalibrate_batch_norm

# Training options that `recalibrate` accepts
ACCEPTED_OPTIONS = (
    *("train_dir", "val_dir", "dataset", "data_dir", "class_map", "on_bad_image", "max_bad_images"),
    *("batch_size", "workers", "device"),
)


def recalibrate(
    source: str | Path,
    destination: str | Path,
    *,
    images: int | None = None,
    seed: int | None = None,
    use_ema: bool = False,
    log: Callable[[str], object] = lambda line: None,
    **options: Any,
) -> Weights:
    """Recompute the batch-norm statistics of a weight file over training images, and write a file of this trainer.

    The weights do not change. Training does the same after its last iteration. Images are augmented as in the recipe that the
    file records; for a file of another project, as in the published recipe.

    Args:
        source: weight file of this trainer, the original, torchvision or mmpretrain.
        destination: file to write; it is replaced as a whole or not at all.
        images: number of images to average over; None for as many as in the training.
        seed: of the order and augmentation of images; None for the seed of the recipe.
        use_ema: take the averaged weights (EMA) of a checkpoint.
        log: called with lines that report the progress and the accuracy.
        options: options of training: train_dir, val_dir, dataset, data_dir, class_map, on_bad_image, max_bad_images,
            batch_size, workers, device.

    Returns:
        The weights in the new file. Their accuracy is that of the validation images, or None without any.

    Raises:
        UserError: if a file, a folder or an option cannot be used.

    Example:
        >>> recalibrate("torchvision.pth", "recalibrated.pkl", train_dir="data/train", val_dir="data/val", log=print)
    """
    destination = Path(destination)
    if not os.access(destination.parent, os.W_OK):  # checked first, because recalibration takes minutes
        raise UserError(f"{destination} cannot be written: {destination.parent} is not a folder that can be written to")
    weights = read_weights(source, use_ema=use_ema)
    config = recalibration_config(weights, options)
    train_set = open_datasets(config.data, config.optimization.seed)[0]
    val_set = _open_validation_set(config, weights)
    devices = choose_devices(config.common.device)
    network = weights.network(build_preprocessing(config.data))
    if config.fine_tuning.freeze:
        freeze(network, config.fine_tuning.freeze)  # the statistics of frozen parts stay as they were in training
    count = min(len(train_set), images or config.optimization.recalibration_images)
    batch_size = min(config.optimization.batch_size, count)
    if batch_size == 1:
        raise UserError("`batch_size` 1: statistics need at least two images")
    model = devices.place(network)
    validation = Validation(config, devices, val_set)

    validation.accuracy(model, lambda line: log(f"before: {line}"))
    batches = f"{count // batch_size:,} batch{'es' * (count >= 2 * batch_size)}"
    log(f"recalibrating batch norm over {batches} of {batch_size:,} images on {devices}")
    bad_images = BadImages.from_config(config.data, train_set, "training")
    iterator = DataIterator(
        train_set,
        build_train_transform(config.data, config.augmentation),
        batch_size,
        seed=config.optimization.seed if seed is None else seed,
        start_iteration=weights.iteration,  # the images that training would have continued with
        workers=worker_count(config.common.workers),
        pin_memory=devices.pin_memory,
        repeats=config.data.aug_repeats,
        balanced=config.data.balanced_sampling,
        bad_images=bad_images,
    )
    with closing(iterator):
        images_seen = _image_batches(iterator, count // batch_size, batch_size, first_view=config.model.split_bn)
        recalibrate_batch_norm(model, images_seen)
    _log_bad_images(bad_images, log)
    accuracy = validation.accuracy(model, lambda line: log(f"after: {line}"))
    result = replace(
        weights,
        path=destination,
        state_dict=network.cpu().state_dict(),
        architecture=network.architecture,
        details=weights.details | {"accuracy": accuracy, "recalibrated": True},
    )
    files.write(destination, result.record())
    return result


@dataclass(frozen=True)
class Validation:
    """Validation images, if there are any, and how to load them."""

    config: Config
    devices: Devices
    dataset: Dataset | None

    def accuracy(self, model: nn.Module, log: Callable[[str], object]) -> dict[str, float] | None:
        """Evaluate a model, and log and return its accuracy and loss; return None without validation images."""
        if self.dataset is None:
            return None
        bad_images = BadImages.from_config(self.config.data, self.dataset, "validation")
        batches = evaluation_batches(
            self.dataset,
            build_evaluation_transform(build_preprocessing(self.config.data)),
            self.config.val_batch_size,
            workers=worker_count(self.config.common.workers),
            pin_memory=self.devices.pin_memory,
            bad_images=bad_images,
        )
        with closing(batches):
            steps = progress(batches, "validation", len(self.dataset), "images", lambda batch: len(batch[1]))
            result = evaluate(model, steps)
        _log_bad_images(bad_images, log)
        log(f"top-1 {1 - result.top1_error:.2%}, top-5 {1 - result.top5_error:.2%}, loss {result.loss:.4f}")
        return result.accuracy()


def _log_bad_images(images: BadImages | None, log: Callable[[str], object]) -> None:
    for image in images.take_new() if images else ():
        log(f"left out: {image.reason}")


def recalibration_config(weights: Weights, options: dict[str, Any]) -> Config:
    """Return the options that the weights were trained with, or else the published ones, with the given options in their place.

    Raises:
        TypeError: for an option that has no effect on recalibration.
        UserError: if the options do not say where the training images are.
    """
    if unknown := options.keys() - set(ACCEPTED_OPTIONS):
        raise TypeError(f"recalibrate takes the options {', '.join(ACCEPTED_OPTIONS)}, not {unknown.pop()!r}")
    recipe_names = {option.name for option in OPTIONS if option.recipe}
    recorded = {name: value for name, value in weights.details.get("options", {}).items() if name in recipe_names}
    recorded_dataset = recorded.pop("dataset", "folder")
    if "dataset" in options:
        recorded = {name: value for name, value in recorded.items() if name not in ("train_split", "val_fraction")}
    elif recorded_dataset != "folder" and "train_dir" not in options:
        options = options | {"dataset": recorded_dataset}
    if not options.keys() & {"train_dir", "data_dir", "dataset"}:
        raise UserError("`train_dir` is missing: a folder with one folder of images per class")
    config = Config.from_values(options)
    if config.optimization.batch_size is None:
        raise UserError("`batch_size` auto is for training; give a number, or leave it out for that of the recipe")
    if config.data.val_dir:
        recorded.pop("val_fraction", None)
    recorded |= {**asdict(weights.preprocessing_or_default()), "in_chans": weights.channels}
    return config.replace(**{name: value for name, value in recorded.items() if name not in config.explicit})


def _open_validation_set(config: Config, weights: Weights) -> Dataset | None:
    if config.data.dataset == "folder" and not (config.data.val_dir or config.data.val_fraction):
        return None
    val_set = open_validation_set(config.data, config.optimization.seed, weights.class_names)
    if len(val_set.class_names) != weights.n_class:
        source = config.data.val_dir or config.data.train_dir or config.data.dataset
        raise UserError(f"{weights.path} has {weights.n_class} classes, but {source} has {len(val_set.class_names)}")
    return val_set


def _image_batches(iterator: DataIterator, count: int, batch_size: int, *, first_view: bool) -> Iterator[Tensor]:
    """Yield batches of images, with a progress bar.

    Args:
        first_view: yield only the first of several views of each image. With split batch norm, the statistics in a weight file
            are those of the first view.
    """
    for _ in progress(range(count), "recalibrating", count * batch_size, "images", lambda step: batch_size):
        images, targets = next(iterator)
        yield images[: len(targets)] if first_view else images

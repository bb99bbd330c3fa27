"""Draw what a training would feed to the network, and its learning rate, without training."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from ..config import Config
from ..data import (
    BadImages,
    DataIterator,
    Dataset,
    Subset,
    build_evaluation_transform,
    build_preprocessing,
    build_train_transform,
    evaluation_batches,
    worker_count,
)
from ..recipe import build_mixing, learning_rate
from ..report import draw_learning_rate, write_batch
from .loop import prepare_batch

MAX_IMAGES = 64  # in a figure
VALIDATION_IMAGES = 32
POINTS = 1_000  # of the curve of the learning rate


def draw_batches(folder: Path, config: Config, train_set: Dataset, count: int) -> Iterator[str]:
    """Draw the first batches of a run, with their mixed targets, into batch-1.png, ...; yield a line about each file.

    Raises:
        UserError: an image cannot be read, or a file cannot be written.
    """
    optimization = config.optimization
    mixing = build_mixing(config.augmentation, len(train_set.class_names), optimization.seed)
    batches = DataIterator(
        train_set, build_train_transform(config.data, config.augmentation), optimization.batch_size, seed=optimization.seed,
        workers=worker_count(config.common.workers, 1), repeats=config.data.aug_repeats,
        balanced=config.data.balanced_sampling, bad_images=BadImages.from_config(config.data, train_set, "training"),
    )  # fmt: skip
    with closing(batches):
        for iteration in range(1, count + 1):
            images, targets = next(batches)
            images, targets, _ = prepare_batch(images.float(), targets, mixing, iteration)
            path = folder / f"batch-{iteration}.png"
            write_batch(path, images, targets, train_set.class_names, f"Training batch {iteration}")
            yield f"{path}: {min(MAX_IMAGES, len(images))} of the {len(images):,} images of iteration {iteration}"


def draw_validation(folder: Path, config: Config, val_set: Dataset) -> str:
    """Draw evenly spaced validation images into validation.png, and return a line about the file.

    Raises:
        UserError: an image cannot be read, or the file cannot be written.
    """
    positions = np.linspace(0, len(val_set) - 1, min(VALIDATION_IMAGES, len(val_set))).round().astype(np.int64)
    transform = build_evaluation_transform(build_preprocessing(config.data))
    with closing(evaluation_batches(Subset(val_set, positions), transform, len(positions), workers=1)) as batches:
        images, targets = next(batches)
    path = folder / "validation.png"
    write_batch(path, images, targets, val_set.class_names, "Validation images")
    return f"{path}: {len(images)} of {len(val_set):,} validation images"


def draw_schedule(folder: Path, config: Config, train_images: int) -> str:
    """Draw the learning rate of every iteration into learning_rate.png, and return a line about the length of the run.

    Raises:
        UserError: the file cannot be written.
    """
    optimization, total_iters = config.optimization, config.optimization.total_iters
    iterations = np.unique(np.linspace(1, total_iters, min(POINTS, total_iters)).round().astype(int)).tolist()
    rates = [
        [iteration, learning_rate(iteration, optimization.learning_rate, config.schedule, total_iters, optimization.seed)]
        for iteration in iterations
    ]
    title = "Learning rate"
    if config.schedule.sched == "plateau":
        title += ", before any reduction by validation results"
    path = folder / "learning_rate.png"
    draw_learning_rate(path, rates, title)
    return (
        f"{path}: {max(rate for _, rate in rates):g} at most; {total_iters:,} iterations of {optimization.batch_size:,} images "
        f"are {total_iters * optimization.batch_size / train_images:,.1f} times the {train_images:,} training images"
    )

"""Open the training and the validation set that a config describes.

These are folders, data sets selected by name, or, for validation, a held-out part of the training set.
"""

import contextlib
import os
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..errors import UserError
from ..files import nearest_path, read_text_file
from ..rng import HELD_OUT, generator
from .datasets import Dataset, FolderDataset, Subset
from .images import limit_pixels
from .index import list_folder
from .named import open_named

# Names of folders that are not class folders: each holds the class folders of one split.
TRAINING_NAMES = ("train", "training")
VALIDATION_NAMES = ("val", "validation", "valid")
TEST_NAMES = ("test", "testing")


def open_datasets(config: DataConfig, seed: int) -> tuple[Dataset, Dataset | None]:
    """Open the training set and, if the config names one, the validation set.

    Processes that share a folder must not download at the same time: let one process call this function before the others.

    Args:
        seed: determines which samples `val_fraction` holds out.

    Raises:
        UserError: if a data set cannot be opened, or does not have `num_classes` classes.
    """
    limit_pixels(config.max_image_pixels)
    train_set = _open_training_set(config)
    if config.num_classes and config.num_classes != len(train_set.class_names):
        raise UserError(f"`num_classes` {config.num_classes}: the training images have {len(train_set.class_names)} classes")
    if config.val_fraction:
        return hold_out(train_set, config.val_fraction, seed)
    if config.dataset == "folder" and not config.val_dir:
        return train_set, None
    return train_set, open_validation_set(config, seed, train_set.class_names)


def open_validation_set(config: DataConfig, seed: int, class_names: list[str] | None) -> Dataset:
    """Open the data set to evaluate on.

    Args:
        seed: seed of the training run, which determines the samples that `val_fraction` held out.
        class_names: classes of the model, in the order of their labels; a `class_map` replaces them.

    Raises:
        UserError: if the data set cannot be opened.
    """
    limit_pixels(config.max_image_pixels)
    if config.val_fraction:
        _, val_set = open_datasets(config, seed)
        assert val_set is not None
        return val_set
    if config.dataset != "folder":
        return open_named(config.dataset, config.val_split, config.data_dir, download=config.dataset_download)
    if splits := splits_in(config.val_dir):
        inner = next((name for name in (*VALIDATION_NAMES, *TEST_NAMES) if name in splits), splits[0])
        raise UserError(
            f"`val_dir` {config.val_dir} holds {' and '.join(splits)}, which are no classes; "
            f"give `val_dir={os.path.join(config.val_dir, inner)}`"
        )
    return FolderDataset(config.val_dir, read_class_map(config.class_map) if config.class_map else class_names)


def _open_training_set(config: DataConfig) -> Dataset:
    if config.dataset != "folder":
        return open_named(config.dataset, config.train_split, config.data_dir, download=config.dataset_download)
    if splits := splits_in(config.train_dir):
        raise UserError(
            f"`train_dir` {config.train_dir} holds {' and '.join(splits)}, which are no classes; "
            + _remedy_for_splits(config.train_dir, splits)
        )
    return FolderDataset(config.train_dir, read_class_map(config.class_map) if config.class_map else None)


def splits_in(folder: str | Path) -> list[str]:
    """Return the names of the subfolders if all have names of splits and hold class folders; otherwise an empty list."""
    with contextlib.suppress(OSError):  # missing or unreadable: reported when the folder is opened
        names = list_folder(str(folder), "").folders.split("/")
        if set(names) <= {*TRAINING_NAMES, *VALIDATION_NAMES, *TEST_NAMES}:
            return names if all(list_folder(os.path.join(folder, name), "").folders for name in names) else []
    return []


def _remedy_for_splits(folder: str, splits: list[str]) -> str:
    if "train" in splits and any(name in splits for name in VALIDATION_NAMES):
        return f"give `data_dir={folder}`"
    roles = (("train_dir", TRAINING_NAMES), ("val_dir", (*VALIDATION_NAMES, *TEST_NAMES)))
    found = [(option, name) for option, names in roles for name in [next((n for n in names if n in splits), "")] if name]
    return "give " + " ".join(f"`{option}={os.path.join(folder, name)}`" for option, name in found)


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide a data set into a training and a validation part, both in the order of the data set.

    The fraction is held out of each class, rounded to whole images, but at least one image and never all. Nothing is held out
    of a class with a single image. Which images of a class are held out depends only on the seed, the label and the number of
    images in the class.

    Args:
        fraction: between 0 and 1, exclusive.
        seed: 0 or more.

    Raises:
        UserError: if no class has two images.
    """
    held_out = np.zeros(len(dataset), bool)
    counts = np.bincount(dataset.targets, minlength=len(dataset.class_names))
    indices_by_class = np.split(np.argsort(dataset.targets, kind="stable"), np.cumsum(counts)[:-1])
    for label, indices in enumerate(indices_by_class):
        if len(indices) > 1:
            number = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
            # Hold out the images with the smallest draws. With a permutation instead, appending images to a class would change
            # the selection completely; with draws, most of the images that were held out stay held out.
            draws = generator(seed, HELD_OUT, label).random(len(indices))
            held_out[indices[np.argsort(draws)[:number]]] = True
    if not held_out.any():
        raise UserError(f"`val_fraction` {fraction:g} holds out nothing: no class has two images")
    return Subset(dataset, np.flatnonzero(~held_out)), Subset(dataset, np.flatnonzero(held_out))


def read_class_map(path: str | Path) -> list[str]:
    """Read the names of the classes in the order of their labels: one per line, in UTF-8; empty lines are skipped.

    Raises:
        UserError: if the file cannot be read, is empty or names a class twice.
    """
    try:
        lines = read_text_file(path, "utf-8-sig").split("\n")
    except OSError as error:
        near = nearest_path(path)
        remedy = f"did you mean {near}?" if near else "it should hold one class name per line, and may be left out"
        raise UserError(f"`class_map` {path} cannot be read: {error.strerror}; {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"`class_map` {path} is not UTF-8 text; it should hold one class name per line") from error
    line_numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if name := line.strip():
            if name in line_numbers:
                raise UserError(f"`class_map` {path} names {name!r} in line {line_numbers[name]} and again in line {number}")
            line_numbers[name] = number
    if not line_numbers:
        raise UserError(f"`class_map` {path} is empty; it should hold one class name per line")
    return list(line_numbers)

"""Images for prediction and quantization: files and folders without labels, transformed as validation images are."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..config import height_width
from ..data import Dataset, DecodedImage, Digits, EvaluationTransform, ImageError, ImageFiles, Subset, find_images
from ..data.images import Image
from ..errors import UserError
from ..files import nearest_path

MAX_TYPED_PATHS = 20
DIGITS = "digits"  # given in place of a folder, this selects the built-in images


class SkipUnreadable:
    """A data set of resized and cropped images, in which an unreadable image is replaced by a black one.

    Attributes:
        unreadable: {index: error message} of the unreadable images among those requested so far.
    """

    def __init__(self, dataset: Dataset, transform: EvaluationTransform) -> None:
        self.dataset, self.transform = dataset, replace(transform, channels=3)
        self.class_names, self.targets, self.name = dataset.class_names, dataset.targets, dataset.name
        self.unreadable: dict[int, str] = {}

    def image(self, index: int) -> Image:
        pixels = np.zeros((*height_width(self.transform.size), 3), np.uint8)
        try:
            self.transform(self.dataset.image(index), pixels)
        except ImageError as error:
            self.unreadable[index] = str(error)
        return DecodedImage(pixels)

    def __len__(self) -> int:
        return len(self.dataset)


def image_paths(paths: Iterable[str | Path], warn: Callable[[str], object]) -> list[str]:
    """Return the paths of images, in the order of `paths`.

    Args:
        paths: files, which are taken with any suffix, and folders, which are searched for images at any depth. The images of a
            folder are sorted.
        warn: called with a message for each folder that holds no images or cannot be listed, and for each mistyped name.
    """
    images: list[str] = []
    names = [os.fspath(path) for path in paths]
    for path in names:
        # For a long list of missing files the search for similar names would take long.
        if len(names) <= MAX_TYPED_PATHS and not os.path.exists(path) and (near := nearest_path(path)):
            warn(f"{path} does not exist; did you mean {near}?")
        elif not os.path.isdir(path):
            images.append(path)
        elif files := find_images(path, lambda error: warn(f"{error.filename} cannot be read: {error.strerror}")):
            images += [os.path.join(path, name) for name in files]
        else:
            warn(f"{path} holds no images")
    return images


def open_images(source: str, split: str, option: str) -> Dataset:
    """Open the images below a folder, or the built-in digits.

    Args:
        source: a folder, or 'digits' if there is no folder of that name.
        split: 'train' or 'val', the split of the digits; not used for a folder.
        option: name of the option that gave the source, for error messages.

    Raises:
        UserError: if the folder does not exist or holds no images.
    """
    if source == DIGITS and not os.path.exists(source):
        return Digits(split)
    if not os.path.isdir(source):
        near = nearest_path(source, is_folder=True)
        remedy = f"did you mean {near}?" if near else "it should hold images, at any depth"
        raise UserError(f"`{option}` {source} is not a folder; {remedy}")
    warnings: list[str] = []
    paths = image_paths([source], warnings.append)
    if not paths:
        raise UserError(f"`{option}` {warnings[0]}")
    return ImageFiles(paths)


def select_evenly(dataset: Dataset, count: int) -> Subset:
    """Return `count` samples of a data set, evenly spread over it; all of them if it has fewer."""
    return Subset(dataset, np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)))

"""What can be trained on: a folder of class folders, and the built-in digits."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import numpy as np

from .. import UserError
from .images import IMAGE_SUFFIXES, DecodedImage, Image, open_image


class DatasetError(UserError):
    """A data set that cannot be used; the text names the folder, the reason and the remedy."""


class Dataset(Protocol):
    """Labelled images. `image` is called from several threads at once."""

    class_names: list[str]
    targets: np.ndarray  # (N,) int64, indices into class_names

    def name(self, index: int) -> str:
        """What to call a sample in a message."""

    def image(self, index: int) -> Image:
        """The sample's image."""

    def __len__(self) -> int: ...


class FolderDataset:
    """A folder of class folders with images in them, at any depth; hidden files are passed over.

    Args:
        folder: the folder of class folders.
        class_names: the classes and their order, for a folder that is to be labelled like another.
            Some of them may be absent here. Without it the classes are the class folders, sorted.

    Raises:
        DatasetError: where the folder is missing, has no class folders or no images, has a class
            without images (when it defines the classes) or a class that is not among class_names.
    """

    def __init__(self, folder: str | Path, class_names: list[str] | None = None) -> None:
        self.folder = Path(folder)
        found = class_folders(self.folder)
        unknown = [] if class_names is None else [name for name in found if name not in class_names]
        if unknown:
            raise DatasetError(
                f"{folder} has the class folder {unknown[0]!r}, which is none of the {len(class_names or [])} known classes"
            )
        self.class_names = found if class_names is None else class_names
        self.paths: list[str] = []  # relative to the folder: a million absolute paths are memory
        targets: list[int] = []
        for name in found:
            images = _images_below(self.folder, name)
            if not images and class_names is None:
                raise DatasetError(f"{self.folder / name} holds no images; remove the folder or fill it")
            self.paths += images
            targets += [self.class_names.index(name)] * len(images)
        if not self.paths:
            raise DatasetError(f"{folder} holds no images below its class folders")
        self.targets = np.array(targets, np.int64)

    def name(self, index: int) -> str:
        return self.paths[index]

    def image(self, index: int) -> Image:
        return open_image(os.path.join(self.folder, self.paths[index]))

    def __len__(self) -> int:
        return len(self.paths)


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders in a folder, sorted.

    Raises:
        DatasetError: where the folder is missing or has none.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; it should hold one folder of images per class")
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise DatasetError(f"{folder} holds no class folders; put the images of each class into a folder of its own")
    return found


def _images_below(folder: Path, class_name: str) -> list[str]:
    found: list[str] = []
    visited: set[str] = set()
    for where, folders, names in os.walk(folder / class_name, followlinks=True):
        if (real := os.path.realpath(where)) in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(where, folder)
        found += [
            os.path.join(inside, name)
            for name in names
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


class Digits:
    """1,797 real handwritten digits of 8 x 8 pixels, in ten classes; every fifth, drawn once, is held out.

    From the UCI Optical Recognition of Handwritten Digits set (CC BY 4.0; see digits.md beside the file).

    Args:
        split: 'train' (1,438 digits) or 'val' (359).
    """

    def __init__(self, split: str) -> None:
        self.split = split
        self.class_names = [str(digit) for digit in range(10)]
        with files(__package__).joinpath("digits.npz").open("rb") as file:
            stored = np.load(file)
            chosen = stored["held_out"] == (split == "val")
            # Stored as published, 0..16, dark background.
            self.images = (stored["images"][chosen].astype(np.float32) * (255 / 16) + 0.5).astype(np.uint8)
            self.targets = stored["targets"][chosen].astype(np.int64)

    def name(self, index: int) -> str:
        return f"digits/{self.split}/{index}"

    def image(self, index: int) -> Image:
        return DecodedImage(np.repeat(self.images[index][:, :, None], 3, axis=2))

    def __len__(self) -> int:
        return len(self.images)

"""What can be trained on: a folder of class folders, and the built-in digits."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import UserError
from .images import DecodedImage, Image, open_image
from .index import images_by_class


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
        DatasetError: where the folder is missing, cannot be listed, has no class folders or no images, has a
            class without images (when it defines the classes) or a class that is not among class_names.
    """

    def __init__(self, folder: str | Path, class_names: list[str] | None = None) -> None:
        self.folder = Path(folder)
        found = images_by_class(self.folder)
        self.class_names = list(found) if class_names is None else class_names
        labels = {name: label for label, name in enumerate(self.class_names)}
        for name, images in found.items():
            if name not in labels:
                raise DatasetError(
                    f"{folder} has the class folder {name!r}, which is none of the {len(self.class_names)} known classes"
                )
            if not images and class_names is None:
                raise DatasetError(f"{self.folder / name} holds no images; remove the folder or fill it")
        # Relative to the folder: a million absolute paths are memory.
        self.paths = [path for images in found.values() for path in images]
        if not self.paths:
            raise DatasetError(f"{folder} holds no images below its class folders")
        self.targets = np.repeat(
            np.array([labels[name] for name in found], np.int64), [len(images) for images in found.values()]
        )

    def name(self, index: int) -> str:
        return self.paths[index]

    def image(self, index: int) -> Image:
        return open_image(os.path.join(self.folder, self.paths[index]))

    def __len__(self) -> int:
        return len(self.paths)


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

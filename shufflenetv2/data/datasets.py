"""Data sets: a folder of class folders, the built-in digits, a subset of a data set, and image files without labels."""

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import UserError, nearest
from .images import DecodedImage, Image, open_image
from .index import images_by_class


class Dataset(Protocol):
    """Interface of a data set of labelled images. Several threads call `image` at the same time."""

    class_names: list[str]
    targets: np.ndarray  # (N,) int64, indices into class_names

    def name(self, index: int) -> str:
        """Return the name of a sample for messages, usually its path."""

    def image(self, index: int) -> Image:
        """Open the image of a sample."""

    def __len__(self) -> int: ...


class FolderDataset:
    """A folder with one folder of images per class. Images may lie in subfolders of a class folder; hidden files are skipped.

    Args:
        folder: the folder of class folders.
        class_names: the classes in the order of their labels, for example those of the training set; class folders may then be
            missing. By default the names of the class folders, sorted.

    Raises:
        UserError: if the folder is missing, cannot be listed, or has no class folders or no images; if a class folder has no
            images and `class_names` is None; if a class folder is not in `class_names`.
    """

    def __init__(self, folder: str | Path, class_names: list[str] | None = None) -> None:
        self.folder = Path(folder)
        images = images_by_class(self.folder)
        self.class_names = list(images) if class_names is None else class_names
        labels = {name: label for label, name in enumerate(self.class_names)}
        if unknown := [name for name in images if name not in labels]:
            raise UserError(_describe_unknown_classes(self.folder, unknown, self.class_names))
        for name, paths in images.items():
            if not paths and class_names is None:
                raise UserError(f"{self.folder / name} holds no images; remove the folder or fill it")
        # Paths relative to the folder, because a million absolute paths would take too much memory
        self.paths = [path for paths in images.values() for path in paths]
        if not self.paths:
            raise UserError(f"{folder} holds no images below its class folders")
        counts = [len(paths) for paths in images.values()]
        self.targets = np.repeat(np.array([labels[name] for name in images], np.int64), counts)

    def name(self, index: int) -> str:
        return self.paths[index]

    def image(self, index: int) -> Image:
        return open_image(os.path.join(self.folder, self.paths[index]))

    def __len__(self) -> int:
        return len(self.paths)


def _describe_unknown_classes(folder: Path, unknown: list[str], class_names: list[str]) -> str:
    near = nearest(unknown[0], class_names)
    others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    return (
        f"{folder} has the class folder {unknown[0]!r}{others}, which is none of the {len(class_names)} known classes; "
        + (f"did you mean {near!r}? Rename" if near else "rename")
        + " or remove the folder, or name all classes in a `class_map`"
    )


class Digits:
    """1,797 images of handwritten digits, 8 x 8 pixels, in ten classes. A randomly chosen, fixed fifth is the validation set.

    Source: Optical Recognition of Handwritten Digits, UCI (CC BY 4.0; see digits.md).

    Args:
        split: 'train' (1,438 digits) or 'val' (359).
    """

    def __init__(self, split: str) -> None:
        self.split = split
        self.class_names = [str(digit) for digit in range(10)]
        with files(__package__).joinpath("digits.npz").open("rb") as file:
            arrays = np.load(file)
            selected = arrays["held_out"] == (split == "val")
            # The file holds the published values: 0 (background) to 16 (ink).
            self.images = (arrays["images"][selected].astype(np.float32) * (255 / 16) + 0.5).astype(np.uint8)
            self.targets = arrays["targets"][selected].astype(np.int64)

    def name(self, index: int) -> str:
        return f"digits/{self.split}/{index}"

    def image(self, index: int) -> Image:
        return DecodedImage(np.repeat(self.images[index][:, :, None], 3, axis=2))

    def __len__(self) -> int:
        return len(self.images)


class Subset:
    """A selection of the samples of another data set.

    Args:
        indices: (N,) int64, indices into `dataset`.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        self.dataset, self.indices = dataset, indices
        self.class_names = dataset.class_names
        self.targets = dataset.targets[indices]

    def name(self, index: int) -> str:
        return self.dataset.name(int(self.indices[index]))

    def image(self, index: int) -> Image:
        return self.dataset.image(int(self.indices[index]))

    def __len__(self) -> int:
        return len(self.indices)


class ImageFiles:
    """Image files without labels; all images have label 0, whose class name is empty."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths, self.class_names = paths, [""]
        self.targets = np.zeros(len(paths), np.int64)

    def name(self, index: int) -> str:
        return self.paths[index]

    def image(self, index: int) -> Image:
        return open_image(self.paths[index])

    def __len__(self) -> int:
        return len(self.paths)

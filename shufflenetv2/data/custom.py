"""Data sets and transforms of the user: `dataset=package.module:Class` and `train_transform=package.module:function`."""

import os
from typing import Any

import numpy as np
import PIL.Image

from ..errors import UserError
from ..extensions import create
from .images import DecodedImage, Image, ImageError, open_encoded, open_image
from .transforms import as_bgr


class UserDataset:
    """Adapter of a data set that the user has written.

    The user's class is called with two arguments, the name of the split and the folder `data_dir` ('' if it is not given), and
    has these members:

    - class_names: list of str, in the order of the labels.
    - targets: sequence of N integers, the label of each sample.
    - image(index): the image of a sample: the path of a file, the bytes of a file, a PIL image, or a uint8 array, grey
      (H, W) or BGR (H, W, 3). Several threads call it at the same time. OSError and ValueError mean an unreadable image.
    - name(index), optional: the name of a sample for messages.

    Args:
        reference: the class as 'package.module:Class'.
        split: name of the split.
        folder: value of `data_dir`.

    Raises:
        UserError: the class cannot be imported or called, or a member is missing or has another form.
    """

    def __init__(self, reference: str, split: str, folder: str) -> None:
        self._reference, self._split = reference, split
        self._dataset = create("dataset", reference, split, folder)
        for member in ("class_names", "targets", "image"):
            if not hasattr(self._dataset, member):
                raise UserError(
                    f"`dataset` {reference}: has no {member!r}; a data set has class_names, targets and image(index)"
                )
        self.class_names = [str(name) for name in self._dataset.class_names]
        targets = np.asarray(self._dataset.targets)
        if targets.ndim != 1 or not len(targets) or not np.issubdtype(targets.dtype, np.integer):
            raise UserError(f"`dataset` {reference}: 'targets' of split {split!r} must be one or more integers, one per sample")
        self.targets = targets.astype(np.int64)
        if not 0 <= self.targets.min() <= self.targets.max() < len(self.class_names):
            raise UserError(
                f"`dataset` {reference}: 'targets' of split {split!r} are {targets.min()} to {targets.max()}, "
                f"but there are {len(self.class_names)} class names"
            )

    def name(self, index: int) -> str:
        if hasattr(self._dataset, "name"):
            return str(self._dataset.name(index))
        return f"{self._reference.partition(':')[2]}/{self._split}/{index}"

    def image(self, index: int) -> Image:
        try:
            return to_image(self._dataset.image(index), self.name(index))
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{self.name(index)} cannot be read: {error}") from error

    def __len__(self) -> int:
        return len(self.targets)


def to_image(image: Any, name: str) -> Image:
    """Return an image in any of the forms in which a user may have it.

    Args:
        image: path of a file, bytes of a file, PIL image, or uint8 array, grey (H, W) or BGR (H, W, 3).
        name: for messages about bytes that cannot be decoded.

    Raises:
        ImageError: a file cannot be read or decoded.
        TypeError: the image has none of these forms.
    """
    if isinstance(image, str | os.PathLike):
        return open_image(os.fspath(image))
    if isinstance(image, bytes):
        return open_encoded(name, image)
    if isinstance(image, np.ndarray) and image.ndim == 2 and image.dtype == np.uint8:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if not isinstance(image, PIL.Image.Image | np.ndarray):
        raise TypeError(f"an image must be a path, bytes, a PIL image or a uint8 array, not {type(image).__name__}")
    return DecodedImage(np.ascontiguousarray(as_bgr(image)))


class InMemoryImages:
    """Images in any of the forms that `to_image` takes, without labels: all belong to one class without a name."""

    def __init__(self, images: list[Any]) -> None:
        self._images, self.class_names = images, [""]
        self.targets = np.zeros(len(images), np.int64)

    def name(self, index: int) -> str:
        image = self._images[index]
        return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {index}"

    def image(self, index: int) -> Image:
        return to_image(self._images[index], self.name(index))

    def __len__(self) -> int:
        return len(self._images)

"""Images that cannot be decoded: what replaces them in training, and how many of them a run accepts."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..config import DataConfig
from ..errors import one_line
from ..rng import REPLACEMENT, generator
from .datasets import Dataset
from .images import ImageError

ATTEMPTS = 10  # number of images that are tried in place of a bad one; half of them have its class
NAMED = 10  # number of images that the error about too many of them names


class TooManyBadImagesError(ImageError):
    """More images are bad than `max_bad_images` accepts."""


@dataclass(frozen=True, order=True)
class BadImage:
    """An image that cannot be decoded.

    Attributes:
        split: 'training' or 'validation'.
        index: of the image in its data set.
        name: of the image in its data set.
        reason: message of the error, on one line.
    """

    split: str
    index: int
    name: str
    reason: str


class BadImages:
    """The bad images of a data set that were met so far; several threads may add images.

    Args:
        dataset: the data set.
        split: 'training' or 'validation', for messages.
        max_fraction: largest accepted number of distinct bad images, as a fraction of the data set.
    """

    def __init__(self, dataset: Dataset, split: str, max_fraction: float) -> None:
        self._dataset, self._split, self._max_fraction = dataset, split, max_fraction
        self._images: dict[int, BadImage] = {}
        self._new: list[BadImage] = []
        self._left_out: list[int] = []
        self._lock = threading.Lock()

    @classmethod
    def from_config(cls, config: DataConfig, dataset: Dataset, split: str) -> "BadImages | None":
        """Return an empty collection; None if the first bad image is to end the run (`on_bad_image` stop)."""
        return cls(dataset, split, config.max_bad_images) if config.on_bad_image == "skip" else None

    def __len__(self) -> int:
        return len(self._images)

    def add(self, index: int, error: ImageError) -> None:
        """Add an image of this process.

        Raises:
            TooManyBadImagesError: there are more than accepted.
        """
        with self._lock:
            if index not in self._images:
                image = BadImage(self._split, index, self._dataset.name(index), one_line(error))
                self._images[index] = image
                self._new.append(image)
        self.check()

    def leave_out(self, index: int, error: ImageError) -> None:
        """Add an image of this process that an evaluation leaves out.

        Raises:
            TooManyBadImagesError: there are more than accepted.
        """
        with self._lock:
            self._left_out.append(index)
        self.add(index, error)

    def take_left_out(self) -> list[int]:
        """Return the indices of the images that this process left out since the last call."""
        with self._lock:
            left_out, self._left_out = self._left_out, []
        return left_out

    def merge(self, image: BadImage) -> None:
        """Add an image that any process of the run has met."""
        with self._lock:
            self._images.setdefault(image.index, image)

    def take_new(self) -> list[BadImage]:
        """Return the images that this process added since the last call."""
        with self._lock:
            new, self._new = self._new, []
        return new

    def check(self) -> None:
        """Raise TooManyBadImagesError if there are more bad images than accepted."""
        if len(self) <= self._max_fraction * len(self._dataset):
            return
        with self._lock:
            images = [self._images[index] for index in sorted(self._images)]
        names = ", ".join([image.name for image in images[:NAMED]]) + ", ..." * (len(images) > NAMED)
        raise TooManyBadImagesError(
            f"{len(images):,} of {len(self._dataset):,} {self._split} images cannot be decoded, which is more than "
            f"`max_bad_images` {self._max_fraction:g} accepts: {names}; repair or remove them, or raise `max_bad_images`"
        )


class Replacements:
    """Choose the images that take the place of a bad training image: a function of the seed and the position.

    Args:
        targets: labels of the data set, int64 (N,).
        seed: seed of the run.
    """

    def __init__(self, targets: np.ndarray, seed: int) -> None:
        self._targets, self._seed = targets, seed

    def __call__(self, index: int, position: int) -> Iterator[int]:
        """Yield the indices of the images to try, one after the other; the first half has the class of the bad image.

        Args:
            index: of the bad image.
            position: of the sample in the order of samples.
        """
        same_class = np.flatnonzero(self._targets == self._targets[index])
        for attempt in range(ATTEMPTS):
            candidates = same_class if attempt < ATTEMPTS // 2 else np.arange(len(self._targets))
            yield int(generator(self._seed, REPLACEMENT, position, attempt).choice(candidates))

"""Colour jitter: brightness, contrast and saturation change by random factors in random order, as one map of the pixels."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import cv2
import numpy as np

from .operations import GREY
from .resize import compiled

BRIGHTNESS, CONTRAST, SATURATION = range(3)
ORDERS = tuple(permutations((BRIGHTNESS, CONTRAST, SATURATION)))


class Jitter(NamedTuple):
    """Affine map of colours: own * pixel + shared * the pixel's grey value + mean * the image's mean grey value.

    The result is rounded once. (Pillow rounds and clips after each of the three changes.)
    """

    own: float
    shared: float
    mean: float

    def matrix(self, mean: Sequence[float]) -> np.ndarray:
        """Return the affine map of an image's pixels, (3, 4), in BGR order.

        Args:
            mean: the mean colour of the image, BGR.
        """
        offset = self.mean * sum(weight * value for weight, value in zip(GREY, mean, strict=False))
        return np.hstack((self.own * np.eye(3) + self.shared * np.array(GREY), np.full((3, 1), offset)))

    def __call__(self, pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Apply the map with compiled code or with OpenCV; the pixels are the same.

        Args:
            pixels: uint8 (H, W, 3), BGR.
            out: uint8 (H, W, 3), contiguous, receives the result; allocated by default.
        """
        if out is None:
            out = np.empty(pixels.shape, np.uint8)
        if compiled is None or not compiled.apply_jitter(pixels, self, out):
            cv2.transform(pixels, self.matrix(cv2.mean(pixels)), dst=out)
        return out


UNCHANGED = Jitter(own=1.0, shared=0.0, mean=0.0)


def draw_jitter(strengths: Sequence[float], rng: np.random.Generator) -> Jitter:
    """Draw a random jitter.

    Each of the three changes is linear in the pixel, its grey value and the image's mean grey value, and so is their
    composition.

    Args:
        strengths: of brightness, contrast and saturation; a factor is drawn from [max(0, 1 - strength), 1 + strength].
    """
    factors = [max(0.0, 1 - strength) + (min(strength, 1.0) + strength) * rng.random() for strength in strengths]
    own, shared, mean = 1.0, 0.0, 0.0
    for change in ORDERS[int(rng.random() * len(ORDERS))]:
        factor = factors[change]
        if change == BRIGHTNESS:  # blend with black
            own, shared, mean = factor * own, factor * shared, factor * mean
        elif change == CONTRAST:  # blend with the mean grey value of the image changed so far
            own, shared, mean = factor * own, factor * shared, mean + (1 - factor) * (own + shared)
        else:  # blend with the pixel's grey value
            own, shared = factor * own, shared + (1 - factor) * own
    return Jitter(own, shared, mean)

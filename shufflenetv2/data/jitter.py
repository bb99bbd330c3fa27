"""The colour jitter: brightness, contrast and saturation by random factors in random order, as one map of the pixels."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import cv2
import numpy as np

from ..kernels.pixels import library
from .operations import GREY

BRIGHTNESS, CONTRAST, SATURATION = range(3)
ORDERS = tuple(permutations((BRIGHTNESS, CONTRAST, SATURATION)))


class Jitter(NamedTuple):
    """A pixel becomes own * pixel + shared * its grey + mean * the image's mean grey, and is rounded once.

    (Pillow rounds and clips after each of the three steps.)
    """

    own: float
    shared: float
    mean: float

    def matrix(self, mean: Sequence[float]) -> np.ndarray:
        """The affine map of an image's pixels, (3, 4), both BGR; `mean` is that image's mean colour."""
        offset = self.mean * sum(weight * value for weight, value in zip(GREY, mean, strict=False))
        return np.hstack((self.own * np.eye(3) + self.shared * np.array(GREY), np.full((3, 1), offset)))

    def __call__(self, pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """An image, uint8 (H, W, 3), BGR, jittered: by `jitter.c`, or by OpenCV; into `out`, contiguous, if there is one."""
        if out is None:
            out = np.empty(pixels.shape, np.uint8)
        compiled = library() if pixels.flags.c_contiguous else None
        if compiled is None or compiled.jitter(pixels.ctypes.data, pixels.size // 3, *self, out.ctypes.data):
            cv2.transform(pixels, self.matrix(cv2.mean(pixels)), dst=out)
        return out


UNCHANGED = Jitter(own=1.0, shared=0.0, mean=0.0)


def draw_jitter(strengths: Sequence[float], rng: np.random.Generator) -> Jitter:
    """A jitter of random strength.

    Each of the three steps is linear in the pixel, its own grey and the image's mean grey, and so is their composition.

    Args:
        strengths: of brightness, contrast and saturation; each factor is drawn from [max(0, 1 - strength), 1 + strength].
    """
    factors = [max(0.0, 1 - strength) + (min(strength, 1.0) + strength) * rng.random() for strength in strengths]
    own, shared, mean = 1.0, 0.0, 0.0
    for step in ORDERS[int(rng.random() * len(ORDERS))]:
        factor = factors[step]
        if step == BRIGHTNESS:  # towards black
            own, shared, mean = factor * own, factor * shared, factor * mean
        elif step == CONTRAST:  # towards the mean grey of the image as it is by now
            own, shared, mean = factor * own, factor * shared, mean + (1 - factor) * (own + shared)
        else:  # towards each pixel's own grey
            own, shared = factor * own, shared + (1 - factor) * own
    return Jitter(own, shared, mean)

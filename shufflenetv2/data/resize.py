"""Resize and flip images, or compute a part of a resized image, with compiled code or with OpenCV.

`compiled` is the module of compiled pixel operations, or None if the folder `shufflenetv2/kernels/` is absent. OpenCV then
computes the same pixels.
"""

import math
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np

compiled: ModuleType | None
try:
    from ..kernels import pixels as compiled
except ImportError:
    compiled = None

INTERPOLATIONS = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
    "lanczos": cv2.INTER_LANCZOS4,
}

# In resized images. Up to the first number, OpenCV resizes a whole image sooner than NumPy computes a part of it.
MAX_PLAIN_PIXELS = 2**22
MAX_RESIZED_PIXELS = 2**28


class ResizeError(ValueError):
    """A resized image would have more than MAX_RESIZED_PIXELS pixels, all of which would have to be computed."""


def resize(
    pixels: np.ndarray,
    height: int,
    width: int,
    interpolation: str = "bilinear",
    *,
    hflip: bool = False,
    vflip: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resize an image, then flip it; the pixels are bit-identical to those of cv2.resize and cv2.flip.

    Args:
        pixels: uint8 (H, W, 3).
        height, width: size of the result in pixels.
        interpolation: a key of INTERPOLATIONS.
        hflip, vflip: whether to flip horizontally and vertically.
        out: uint8 (height, width, 3), contiguous, receives the result; allocated by default.

    Returns:
        uint8 (height, width, 3).

    Raises:
        cv2.error: if OpenCV cannot make an image of this size.
    """
    if compiled is not None and interpolation == "bilinear" and height * width <= compiled.MAX_PIXELS:
        resized = np.empty((height, width, 3), np.uint8) if out is None else out
        if compiled.resize_bilinear(pixels, (hflip, vflip), resized):
            return resized
    is_flipped = hflip or vflip
    resized = cv2.resize(pixels, (width, height), dst=None if is_flipped else out, interpolation=INTERPOLATIONS[interpolation])
    if not is_flipped:
        return resized
    return cv2.flip(resized, -1 if hflip and vflip else int(hflip), dst=out)


class Part(NamedTuple):
    """A rectangle of a resized image.

    Attributes:
        size: height and width of the whole resized image in pixels.
        top, left, height, width: of the rectangle in it.
    """

    size: tuple[int, int]
    top: int
    left: int
    height: int
    width: int


def needed_box(source_size: tuple[int, int], part: Part, interpolation: str) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the rectangle of an image that `resize_part` needs to compute a part."""
    if not _is_computed_alone(part, interpolation):
        return 0, 0, *source_size
    centre = 0.0 if interpolation == "nearest" else 0.5
    top, height = _needed_range(part.top, part.height, part.size[0], source_size[0], centre)
    left, width = _needed_range(part.left, part.width, part.size[1], source_size[1], centre)
    return top, left, height, width


def resize_part(
    pixels: np.ndarray, given: tuple[int, int], source_size: tuple[int, int], part: Part, interpolation: str = "bilinear"
) -> np.ndarray:
    """Resize an image, and return a part of the result; the pixels are bit-identical to those of cv2.resize.

    Args:
        pixels: uint8 (H, W, 3), the rectangle `needed_box` of the image, or a larger one.
        given: (top, left) of this rectangle in the image.
        source_size: height and width of the image.

    Returns:
        uint8 (part.height, part.width, 3).

    Raises:
        ResizeError: the whole result would have to be computed, and has too many pixels.
    """
    if not _is_computed_alone(part, interpolation):
        if math.prod(part.size) > MAX_RESIZED_PIXELS:
            raise ResizeError
        return resize(pixels, *part.size, interpolation)[part.top : part.top + part.height, part.left : part.left + part.width]
    if interpolation == "nearest":
        rows = _nearest(part.top, part.height, part.size[0], source_size[0]) - given[0]
        columns = _nearest(part.left, part.width, part.size[1], source_size[1]) - given[1]
        picked: np.ndarray = pixels[rows[:, None], columns]
        return picked
    if compiled is not None:
        out = np.empty((part.height, part.width, 3), np.uint8)
        if compiled.resize_bilinear_part(pixels, given, source_size, part.size, (part.top, part.left), out):
            return out
    return _resize_part_bilinear(pixels, given, source_size, part)


def _is_computed_alone(part: Part, interpolation: str) -> bool:
    """Return whether `resize_part` computes the pixels of the part alone, instead of those of the whole resized image."""
    if interpolation not in ("bilinear", "nearest"):
        return False
    is_compiled = compiled is not None and compiled.library() is not None
    return (is_compiled and interpolation == "bilinear") or math.prod(part.size) > MAX_PLAIN_PIXELS


def _needed_range(start: int, count: int, new_length: int, length: int, centre: float) -> tuple[int, int]:
    """Return start and number of the samples between which, or at which, samples of a resized axis lie.

    Args:
        centre: position of a sample in the interval that the sample covers.
    """
    scale = length / new_length
    # One sample more at each end: OpenCV computes positions in single precision.
    first = max(0, math.floor((start + centre) * scale - centre) - 1)
    last = min(length - 1, math.floor((start + count - 1 + centre) * scale - centre) + 2)
    return min(first, length - 1), max(1, last - first + 1)


def _nearest(start: int, count: int, new_length: int, length: int) -> np.ndarray:
    positions = np.floor(np.arange(start, start + count) * (1 / (new_length / length))).astype(np.int64)
    return np.asarray(positions.clip(max=length - 1))


def _resize_part_bilinear(pixels: np.ndarray, given: tuple[int, int], source_size: tuple[int, int], part: Part) -> np.ndarray:
    """Compute a part of a resized image as OpenCV does: weights in 1/2048, products in integers, rounded twice."""
    columns, weights = _neighbours(part.left, part.width, part.size[1], source_size[1])
    at_edge = (columns < 0) | (columns >= source_size[1] - 1)
    weights[:, at_edge] = [[2048], [0]]
    columns = np.clip([columns, columns + 1], 0, source_size[1] - 1) - given[1]
    first_rows, row_weights = _neighbours(part.top, part.height, part.size[0], source_size[0])
    rows = np.clip([first_rows, first_rows + 1], 0, source_size[0] - 1) - given[0]
    needed, positions = np.unique(rows, return_inverse=True)
    source = pixels[needed].astype(np.int32)
    between_columns = sum(source[:, columns[i]] * weights[i][:, None] for i in (0, 1)) >> 4
    upper, lower = between_columns[positions.reshape(2, -1)] * row_weights[:, :, None, None] >> 16
    part_pixels: np.ndarray = ((upper + lower + 2) >> 2).astype(np.uint8)
    return part_pixels


def _neighbours(start: int, count: int, new_length: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first of the two samples between which each new sample lies, and the weights of both (2, count), in 1/2048."""
    scale = 1 / (new_length / length)
    positions = ((np.arange(start, start + count) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(positions)
    fraction = positions - first
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(2048)).astype(np.int32)
    return first.astype(np.int64), weights

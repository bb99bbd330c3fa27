"""Resizing: bilinear by `resize.c`, all else by OpenCV."""

import cv2
import numpy as np

from ..kernels.pixels import library, scratch, scratch_size

INTERPOLATIONS = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
    "lanczos": cv2.INTER_LANCZOS4,
}
MOST_PIXELS = 1 << 28  # of a result of `resize.c`


def resize(
    pixels: np.ndarray,
    height: int,
    width: int,
    interpolation: str = "bilinear",
    *,
    mirrored: bool = False,
    upside_down: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """An image at another size, then flipped: OpenCV's pixels, bit for bit.

    Args:
        pixels: uint8 (H, W, 3).
        interpolation: one of INTERPOLATIONS.
        out: uint8 (height, width, 3), contiguous, to write into rather than into memory of its own.

    Returns:
        uint8 (height, width, 3).

    Raises:
        cv2.error: for a result larger than OpenCV allows.
    """
    is_plain = interpolation == "bilinear" and pixels.strides[1:] == (3, 1) and height * width <= MOST_PIXELS
    compiled = library() if is_plain else None
    if compiled is None:
        is_flipped = mirrored or upside_down
        direct = None if is_flipped else out
        resized = cv2.resize(pixels, (width, height), dst=direct, interpolation=INTERPOLATIONS[interpolation])
        return cv2.flip(resized, -1 if mirrored and upside_down else int(mirrored), dst=out) if is_flipped else resized
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    old_height, old_width = pixels.shape[:2]
    size = scratch.at_least(scratch_size(old_width, width)).size
    source, target = (pixels.ctypes.data, pixels.strides[0], old_height, old_width), (out.ctypes.data, height, width)
    compiled.resize_bilinear(*source, *target, mirrored, upside_down, scratch.address, size)
    return out

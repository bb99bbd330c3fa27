"""Resize and flip images, with compiled code or with OpenCV.

`compiled` is the module of compiled pixel operations, or None if the folder `shufflenetv2/kernels/` is absent. OpenCV then
computes the same pixels.
"""

from types import ModuleType

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

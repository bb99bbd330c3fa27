"""Parts of images: the random crops of training, and crops that may exceed the image."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

CROP_ATTEMPTS = 10
# Probability that the scale of an image is drawn, and that its aspect ratio is drawn, in timm's `rkrc` and `rkrr`
KEPT_RATIO_PROBABILITY = 0.5


def draw_resized_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of a crop as torchvision's RandomResizedCrop does: ten attempts, then the centre.

    Args:
        height, width: of the image.
        scale: smallest and largest fraction of the image area, drawn uniformly.
        ratio: smallest and largest width / height, drawn log-uniformly.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(CROP_ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.random() * (height - crop_height + 1))
            left = int(rng.random() * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_width, crop_height = width, height
    if width / height < ratio[0]:
        crop_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        crop_width = max(1, round(height * ratio[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def crop_or_pad(
    pixels: np.ndarray, top: int, left: int, size: tuple[int, int], fill: Sequence[float] | None = None
) -> np.ndarray:
    """Return a part of an image, which may exceed the image.

    Args:
        pixels: uint8 (H, W, 3).
        top, left: of the part in the image; negative outside.
        size: height and width of the part.
        fill: colour of pixels outside the image; None mirrors the image at its edges.

    Returns:
        uint8 (*size, 3); a view if the part lies inside the image.
    """
    height, width = pixels.shape[:2]
    before = max(0, -top), max(0, -left)
    after = max(0, top + size[0] - height), max(0, left + size[1] - width)
    if any(before + after):
        mode = cv2.BORDER_REFLECT_101 if fill is None else cv2.BORDER_CONSTANT
        pixels = cv2.copyMakeBorder(pixels, before[0], after[0], before[1], after[1], mode, value=fill or ())
        top, left = top + before[0], left + before[1]
    return pixels[top : top + size[0], left : left + size[1]]


def central_offset(length: int, part: int) -> int:
    """Return the start of the central part of a length; negative if the part is longer.

    The rounding is that of the original's central crop, and of timm's padding.
    """
    return round((length - part) / 2) if part <= length else -((part - length) // 2)


def draw_position(length: int, part: int, rng: np.random.Generator) -> int:
    """Draw the start of a part of a length; if the part is longer, it contains the whole length, and the start is negative."""
    offset = int(rng.random() * (abs(length - part) + 1))
    return offset if part <= length else -offset


def fitted_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the largest image of this aspect ratio that fits into a rectangle, rounded as in timm."""
    reduction = max(height / size[0], width / size[1])
    return max(1, round(height / reduction)), max(1, round(width / reduction))


def draw_kept_ratio(
    height: int,
    width: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Draw height and width of a resized image as timm's ResizeKeepRatio does in training.

    The image covers a rectangle. With a probability of one half each, it is enlarged such that the rectangle has a fraction of
    the area, and its aspect ratio is changed.

    Args:
        height, width: of the image.
        size: height and width of the rectangle.
        scale: smallest and largest fraction, drawn uniformly.
        ratio: smallest and largest factor of the aspect ratio width / height, drawn log-uniformly.
    """
    reduction = min(height / size[0], width / size[1])
    zoom = stretch = 1.0
    if rng.random() < KEPT_RATIO_PROBABILITY:
        zoom = 1 / math.sqrt(rng.uniform(*scale))
    if rng.random() < KEPT_RATIO_PROBABILITY:
        stretch = math.sqrt(math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]))))
    return max(1, round(height * zoom / stretch / reduction)), max(1, round(width * zoom * stretch / reduction))

"""From a decoded image to the pixels the network sees.

`TrainTransform` and `EvaluationTransform` are what the loader runs: uint8 in, uint8 out, written
straight into the batch. `OpencvResize`, `CenterCrop` and `ToBGRTensor` are the original's
evaluation transforms under their own names; `EvaluationTransform` is made of the first two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import cv2
import numpy as np
import PIL.Image
import torch

from .images import Image

# ITU-R 601, the weights of Pillow's and torchvision's grey, in BGR order
GREY = (0.114, 0.587, 0.299)
CROP_ATTEMPTS = 10


def as_bgr(image: PIL.Image.Image | np.ndarray) -> np.ndarray:
    """A PIL image or a BGR uint8 array (H, W, 3), as the latter."""
    if isinstance(image, PIL.Image.Image):
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        raise TypeError("an image is a PIL image, or a uint8 array (H, W, 3) in BGR order")
    return image


@dataclass(frozen=True)
class OpencvResize:
    """Makes the short side `size` pixels, bilinearly, keeping the aspect ratio. PIL (RGB) or BGR array -> BGR array."""

    size: int = 256

    def __call__(self, image: PIL.Image.Image | np.ndarray) -> np.ndarray:
        image = as_bgr(image)
        resized: np.ndarray = cv2.resize(image, self.target(*image.shape[:2]), interpolation=cv2.INTER_LINEAR)
        return resized

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(width, height) of what becomes of an image."""
        if height < width:
            return int(self.size / height * width + 0.5), self.size
        return self.size, int(self.size / width * height + 0.5)


@dataclass(frozen=True)
class CenterCrop:
    """Cuts the central `size` x `size` pixels. PIL (RGB) or BGR array -> BGR array (a view).

    Raises:
        ValueError: for an image smaller than that.
    """

    size: int = 224

    def __call__(self, image: PIL.Image.Image | np.ndarray) -> np.ndarray:
        image = as_bgr(image)
        height, width = image.shape[:2]
        if min(height, width) < self.size:
            raise ValueError(f"a crop of {self.size} pixels does not fit into an image of {width} x {height}")
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return image[top : top + self.size, left : left + self.size]


class ToBGRTensor:
    """PIL (RGB) or BGR array (H, W, 3) -> float32 tensor (3, H, W), BGR, 0..255."""

    def __call__(self, image: PIL.Image.Image | np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(as_bgr(image).transpose(2, 0, 1))).float()


@dataclass(frozen=True)
class EvaluationTransform:
    """Short side to `resize_size`, then the central `size` x `size` pixels."""

    size: int = 224
    resize_size: int = 256

    def __call__(self, image: Image, out: np.ndarray) -> None:
        """The image into `out`, uint8 (size, size, 3), BGR."""
        out[...] = CenterCrop(self.size)(OpencvResize(self.resize_size)(image.crop(0, 0, image.height, image.width)))


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, colour jitter in random order, horizontal flip: the original's recipe.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the image's area that a crop covers.
        ratio: smallest and largest width / height of a crop, drawn log-uniformly.
        color_jitter: strengths of brightness, contrast and saturation; each factor is drawn from
            [max(0, 1 - strength), 1 + strength].
        hflip: probability of the flip.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    color_jitter: tuple[float, float, float] = (0.4, 0.4, 0.4)
    hflip: float = 0.5

    def __call__(self, image: Image, out: np.ndarray, rng: np.random.Generator) -> None:
        """The image into `out`, uint8 (size, size, 3), BGR, every draw from `rng`."""
        top, left, height, width = self.draw_crop(image.height, image.width, rng)
        jitters = any(self.color_jitter)
        flips = rng.random() < self.hflip
        crop = image.crop(top, left, height, width, at_least=self.size)
        # The last of the steps writes into the batch; the ones before it into memory of their own.
        pixels = cv2.resize(crop, (self.size, self.size), dst=None if flips or jitters else out, interpolation=cv2.INTER_LINEAR)
        if flips:
            pixels = cv2.flip(pixels, 1, dst=None if jitters else out)
        if jitters:
            cv2.transform(pixels, self.draw_jitter(cv2.mean(pixels), rng), dst=out)

    def draw_crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop, by torchvision's RandomResizedCrop: ten tries, then the centre."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(CROP_ATTEMPTS):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random())
            aspect = math.exp(low + (high - low) * rng.random())
            crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(rng.random() * (height - crop_height + 1))
                left = int(rng.random() * (width - crop_width + 1))
                return top, left, crop_height, crop_width
        crop_width, crop_height = width, height
        if width / height < self.ratio[0]:
            crop_height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            crop_width = max(1, round(height * self.ratio[1]))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width

    def draw_jitter(self, mean: Sequence[float], rng: np.random.Generator) -> np.ndarray:
        """The whole colour jitter as one affine map (3, 4) of BGR pixels.

        Each of the three steps is linear in the pixel, its own grey and the image's mean grey, so
        their composition is pixel * own + grey(pixel) * shared + offset, and the pixels are
        rounded once. (Pillow rounds and clips after every step.) `mean` is the image's mean
        colour, BGR.
        """
        factors = [max(0.0, 1 - strength) + (min(strength, 1.0) + strength) * rng.random() for strength in self.color_jitter]
        mean_grey = sum(weight * value for weight, value in zip(GREY, mean, strict=False))
        own, shared, offset = 1.0, 0.0, 0.0
        for step in _ORDERS[int(rng.random() * len(_ORDERS))]:
            factor = factors[step]
            if step == 0:  # brightness: towards black
                own, shared, offset = factor * own, factor * shared, factor * offset
            elif step == 1:  # contrast: towards the mean grey of the image as it is by now
                offset = factor * offset + (1 - factor) * ((own + shared) * mean_grey + offset)
                own, shared = factor * own, factor * shared
            else:  # saturation: towards each pixel's own grey
                own, shared = factor * own, shared + (1 - factor) * own
        blue, green, red = (shared * weight for weight in GREY)
        return np.array([[blue + own, green, red, offset], [blue, green + own, red, offset], [blue, green, red + own, offset]])


_ORDERS = tuple(permutations(range(3)))

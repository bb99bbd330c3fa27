"""From a decoded image to the pixels the network sees.

`TrainTransform` and `EvaluationTransform` are what the loader runs: uint8 in, uint8 out, written
straight into the batch. `OpencvResize`, `CenterCrop` and `ToBGRTensor` are the original's
evaluation transforms under their own names; `EvaluationTransform` is made of the first two.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import PIL.Image
import torch

from .erasing import RandomErasing
from .images import CropResize, Image
from .jitter import UNCHANGED, draw_jitter
from .operations import GREY
from .policies import Policy
from .resize import resize

CROP_ATTEMPTS = 10
BLUR_SIGMA = (0.1, 2.0)  # as torchvision's recipes and timm have it
BLUR_KERNEL = 23


class Transform(Protocol):
    """What becomes of an image.

    Attributes:
        size: side of the result, in pixels.
        views: how many results there are of each image.
    """

    @property
    def size(self) -> int: ...

    @property
    def views(self) -> int: ...

    def __call__(self, image: Image, out: np.ndarray, rng: np.random.Generator | None) -> None:
        """The image into `out`, uint8 (views, size, size, 3) or without the first, BGR, every draw from `rng`."""


def as_bgr(image: PIL.Image.Image | np.ndarray) -> np.ndarray:
    """A PIL image or a BGR uint8 array (H, W, 3), as the latter."""
    if isinstance(image, PIL.Image.Image):
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        raise TypeError("an image is a PIL image, or a uint8 array (H, W, 3) in BGR order")
    return image


@dataclass(frozen=True)
class OpencvResize:
    """Makes the short side `size` pixels, keeping the aspect ratio. PIL (RGB) or BGR array -> BGR array."""

    size: int = 256
    interpolation: str = "bilinear"

    def __call__(self, image: PIL.Image.Image | np.ndarray) -> np.ndarray:
        image = as_bgr(image)
        width, height = self.target(*image.shape[:2])
        return resize(image, height, width, self.interpolation)

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
    """Short side to `resize_size`, then the central `size` x `size` pixels.

    Args:
        views: 1; 2, with its mirror image; 5, the corners too; or 10, all these and their mirror images.
    """

    size: int = 224
    resize_size: int = 256
    interpolation: str = "bilinear"
    views: int = 1

    def __call__(self, image: Image, out: np.ndarray, rng: np.random.Generator | None = None) -> None:
        resized = OpencvResize(self.resize_size, self.interpolation)(image.crop(0, 0, image.height, image.width))
        views = [CenterCrop(self.size)(resized)]
        if self.views >= 5:
            views += [resized[rows, columns] for rows in self._edges() for columns in self._edges()]
        if self.views in (2, 10):
            views += [view[:, ::-1] for view in views]
        for slot, view in zip(_each(out), views, strict=True):
            slot[...] = view

    def _edges(self) -> tuple[slice, slice]:
        return slice(None, self.size), slice(-self.size, None)


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, colour jitter in random order, horizontal flip: the original's recipe. And what came later.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the image's area that a crop covers.
        ratio: smallest and largest width / height of a crop, drawn log-uniformly.
        color_jitter: strengths of brightness, contrast and saturation, as `draw_jitter` has them.
        hflip, vflip: probabilities of the flips.
        policy: applied after the flips, and before the jitter.
        grayscale, blur: probabilities, after the jitter.
        erasing: the last step.
        interpolation: one of resize.INTERPOLATIONS, or 'random', bilinear or bicubic.
        views: of 2 and more results of the same crop and flips the first skips everything from the policy to the blur.
        erases_first: whether that one may be erased.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    color_jitter: tuple[float, float, float] = (0.4, 0.4, 0.4)
    hflip: float = 0.5
    vflip: float = 0.0
    policy: Policy | None = None
    grayscale: float = 0.0
    blur: float = 0.0
    erasing: RandomErasing | None = None
    interpolation: str = "bilinear"
    views: int = 1
    erases_first: bool = True

    def __call__(self, image: Image, out: np.ndarray, rng: np.random.Generator | None) -> None:
        assert rng is not None
        slots = _each(out)
        # A policy comes between the crop and the jitter, and is for the later views alone.
        at_once = self.policy is None and self.views == 1
        crop = self._draw_crop_resize(image, rng, with_jitter=at_once)
        pixels = image.crop_resize(crop, slots[0] if at_once or self.views > 1 else None)
        for slot in slots[1:] if self.views > 1 else slots:
            result = pixels if at_once else self._recolour(pixels, slot, rng)
            result = self._grey_and_blur(result, rng)
            if result is not slot:
                slot[...] = result
        if self.erasing:
            for slot in slots if self.erases_first else slots[1:]:
                self.erasing(slot, rng)

    def _draw_crop_resize(self, image: Image, rng: np.random.Generator, with_jitter: bool) -> CropResize:
        part = self.draw_crop(image.height, image.width, rng)
        hflip = rng.random() < self.hflip
        vflip = self.vflip > 0 and rng.random() < self.vflip
        interpolation = self.interpolation
        if interpolation == "random":
            interpolation = "bilinear" if rng.random() < 0.5 else "bicubic"
        jitter = draw_jitter(self.color_jitter, rng) if with_jitter and any(self.color_jitter) else UNCHANGED
        return CropResize(*part, self.size, interpolation, hflip, vflip, jitter)

    def _recolour(self, pixels: np.ndarray, out: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Policy and jitter; the result may be `out`, `pixels` or neither."""
        if self.policy:
            pixels = self.policy(pixels, rng)
        return draw_jitter(self.color_jitter, rng)(pixels, out) if any(self.color_jitter) else pixels

    def _grey_and_blur(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Each with its probability; the result may be `pixels`."""
        if self.grayscale and rng.random() < self.grayscale:
            pixels = cv2.transform(pixels, np.array([GREY] * 3))
        if self.blur and rng.random() < self.blur:
            sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * rng.random()
            pixels = cv2.GaussianBlur(pixels, (BLUR_KERNEL, BLUR_KERNEL), sigma)
        return pixels

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


def _each(out: np.ndarray) -> list[np.ndarray]:
    return list(out) if out.ndim == 4 else [out]

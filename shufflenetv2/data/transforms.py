"""Transforms from an image to the pixels of a batch.

The loader calls `TrainTransform` and `EvaluationTransform`, which write uint8 pixels directly into a batch. `OpencvResize`,
`CenterCrop` and `ToBGRTensor` are the evaluation transforms of the original ShuffleNetV2 trainer, under their original names;
`EvaluationTransform` applies `OpencvResize` and `CenterCrop`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import PIL.Image
import torch

from ..config import AugmentationConfig, DataConfig, Size, describe_size, height_width
from ..weights import Preprocessing
from .crops import central_offset, crop_or_pad, draw_kept_ratio, draw_position, draw_resized_crop, fitted_size
from .erasing import RandomErasing
from .images import CropResize, DecodedImage, Image
from .jitter import UNCHANGED, draw_jitter
from .operations import GREY
from .policies import IMAGENET_MEAN, Policy, parse_policy
from .resize import Part, resize

CROP_NAMES = {"rrc": "RandomResizedCrop", "rkrc": "ResizeKeepRatioCenterCrop", "rkrr": "ResizeKeepRatioRandomCrop"}
BLUR_SIGMA = (0.1, 2.0)  # range of the standard deviation in pixels, as in torchvision's references and timm
BLUR_KERNEL = 23  # width and height in pixels


class Transform(Protocol):
    """A transform of images into one or several views of fixed size.

    Attributes:
        size: of a view in pixels: its side, or (height, width).
        views: number of views of each image.
        channels: 3 for BGR, 1 for grey.
    """

    @property
    def size(self) -> Size: ...

    @property
    def views(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def __call__(self, image: Image, out: np.ndarray, rng: np.random.Generator | None) -> None:
        """Write the views of an image into `out`.

        Args:
            out: uint8 (views, H, W, channels); or (H, W, channels) for a single view.
            rng: source of all random draws; None for a transform without random draws.
        """


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Convert a BGR image (H, W, 3) to grey (H, W, 1), with OpenCV's weights: 0.114 blue + 0.587 green + 0.299 red.

    The pixels of a grey image keep their values.
    """
    grey: np.ndarray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    return grey[:, :, None]


def as_bgr(image: PIL.Image.Image | np.ndarray) -> np.ndarray:
    """Convert a PIL image (RGB) to a BGR uint8 array (H, W, 3); return such an array unchanged."""
    if isinstance(image, PIL.Image.Image):
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        raise TypeError("an image must be a PIL image or a uint8 array (H, W, 3) in BGR order")
    return image


@dataclass(frozen=True)
class OpencvResize:
    """Resize an image so that its short side has `size` pixels. Takes a PIL image (RGB) or a BGR array, returns a BGR array.

    With a size (height, width) the result is the smallest image of the same aspect ratio that covers this rectangle.
    """

    size: Size = 256
    interpolation: str = "bilinear"

    def __call__(self, image: PIL.Image.Image | np.ndarray) -> np.ndarray:
        image = as_bgr(image)
        width, height = self.target(*image.shape[:2])
        return resize(image, height, width, self.interpolation)

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Return (width, height) of the resized image for an image of this height and width."""
        new_height, new_width = height_width(self.size)
        if height * new_width < width * new_height:
            return int(new_height / height * width + 0.5), new_height
        return new_width, int(new_width / width * height + 0.5)


@dataclass(frozen=True)
class CenterCrop:
    """Crop the centre of an image. Takes a PIL image (RGB) or a BGR array, returns a view of the BGR array.

    Args:
        size: side of the crop in pixels, or (height, width).

    Raises:
        ValueError: if the image is smaller than the crop.
    """

    size: Size = 224

    def __call__(self, image: PIL.Image.Image | np.ndarray) -> np.ndarray:
        image = as_bgr(image)
        top, left, height, width = self.box(*image.shape[:2])
        return image[top : top + height, left : left + width]

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of the crop in an image of this height and width."""
        crop_height, crop_width = height_width(self.size)
        if height < crop_height or width < crop_width:
            raise ValueError(f"a crop of {describe_size(self.size)} does not fit into an image of {height} x {width}")
        return round((height - crop_height) / 2), round((width - crop_width) / 2), crop_height, crop_width


class ToBGRTensor:
    """Convert a PIL image (RGB) or a BGR array (H, W, 3) to a float32 tensor (3, H, W), BGR, 0..255."""

    def __call__(self, image: PIL.Image.Image | np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(as_bgr(image).transpose(2, 0, 1))).float()


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize an image to `resize_size`, then crop the centre.

    Args:
        size: of the crop in pixels: its side, or (height, width).
        resize_size: a rectangle in pixels: (height, width), or the side of a square.
        interpolation: one of resize.INTERPOLATIONS.
        views: 1: the centre; 2: the centre and its mirror image; 5: the centre and the four corners; 10: these five and
            their mirror images.
        crop_mode: 'center' resizes to the smallest image of the same aspect ratio that covers `resize_size`: in a square, the
            short side has this length. 'squash' resizes to `resize_size` exactly and changes the aspect ratio. 'border'
            resizes to the largest image of the same aspect ratio that fits into `resize_size`, and pads it where it is smaller
            than the crop. The names are timm's.
        fill: colour of the padding, BGR, 0..255.
        channels: 3 for BGR; 1 for grey, to which the resized image is converted.
    """

    size: Size = 224
    resize_size: Size = 256
    interpolation: str = "bilinear"
    views: int = 1
    crop_mode: str = "center"
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)
    channels: int = 3

    def __call__(self, image: Image, out: np.ndarray, rng: np.random.Generator | None = None) -> None:
        crops = self._crops(image)
        if self.views in (2, 10):
            crops += [crop[:, ::-1] for crop in crops]
        for view, crop in zip(_list_of_views(out), crops, strict=True):
            view[...] = to_grey(crop) if self.channels == 1 else crop

    def _crops(self, image: Image) -> list[np.ndarray]:
        """Return the centre of the resized image, and its corners if they are views."""
        height, width = size = self._resized_size(image.height, image.width)
        if self.crop_mode == "border":
            whole = image.resize_part(Part(size, 0, 0, height, width), self.interpolation)
            crop_height, crop_width = height_width(self.size)
            padded = max(height, crop_height), max(width, crop_width)
            top, left = central_offset(height, padded[0]), central_offset(width, padded[1])
            whole = crop_or_pad(whole, top, left, padded, self.fill)
            return [whole[top : top + rows, left : left + columns] for top, left, rows, columns in self._boxes(*padded)]
        boxes = self._boxes(height, width)
        if len(boxes) > 1:
            image = DecodedImage(image.crop(0, 0, image.height, image.width), image.name)  # decode once
        return [image.resize_part(Part(size, *box), self.interpolation) for box in boxes]

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width to which an image of this height and width is resized."""
        if self.crop_mode == "center":
            new_width, new_height = OpencvResize(self.resize_size).target(height, width)
            return new_height, new_width
        size = height_width(self.resize_size)
        return size if self.crop_mode == "squash" else fitted_size(height, width, size)

    def _boxes(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Return (top, left, height, width) of each crop in a resized image of this height and width."""
        crop_height, crop_width = height_width(self.size)
        boxes = [CenterCrop(self.size).box(height, width)]
        if self.views >= 5:
            tops, lefts = (0, height - crop_height), (0, width - crop_width)
            boxes += [(top, left, crop_height, crop_width) for top in tops for left in lefts]
        return boxes


@dataclass(frozen=True, repr=False)
class TrainTransform:
    """Augment a training image; the defaults are those of the original trainer. `print(transform)` lists the steps.

    Args:
        size: of the result in pixels: its side, or (height, width).
        scale: smallest and largest fraction of the image area that a random crop covers.
        ratio: smallest and largest width / height of a random crop, drawn log-uniformly; with another `crop_mode` than 'rrc',
            factor by which the aspect ratio changes.
        color_jitter: strengths of brightness, contrast and saturation, see `draw_jitter`.
        hflip, vflip: probabilities of a horizontal and a vertical flip.
        policy: augmentation policy, applied after the flips and before the jitter.
        grayscale, blur: probabilities of conversion to grey and of blurring, after the jitter.
        erasing: random erasing, the last step.
        interpolation: one of resize.INTERPOLATIONS; or 'random' to draw bilinear or bicubic.
        views: number of results, all made from one crop. With several views, the first is only cropped, flipped and (see
            `erases_first`) erased; for each other view the steps from the policy on are drawn separately.
        erases_first: with several views, apply random erasing to the first view, too.
        crop_mode: 'rrc' resizes a random crop; 'rkrc' resizes the image such that it covers the result, with small random
            changes (see `draw_kept_ratio`), and takes the central part; 'rkrr' takes a part at a random position. The names are
            timm's.
        channels: 3 for BGR; 1 for grey, to which an image is converted after crop and resizing, before the policy and the
            jitter: the jitter then changes brightness and contrast, and the saturation of a grey image does not change.
    """

    size: Size = 224
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
    crop_mode: str = "rrc"
    channels: int = 3

    def __repr__(self) -> str:
        scale, ratio = (f"({low:.3g}, {high:.3g})" for low, high in (self.scale, self.ratio))
        brightness, contrast, saturation = self.color_jitter
        blur = f"GaussianBlur(p={self.blur}, kernel_size={BLUR_KERNEL}, sigma={BLUR_SIGMA})"
        crop = f"{CROP_NAMES[self.crop_mode]}({self.size}, scale={scale}, ratio={ratio}, interpolation={self.interpolation})"
        steps = [
            crop,
            self.channels == 1 and "Grayscale()",
            self.hflip and f"RandomHorizontalFlip(p={self.hflip})",
            self.vflip and f"RandomVerticalFlip(p={self.vflip})",
            self.views > 1 and f"Views({self.views}), of which the first skips the steps up to erasing",
            self.policy and repr(self.policy),
            any(self.color_jitter) and f"ColorJitter({brightness=}, {contrast=}, {saturation=}) in random order",
            self.grayscale and f"RandomGrayscale(p={self.grayscale})",
            self.blur and blur,
            self.erasing and repr(self.erasing) + (", not in the first view" if not self.erases_first else ""),
        ]
        return "\n    ".join(["TrainTransform(", *(str(step) for step in steps if step)]) + "\n)"

    def __call__(self, image: Image, out: np.ndarray, rng: np.random.Generator | None) -> None:
        assert rng is not None
        views = _list_of_views(out)
        # Without a policy between the flips and the jitter, `crop_resize` does all steps from the crop to the jitter.
        is_grey = self.channels == 1
        crop_includes_jitter = self.policy is None and self.views == 1 and self.crop_mode == "rrc" and not is_grey
        first = views[0] if crop_includes_jitter or (self.views > 1 and not is_grey) else None
        if self.crop_mode == "rrc":
            pixels = image.crop_resize(self._draw_crop_resize(image, rng, with_jitter=crop_includes_jitter), first)
        else:
            pixels = self._resize_and_crop(image, rng, first)
        if is_grey:
            pixels = cv2.cvtColor(to_grey(pixels), cv2.COLOR_GRAY2BGR)  # policies and jitter take three channels
            if self.views > 1:
                views[0][...] = pixels[:, :, :1]
        for view in views[1:] if self.views > 1 else views:
            target = None if is_grey else view
            result = pixels if crop_includes_jitter else self._apply_policy_and_jitter(pixels, target, rng)
            result = self._apply_grayscale_and_blur(result, rng)
            if result is not view:
                view[...] = to_grey(result) if is_grey else result
        if self.erasing:
            for view in views if self.erases_first else views[1:]:
                self.erasing(view, rng)

    def _draw_crop_resize(self, image: Image, rng: np.random.Generator, with_jitter: bool) -> CropResize:
        box = self.draw_crop(image.height, image.width, rng)
        hflip, vflip, interpolation = self._draw_flips_and_interpolation(rng)
        jitter = draw_jitter(self.color_jitter, rng) if with_jitter and any(self.color_jitter) else UNCHANGED
        return CropResize(*box, height_width(self.size), interpolation, hflip, vflip, jitter)

    def _draw_flips_and_interpolation(self, rng: np.random.Generator) -> tuple[bool, bool, str]:
        hflip = rng.random() < self.hflip
        vflip = self.vflip > 0 and rng.random() < self.vflip
        interpolation = self.interpolation
        if interpolation == "random":
            interpolation = "bilinear" if rng.random() < 0.5 else "bicubic"
        return hflip, vflip, interpolation

    def _resize_and_crop(self, image: Image, rng: np.random.Generator, out: np.ndarray | None) -> np.ndarray:
        """Return the part of the resized image that `rkrc` or `rkrr` takes, mirrored at the edges of the image, and flipped.

        Args:
            out: uint8 (H, W, 3), receives the result; allocated by default.
        """
        size = height_width(self.size)
        height, width = draw_kept_ratio(image.height, image.width, size, self.scale, self.ratio, rng)
        if self.crop_mode == "rkrc":
            top, left = central_offset(height, size[0]), central_offset(width, size[1])
        else:
            top, left = draw_position(height, size[0], rng), draw_position(width, size[1], rng)
        hflip, vflip, interpolation = self._draw_flips_and_interpolation(rng)
        # The rows and columns that the part has in common with the resized image; all of them where pixels have to be mirrored.
        first_row, rows = (top, size[0]) if 0 <= top <= height - size[0] else (0, height)
        first_column, columns = (left, size[1]) if 0 <= left <= width - size[1] else (0, width)
        common = Part((height, width), first_row, first_column, rows, columns)
        resized = image.resize_part(common, interpolation, min_size=(height, width))
        part = crop_or_pad(resized, top - first_row, left - first_column, size)
        part = part[:: -1 if vflip else 1, :: -1 if hflip else 1]
        if out is None:
            return np.ascontiguousarray(part)
        out[...] = part
        return out

    def _apply_policy_and_jitter(self, pixels: np.ndarray, out: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
        """Return the augmented pixels: `out`, a new array, or `pixels` itself if nothing is applied."""
        if self.policy:
            pixels = self.policy(pixels, rng)
        return draw_jitter(self.color_jitter, rng)(pixels, out) if any(self.color_jitter) else pixels

    def _apply_grayscale_and_blur(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.grayscale and rng.random() < self.grayscale:
            pixels = cv2.transform(pixels, np.array([GREY] * 3))
        if self.blur and rng.random() < self.blur:
            sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * rng.random()
            pixels = cv2.GaussianBlur(pixels, (BLUR_KERNEL, BLUR_KERNEL), sigma)
        return pixels

    def draw_crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width) of a crop; see `draw_resized_crop`."""
        return draw_resized_crop(height, width, self.scale, self.ratio, rng)


def _list_of_views(out: np.ndarray) -> list[np.ndarray]:
    return list(out) if out.ndim == 4 else [out]


def build_preprocessing(config: DataConfig) -> Preprocessing:
    """Return the preprocessing of validation images that the options describe."""
    return Preprocessing(config.input_size, config.resize_size, config.mean, config.std, config.interpolation, config.crop_mode)


def build_evaluation_transform(preprocessing: Preprocessing, views: int = 1) -> EvaluationTransform:
    """Return the transform of validation images."""
    return EvaluationTransform(
        preprocessing.input_size,
        preprocessing.resize_size,
        preprocessing.interpolation,
        views,
        preprocessing.crop_mode,
        preprocessing.border_color * (3 // preprocessing.channels),
        preprocessing.channels,
    )


def build_train_transform(data: DataConfig, augmentation: AugmentationConfig) -> Transform:
    """Return the transform of training images.

    Raises:
        UserError: if the augmentation policy is not valid.
    """
    if augmentation.no_aug:
        return build_evaluation_transform(build_preprocessing(data))
    policy, erasing = None, None
    # Policies and erasing fill pixels with the mean by which the network normalizes; without normalization, with ImageNet's.
    is_normalized = any(value != 1 for value in data.std)
    channels = len(data.mean)
    if augmentation.aa:
        fill = data.mean if is_normalized else IMAGENET_MEAN
        blue, green, red = [_grey_value(fill)] * 3 if channels == 1 else [*fill]
        policy = parse_policy(augmentation.aa, fill=(blue, green, red))
    if augmentation.reprob:
        mean, std = (data.mean, data.std) if is_normalized else (RandomErasing.mean, RandomErasing.std)
        if channels == 1:
            mean, std = (_grey_value(mean),), (_grey_value(std),)
        erasing = RandomErasing(augmentation.reprob, augmentation.remode, augmentation.recount, mean, std)
    return TrainTransform(
        size=data.train_crop_size or data.input_size,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        color_jitter=augmentation.color_jitter,
        hflip=augmentation.hflip,
        vflip=augmentation.vflip,
        policy=policy,
        grayscale=augmentation.grayscale_prob,
        blur=augmentation.gaussian_blur_prob,
        erasing=erasing,
        interpolation=data.train_interpolation,
        views=augmentation.aug_splits or 1,
        erases_first=not augmentation.resplit,
        crop_mode=augmentation.train_crop_mode,
        channels=channels,
    )


def _grey_value(colour: Sequence[float]) -> float:
    """Return the grey value of a BGR colour, or of a colour that is grey already."""
    return colour[0] if len(colour) == 1 else sum(weight * value for weight, value in zip(GREY, colour, strict=True))

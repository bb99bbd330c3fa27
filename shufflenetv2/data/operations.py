"""What augmentation policies do to pixels, and how strongly: OpenCV's versions of Pillow's operations.

All have the form (pixels, argument, fill colour), with Pillow's argument: uint8 (H, W, 3), BGR, to the same shape,
leaving what they are given as it was. The tables at the end say what timm and torchvision mean by a magnitude.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

Color = tuple[float, float, float]  # BGR, 0..255
Transform = Callable[[np.ndarray, float, Color], np.ndarray]
Argument = Callable[[float, np.random.Generator], float]

GREY = (0.114, 0.587, 0.299)  # ITU-R 601, the weights of Pillow's and torchvision's grey, in BGR order
_VALUES = np.arange(256)


def identity(pixels: np.ndarray, _argument: float, _fill: Color) -> np.ndarray:
    return pixels


def auto_contrast(pixels: np.ndarray, _argument: float, _fill: Color) -> np.ndarray:
    """Stretches each channel to 0..255."""
    tables = np.empty((256, 1, 3), np.uint8)
    for channel in range(3):
        low, high, _, _ = cv2.minMaxLoc(cv2.extractChannel(pixels, channel))
        scale = 255 / (high - low) if high > low else 1.0
        offset = -low * scale if high > low else 0.0
        tables[:, 0, channel] = np.clip(np.arange(256) * scale + offset, 0, 255)
    return cv2.LUT(pixels, tables)


def equalize(pixels: np.ndarray, _argument: float, _fill: Color) -> np.ndarray:
    """Makes the histogram of each channel flat, by Pillow's rule and not OpenCV's."""
    tables = np.empty((256, 1, 3), np.uint8)
    for channel in range(3):
        histogram = cv2.calcHist([pixels], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        below = np.cumsum(histogram) - histogram
        step = int(below[np.flatnonzero(histogram)[-1]]) // 255
        tables[:, 0, channel] = np.minimum((step // 2 + below) // step, 255) if step else np.arange(256)
    return cv2.LUT(pixels, tables)


def invert(pixels: np.ndarray, _argument: float, _fill: Color) -> np.ndarray:
    return cv2.bitwise_not(pixels)


def posterize(pixels: np.ndarray, bits: float, _fill: Color) -> np.ndarray:
    """Keeps the upper bits: all from 8, none from 0."""
    return cv2.LUT(pixels, (_VALUES & -(1 << max(0, 8 - int(bits)))).astype(np.uint8))


def solarize(pixels: np.ndarray, threshold: float, _fill: Color) -> np.ndarray:
    """Inverts the values from the threshold up."""
    return cv2.LUT(pixels, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES).astype(np.uint8))


def solarize_add(pixels: np.ndarray, amount: float, _fill: Color) -> np.ndarray:
    """Makes the darker half of the values brighter."""
    return cv2.LUT(pixels, np.where(_VALUES < 128, np.minimum(_VALUES + int(amount), 255), _VALUES).astype(np.uint8))


def color(pixels: np.ndarray, factor: float, _fill: Color) -> np.ndarray:
    """0 is grey, 1 the image, above is more colourful."""
    return cv2.transform(pixels, factor * np.eye(3) + (1 - factor) * np.array([GREY] * 3))


def contrast(pixels: np.ndarray, factor: float, _fill: Color) -> np.ndarray:
    """0 is the image's mean grey, 1 the image."""
    return _blend(pixels, int(cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))[0] + 0.5), factor)


def brightness(pixels: np.ndarray, factor: float, _fill: Color) -> np.ndarray:
    """0 is black, 1 the image."""
    return _blend(pixels, 0, factor)


def _blend(pixels: np.ndarray, base: int, factor: float) -> np.ndarray:
    """base + factor * (value - base), truncated as Pillow does."""
    table = np.float32(base) + np.float32(factor) * (_VALUES - base).astype(np.float32)
    return cv2.LUT(pixels, np.clip(table, 0, 255).astype(np.uint8))


def sharpness(pixels: np.ndarray, factor: float, _fill: Color) -> np.ndarray:
    """0 is smooth, 1 the image, above is sharper. The outermost pixels stay, as in Pillow."""
    kernel = np.full((3, 3), (1 - factor) / 13)
    kernel[1, 1] = factor + (1 - factor) * 5 / 13
    sharpened = cv2.filter2D(pixels, -1, kernel)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        sharpened[edge] = pixels[edge]
    return sharpened


def desaturate(pixels: np.ndarray, share: float, fill: Color) -> np.ndarray:
    return color(pixels, min(1.0, max(0.0, 1 - share)), fill)


def gaussian_blur(pixels: np.ndarray, radius: float, _fill: Color) -> np.ndarray:
    """The radius is the standard deviation, in pixels."""
    return cv2.GaussianBlur(pixels, (0, 0), radius, borderType=cv2.BORDER_REPLICATE)


def rotate(pixels: np.ndarray, degrees: float, fill: Color) -> np.ndarray:
    """About the centre, anticlockwise."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (pixels.shape[1] - 1) / 2, (pixels.shape[0] - 1) / 2
    return _warp(pixels, (cosine, -sine, x - cosine * x + sine * y), (sine, cosine, y - sine * x - cosine * y), fill)


# Pillow's coordinates have their origin at the corner of the first pixel, OpenCV's at its centre: hence factor / 2.
def shear_x(pixels: np.ndarray, factor: float, fill: Color) -> np.ndarray:
    return _warp(pixels, (1, factor, factor / 2), (0, 1, 0), fill)


def shear_y(pixels: np.ndarray, factor: float, fill: Color) -> np.ndarray:
    return _warp(pixels, (1, 0, 0), (factor, 1, factor / 2), fill)


def translate_x(pixels: np.ndarray, distance: float, fill: Color) -> np.ndarray:
    """To the left, in pixels."""
    return _warp(pixels, (1, 0, distance), (0, 1, 0), fill)


def translate_y(pixels: np.ndarray, distance: float, fill: Color) -> np.ndarray:
    """Upwards, in pixels."""
    return _warp(pixels, (1, 0, 0), (0, 1, distance), fill)


def translate_x_rel(pixels: np.ndarray, share: float, fill: Color) -> np.ndarray:
    """To the left, as a share of the width."""
    return translate_x(pixels, share * pixels.shape[1], fill)


def translate_y_rel(pixels: np.ndarray, share: float, fill: Color) -> np.ndarray:
    """Upwards, as a share of the height."""
    return translate_y(pixels, share * pixels.shape[0], fill)


def _warp(pixels: np.ndarray, x: tuple[float, float, float], y: tuple[float, float, float], fill: Color) -> np.ndarray:
    """Bilinear; x and y are the rows of the matrix that says where in the image a pixel of the result comes from."""
    size, flags = (pixels.shape[1], pixels.shape[0]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        pixels, np.array([x, y], np.float64), size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )


# From a level to the argument of an operation. Levels go from 0 to 1, which timm calls 0 to 10 and torchvision 0 to 30,
# and above 1 where a policy allows it. A higher level is not always a stronger effect.


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() > 0.5 else value


def _none(_level: float, _rng: np.random.Generator) -> float:
    return 0.0


def _enhance(level: float, _rng: np.random.Generator) -> float:
    return 1.8 * level + 0.1


def _enhance_increasing(level: float, rng: np.random.Generator) -> float:
    return max(0.1, 1 + _signed(0.9 * level, rng))


def _enhance_wide(level: float, rng: np.random.Generator) -> float:
    return 1 + _signed(0.99 * level, rng)


# timm's LEVEL_TO_ARG and NAME_TO_OP
OPERATIONS: dict[str, tuple[Transform, Argument]] = {
    "AutoContrast": (auto_contrast, _none),
    "Equalize": (equalize, _none),
    "Invert": (invert, _none),
    "Rotate": (rotate, lambda level, rng: _signed(30 * level, rng)),
    "Posterize": (posterize, lambda level, rng: int(4 * level)),
    "PosterizeIncreasing": (posterize, lambda level, rng: 4 - int(4 * level)),
    "PosterizeOriginal": (posterize, lambda level, rng: 4 + int(4 * level)),
    "Solarize": (solarize, lambda level, rng: min(256, int(256 * level))),
    "SolarizeIncreasing": (solarize, lambda level, rng: 256 - min(256, int(256 * level))),
    "SolarizeAdd": (solarize_add, lambda level, rng: min(128, int(110 * level))),
    "Color": (color, _enhance),
    "ColorIncreasing": (color, _enhance_increasing),
    "Contrast": (contrast, _enhance),
    "ContrastIncreasing": (contrast, _enhance_increasing),
    "Brightness": (brightness, _enhance),
    "BrightnessIncreasing": (brightness, _enhance_increasing),
    "Sharpness": (sharpness, _enhance),
    "SharpnessIncreasing": (sharpness, _enhance_increasing),
    "ShearX": (shear_x, lambda level, rng: _signed(0.3 * level, rng)),
    "ShearY": (shear_y, lambda level, rng: _signed(0.3 * level, rng)),
    "TranslateXRel": (translate_x_rel, lambda level, rng: _signed(0.45 * level, rng)),
    "TranslateYRel": (translate_y_rel, lambda level, rng: _signed(0.45 * level, rng)),
    # The same with translate_pct=0.3, which timm's training gives to AugMix
    "TranslateXRel0.3": (translate_x_rel, lambda level, rng: _signed(0.3 * level, rng)),
    "TranslateYRel0.3": (translate_y_rel, lambda level, rng: _signed(0.3 * level, rng)),
    "Desaturate": (desaturate, lambda level, rng: min(1.0, 0.5 + 0.5 * level)),
    "GaussianBlur": (gaussian_blur, lambda level, rng: min(2.0, 0.1 + 1.9 * level)),
    "GaussianBlurRand": (gaussian_blur, lambda level, rng: rng.uniform(0.1, max(0.1, 2 * min(1.0, level)))),
}

# torchvision's TrivialAugmentWide
WIDE_OPERATIONS: dict[str, tuple[Transform, Argument]] = {
    "Identity": (identity, _none),
    "ShearX": (shear_x, lambda level, rng: _signed(0.99 * level, rng)),
    "ShearY": (shear_y, lambda level, rng: _signed(0.99 * level, rng)),
    "TranslateX": (translate_x, lambda level, rng: _signed(int(32 * level), rng)),
    "TranslateY": (translate_y, lambda level, rng: _signed(int(32 * level), rng)),
    "Rotate": (rotate, lambda level, rng: _signed(135 * level, rng)),
    "Brightness": (brightness, _enhance_wide),
    "Color": (color, _enhance_wide),
    "Contrast": (contrast, _enhance_wide),
    "Sharpness": (sharpness, _enhance_wide),
    "Posterize": (posterize, lambda level, rng: 8 - round(6 * level)),
    "Solarize": (solarize, lambda level, rng: round(255 * (1 - level), 1)),  # exact multiples of 8.5
    "AutoContrast": (auto_contrast, _none),
    "Equalize": (equalize, _none),
}
WIDE_BINS = 31

"""Image operations of the augmentation policies, implemented with OpenCV to match Pillow's.

Every operation has the signature (pixels, argument, fill) -> pixels. `pixels` is uint8 (H, W, 3) in BGR order and is not
modified; the result has the same shape. `argument` is what the corresponding operation of Pillow takes, for example an angle in
degrees. `fill` is the colour given to pixels that come from outside the image. The tables at the end give each operation the
name that timm or torchvision uses, and a function from the level (strength) to the argument.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

Color = tuple[float, float, float]  # BGR, 0..255
Operation = Callable[[np.ndarray, float, Color], np.ndarray]  # (pixels, argument, fill) -> pixels
LevelToArgument = Callable[[float, np.random.Generator], float]  # (level, random stream) -> argument

GREY = (0.114, 0.587, 0.299)  # weights of B, G and R in the luma of ITU-R BT.601, which Pillow and torchvision use
_VALUES = np.arange(256)


def identity(pixels: np.ndarray, _argument: float, _fill: Color) -> np.ndarray:
    return pixels


def auto_contrast(pixels: np.ndarray, _argument: float, _fill: Color) -> np.ndarray:
    """Stretch each channel linearly to 0..255."""
    tables = np.empty((256, 1, 3), np.uint8)
    for channel in range(3):
        low, high, _, _ = cv2.minMaxLoc(cv2.extractChannel(pixels, channel))
        scale = 255 / (high - low) if high > low else 1.0
        offset = -low * scale if high > low else 0.0
        tables[:, 0, channel] = np.clip(np.arange(256) * scale + offset, 0, 255)
    return cv2.LUT(pixels, tables)


def equalize(pixels: np.ndarray, _argument: float, _fill: Color) -> np.ndarray:
    """Equalize the histogram of each channel by the rule of Pillow, which differs from that of OpenCV."""
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
    """Keep the upper `bits` bits of each value (0 to 8)."""
    return cv2.LUT(pixels, (_VALUES & -(1 << max(0, 8 - int(bits)))).astype(np.uint8))


def solarize(pixels: np.ndarray, threshold: float, _fill: Color) -> np.ndarray:
    """Invert the values at or above the threshold."""
    return cv2.LUT(pixels, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES).astype(np.uint8))


def solarize_add(pixels: np.ndarray, amount: float, _fill: Color) -> np.ndarray:
    """Add an amount to the values below 128."""
    return cv2.LUT(pixels, np.where(_VALUES < 128, np.minimum(_VALUES + int(amount), 255), _VALUES).astype(np.uint8))


def color(pixels: np.ndarray, factor: float, _fill: Color) -> np.ndarray:
    """Change the saturation: factor 0 gives a grey image, 1 the original image."""
    return cv2.transform(pixels, factor * np.eye(3) + (1 - factor) * np.array([GREY] * 3))


def contrast(pixels: np.ndarray, factor: float, _fill: Color) -> np.ndarray:
    """Change the contrast: factor 0 gives the mean luma of the image everywhere, 1 the original image."""
    return _blend(pixels, int(cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))[0] + 0.5), factor)


def brightness(pixels: np.ndarray, factor: float, _fill: Color) -> np.ndarray:
    """Change the brightness: factor 0 gives a black image, 1 the original image."""
    return _blend(pixels, 0, factor)


def _blend(pixels: np.ndarray, base: int, factor: float) -> np.ndarray:
    """Return base + factor * (value - base), truncated as in Pillow."""
    table = np.float32(base) + np.float32(factor) * (_VALUES - base).astype(np.float32)
    return cv2.LUT(pixels, np.clip(table, 0, 255).astype(np.uint8))


def sharpness(pixels: np.ndarray, factor: float, _fill: Color) -> np.ndarray:
    """Change the sharpness: factor 0 gives a smoothed image, 1 the original. Border pixels do not change, as in Pillow."""
    kernel = np.full((3, 3), (1 - factor) / 13)
    kernel[1, 1] = factor + (1 - factor) * 5 / 13
    sharpened = cv2.filter2D(pixels, -1, kernel)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        sharpened[edge] = pixels[edge]
    return sharpened


def desaturate(pixels: np.ndarray, strength: float, fill: Color) -> np.ndarray:
    """Reduce the saturation: strength 0 gives the original image, 1 a grey image."""
    return color(pixels, min(1.0, max(0.0, 1 - strength)), fill)


def gaussian_blur(pixels: np.ndarray, radius: float, _fill: Color) -> np.ndarray:
    """Blur with a Gaussian whose standard deviation is `radius` pixels (Pillow's name)."""
    return cv2.GaussianBlur(pixels, (0, 0), radius, borderType=cv2.BORDER_REPLICATE)


def rotate(pixels: np.ndarray, degrees: float, fill: Color) -> np.ndarray:
    """Rotate anticlockwise about the centre."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (pixels.shape[1] - 1) / 2, (pixels.shape[0] - 1) / 2
    return _warp(pixels, (cosine, -sine, x - cosine * x + sine * y), (sine, cosine, y - sine * x - cosine * y), fill)


# Pillow's coordinates start at the corner of the first pixel, OpenCV's at the centre of that pixel: hence factor / 2.
def shear_x(pixels: np.ndarray, factor: float, fill: Color) -> np.ndarray:
    return _warp(pixels, (1, factor, factor / 2), (0, 1, 0), fill)


def shear_y(pixels: np.ndarray, factor: float, fill: Color) -> np.ndarray:
    return _warp(pixels, (1, 0, 0), (factor, 1, factor / 2), fill)


def translate_x(pixels: np.ndarray, distance: float, fill: Color) -> np.ndarray:
    """Move the image to the left by a distance in pixels."""
    return _warp(pixels, (1, 0, distance), (0, 1, 0), fill)


def translate_y(pixels: np.ndarray, distance: float, fill: Color) -> np.ndarray:
    """Move the image up by a distance in pixels."""
    return _warp(pixels, (1, 0, 0), (0, 1, distance), fill)


def translate_x_rel(pixels: np.ndarray, fraction: float, fill: Color) -> np.ndarray:
    """Move the image to the left by a fraction of its width."""
    return translate_x(pixels, fraction * pixels.shape[1], fill)


def translate_y_rel(pixels: np.ndarray, fraction: float, fill: Color) -> np.ndarray:
    """Move the image up by a fraction of its height."""
    return translate_y(pixels, fraction * pixels.shape[0], fill)


def _warp(pixels: np.ndarray, x: tuple[float, float, float], y: tuple[float, float, float], fill: Color) -> np.ndarray:
    """Warp with bilinear interpolation; `x` and `y` are the rows of the matrix that maps output to input coordinates."""
    size, flags = (pixels.shape[1], pixels.shape[0]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        pixels, np.array([x, y], np.float64), size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )


# Conversion of levels to arguments. A level is the policy's magnitude divided by the largest usual magnitude: 10 in timm, 30 in
# torchvision. Levels above 1 are possible where a policy allows them. A higher level does not always have a stronger effect.


def _random_sign(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() > 0.5 else value


def _no_argument(_level: float, _rng: np.random.Generator) -> float:
    return 0.0


def _enhance(level: float, _rng: np.random.Generator) -> float:
    return 1.8 * level + 0.1


def _enhance_increasing(level: float, rng: np.random.Generator) -> float:
    return max(0.1, 1 + _random_sign(0.9 * level, rng))


def _enhance_wide(level: float, rng: np.random.Generator) -> float:
    return 1 + _random_sign(0.99 * level, rng)


# timm's names and levels: NAME_TO_OP and LEVEL_TO_ARG in timm.data.auto_augment
OPERATIONS: dict[str, tuple[Operation, LevelToArgument]] = {
    "AutoContrast": (auto_contrast, _no_argument),
    "Equalize": (equalize, _no_argument),
    "Invert": (invert, _no_argument),
    "Rotate": (rotate, lambda level, rng: _random_sign(30 * level, rng)),
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
    "ShearX": (shear_x, lambda level, rng: _random_sign(0.3 * level, rng)),
    "ShearY": (shear_y, lambda level, rng: _random_sign(0.3 * level, rng)),
    "TranslateXRel": (translate_x_rel, lambda level, rng: _random_sign(0.45 * level, rng)),
    "TranslateYRel": (translate_y_rel, lambda level, rng: _random_sign(0.45 * level, rng)),
    # With translate_pct=0.3, the value that timm's training script uses for AugMix
    "TranslateXRel0.3": (translate_x_rel, lambda level, rng: _random_sign(0.3 * level, rng)),
    "TranslateYRel0.3": (translate_y_rel, lambda level, rng: _random_sign(0.3 * level, rng)),
    "Desaturate": (desaturate, lambda level, rng: min(1.0, 0.5 + 0.5 * level)),
    "GaussianBlur": (gaussian_blur, lambda level, rng: min(2.0, 0.1 + 1.9 * level)),
    "GaussianBlurRand": (gaussian_blur, lambda level, rng: rng.uniform(0.1, max(0.1, 2 * min(1.0, level)))),
}

# Operations of torchvision's TrivialAugmentWide
WIDE_OPERATIONS: dict[str, tuple[Operation, LevelToArgument]] = {
    "Identity": (identity, _no_argument),
    "ShearX": (shear_x, lambda level, rng: _random_sign(0.99 * level, rng)),
    "ShearY": (shear_y, lambda level, rng: _random_sign(0.99 * level, rng)),
    "TranslateX": (translate_x, lambda level, rng: _random_sign(int(32 * level), rng)),
    "TranslateY": (translate_y, lambda level, rng: _random_sign(int(32 * level), rng)),
    "Rotate": (rotate, lambda level, rng: _random_sign(135 * level, rng)),
    "Brightness": (brightness, _enhance_wide),
    "Color": (color, _enhance_wide),
    "Contrast": (contrast, _enhance_wide),
    "Sharpness": (sharpness, _enhance_wide),
    "Posterize": (posterize, lambda level, rng: 8 - round(6 * level)),
    "Solarize": (solarize, lambda level, rng: round(255 * (1 - level), 1)),  # rounded, since thresholds are multiples of 8.5
    "AutoContrast": (auto_contrast, _no_argument),
    "Equalize": (equalize, _no_argument),
}
WIDE_BINS = 31  # number of equally spaced levels from 0 to 1 in TrivialAugmentWide

"""Learned and random augmentation policies: AutoAugment, RandAugment, AugMix, TrivialAugment.

The tables and the meaning of every setting are timm's (`timm.data.auto_augment`), and torchvision's for
TrivialAugment. The operations (operations.py) are OpenCV's: theirs go through Pillow and draw from a global random
state, these take BGR arrays as they are and draw from the sample's own generator. The tables are literals, since
importing timm for them takes about two seconds; a test compares them with timm's.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from ..errors import UserError
from .operations import OPERATIONS, WIDE_BINS, WIDE_OPERATIONS, Color

IMAGENET_MEAN: Color = (104.0, 116.0, 124.0)
KNOWN = "original, originalr, v0, v0r, 3a, rand-m9-mstd0.5, augmix-m3, ta_wide"


class PolicyError(UserError):
    """A policy that cannot be understood; the text names it, the part that is wrong and the remedy."""


class Policy(Protocol):
    """What becomes of an image, by chance. Has no state, so that threads can share it."""

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 (H, W, 3), BGR, to the same shape, every draw from `rng`; the argument itself where nothing is to be done."""


# AutoAugment: sub-policies of (operation, probability, magnitude)
SubPolicy = tuple[tuple[str, float, int], ...]

# fmt: off
_ORIGINAL: tuple[SubPolicy, ...] = (
    (("PosterizeOriginal", 0.4, 8), ("Rotate", 0.6, 9)), (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)), (("PosterizeOriginal", 0.6, 7), ("PosterizeOriginal", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)), (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)), (("PosterizeOriginal", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)), (("Equalize", 0.6, 8), ("PosterizeOriginal", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)), (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)), (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)), (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)), (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)), (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)), (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)), (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)
_V0: tuple[SubPolicy, ...] = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)), (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)), (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)), (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)), (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)), (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)), (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)), (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)), (("Rotate", 1.0, 7), ("TranslateYRel", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)), (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)), (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)), (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)), (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)
_3A: tuple[SubPolicy, ...] = ((("Solarize", 1.0, 5),), (("Desaturate", 1.0, 10),), (("GaussianBlurRand", 1.0, 10),))


def _research(policies: tuple[SubPolicy, ...]) -> tuple[SubPolicy, ...]:
    """With the posterizing of Google's research code, which drops more bits at higher magnitudes."""
    def renamed(name: str) -> str:
        return "PosterizeIncreasing" if name.startswith("Posterize") else name

    return tuple(tuple((renamed(name), share, magnitude) for name, share, magnitude in policy) for policy in policies)


AUTO_POLICIES = {
    "original": _ORIGINAL, "originalr": _research(_ORIGINAL), "v0": _V0, "v0r": _research(_V0), "3a": _3A,
}

RAND_OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)
RAND_INCREASING_OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
    "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
    "TranslateXRel", "TranslateYRel",
)
# The sets of operations that rand-t names, with their weights where they are not equal
RAND_SETS: dict[str, dict[str, float] | tuple[str, ...]] = {
    "3a": ("SolarizeIncreasing", "Desaturate", "GaussianBlur"),
    "3aw": {
        "SolarizeIncreasing": 6, "Desaturate": 6, "GaussianBlur": 6, "Rotate": 3, "ShearX": 2, "ShearY": 2,
        "PosterizeIncreasing": 1, "AutoContrast": 1, "ColorIncreasing": 1, "SharpnessIncreasing": 1,
        "ContrastIncreasing": 1, "BrightnessIncreasing": 1, "Equalize": 1, "Invert": 1,
    },
    "weights": {
        "Rotate": 3, "ShearX": 2, "ShearY": 2, "TranslateXRel": 1, "TranslateYRel": 1, "ColorIncreasing": 0.25,
        "SharpnessIncreasing": 0.25, "AutoContrast": 0.25, "SolarizeIncreasing": 0.05, "SolarizeAdd": 0.05,
        "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05, "Equalize": 0.05, "PosterizeIncreasing": 0.05,
        "Invert": 0.05,
    },
}
AUGMIX_OPERATIONS = (
    "AutoContrast", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "Equalize",
    "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "ShearX", "ShearY", "TranslateXRel0.3", "TranslateYRel0.3",
)
# fmt: on


@dataclass(frozen=True)
class Noise:
    """How a magnitude varies: normally with this deviation, evenly between 0 and itself if infinite. Then it is clipped."""

    deviation: float = 0.0
    limit: float = 10.0

    def __call__(self, magnitude: float, rng: np.random.Generator) -> float:
        if math.isinf(self.deviation):
            magnitude = rng.uniform(0, magnitude)
        elif self.deviation > 0:
            magnitude = rng.normal(magnitude, self.deviation)
        return max(0.0, min(magnitude, self.limit))


def _apply(
    name: str, probability: float, magnitude: float, noise: Noise, pixels: np.ndarray, rng: np.random.Generator, fill: Color
) -> np.ndarray:
    """One of timm's operations, with a probability."""
    if rng.random() >= probability:
        return pixels
    transform, argument = OPERATIONS[name]
    return transform(pixels, argument(noise(magnitude, rng) / 10, rng), fill)


@dataclass(frozen=True)
class AutoAugment:
    """One of the learned sub-policies. https://arxiv.org/abs/1805.09501

    Args:
        name: a key of AUTO_POLICIES.
        noise: of the magnitudes.
        fill: what stands where a moved image left nothing, BGR.
    """

    name: str
    noise: Noise = Noise()
    fill: Color = IMAGENET_MEAN

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        policies = AUTO_POLICIES[self.name]
        for name, probability, magnitude in policies[int(rng.random() * len(policies))]:
            pixels = _apply(name, probability, magnitude, self.noise, pixels, rng, self.fill)
        return pixels


@dataclass(frozen=True)
class RandAugment:
    """A few operations, drawn anew for every image. https://arxiv.org/abs/1909.13719

    Args:
        magnitude: of all operations, 0..10, or up to the noise's limit.
        layers: how many operations are drawn.
        probability: of each being applied once drawn.
        operations: what to draw from, names in OPERATIONS.
        weights: their shares, in which case none is drawn twice; equal if None.
        noise, fill: see AutoAugment.
    """

    magnitude: int = 10
    layers: int = 2
    probability: float = 0.5
    operations: tuple[str, ...] = RAND_OPERATIONS
    weights: tuple[float, ...] | None = None
    noise: Noise = Noise()
    fill: Color = IMAGENET_MEAN

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.weights is None:
            names = [self.operations[int(rng.random() * len(self.operations))] for _ in range(self.layers)]
        else:
            shares = np.array(self.weights) / sum(self.weights)
            names = [self.operations[i] for i in rng.choice(len(shares), self.layers, replace=False, p=shares)]
        for name in names:
            pixels = _apply(name, self.probability, self.magnitude, self.noise, pixels, rng, self.fill)
        return pixels


@dataclass(frozen=True)
class AugMix:
    """The image mixed with several chains of operations on it. https://arxiv.org/abs/1912.02781

    The mixture is made in float and rounded once; Pillow, and so timm, rounds it twice.

    Args:
        magnitude: of all operations, 0..10.
        width: how many chains.
        depth: how many operations in each; 0 draws from 1..3.
        alpha: of the Dirichlet and the beta distribution that the shares come from.
        noise, fill: see AutoAugment.
    """

    magnitude: int = 3
    width: int = 3
    depth: int = 0
    alpha: float = 1.0
    noise: Noise = Noise(deviation=math.inf)
    fill: Color = IMAGENET_MEAN

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shares = rng.dirichlet([self.alpha] * self.width)
        chains = rng.beta(self.alpha, self.alpha)
        mixed: np.ndarray = np.multiply(pixels, 1 - chains, dtype=np.float32)
        for share in shares:
            chain = pixels
            for _ in range(self.depth or 1 + int(rng.random() * 3)):
                name = AUGMIX_OPERATIONS[int(rng.random() * len(AUGMIX_OPERATIONS))]
                chain = _apply(name, 1.0, self.magnitude, self.noise, chain, rng, self.fill)
            cv2.addWeighted(mixed, 1, chain, chains * share, 0, dst=mixed, dtype=cv2.CV_32F)
        return cv2.convertScaleAbs(mixed)


@dataclass(frozen=True)
class TrivialAugmentWide:
    """One operation at one of 31 magnitudes, all equally likely. https://arxiv.org/abs/2103.10158"""

    fill: Color = IMAGENET_MEAN

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        transform, argument = list(WIDE_OPERATIONS.values())[int(rng.random() * len(WIDE_OPERATIONS))]
        return transform(pixels, argument(int(rng.random() * WIDE_BINS) / (WIDE_BINS - 1), rng), self.fill)


# What may stand after a policy's name: the type of its value, the smallest and the largest
_AUTO_SETTINGS = {"mstd": (float, 0, math.inf)}
_RAND_SETTINGS = {
    "m": (int, 0, math.inf), "n": (int, 1, math.inf), "p": (float, 0, 1), "mstd": (float, 0, math.inf),
    "mmax": (int, 1, math.inf), "inc": (int, 0, 1),
}  # fmt: skip
_AUGMIX_SETTINGS = {
    "m": (int, 0, math.inf), "w": (int, 1, math.inf), "d": (int, 0, math.inf), "a": (float, 0.01, math.inf),
    "b": (int, 0, 1), "mstd": (float, 0, math.inf),
}  # fmt: skip


def parse_policy(text: str, *, fill: Color = IMAGENET_MEAN) -> Policy:
    """The policy that a text describes, in timm's notation: a name, then settings in any order, joined by '-'.

    original, originalr, v0, v0r, 3a: AutoAugment. mstd: deviation of the magnitudes; above 100 they are drawn evenly.
    rand: RandAugment. m: magnitude (10); n: layers (2); p: probability of each (0.5); mstd; mmax: largest magnitude (10);
        inc1: every operation gets stronger with the magnitude; t: the set of operations, one of RAND_SETS.
    augmix: AugMix. m: magnitude (3); w: width (3); d: depth (drawn from 1..3); a: alpha (1); mstd (magnitudes are drawn
        evenly); b: timm's two ways of mixing, which differ in rounding only and are the same here.
    ta_wide: TrivialAugment.

    Args:
        text: for example 'rand-m9-mstd0.5-inc1'.
        fill: what stands where a moved image left nothing, BGR, 0..255.

    Raises:
        PolicyError: for anything else.
    """
    name, *parts = text.split("-")
    if name in AUTO_POLICIES:
        settings = _read_settings(text, parts, _AUTO_SETTINGS)
        return AutoAugment(name, _noise(settings, 0.0), fill)
    if name == "rand":
        return _parse_rand(text, parts, fill)
    if name == "augmix":
        settings = _read_settings(text, parts, _AUGMIX_SETTINGS)
        magnitude, width, depth = (int(settings.get(key, default)) for key, default in (("m", 3), ("w", 3), ("d", 0)))
        return AugMix(magnitude, width, depth, settings.get("a", 1.0), _noise(settings, math.inf), fill)
    if name == "ta_wide":
        _read_settings(text, parts, {})
        return TrivialAugmentWide(fill)
    raise _error(text, f"{name!r} is no policy")


def _parse_rand(text: str, parts: list[str], fill: Color) -> RandAugment:
    sets = [part[1:] for part in parts if part.startswith("t")]
    if len(sets) > 1 or not set(sets) <= set(RAND_SETS):
        raise _error(text, f"t is given once and followed by one of {', '.join(RAND_SETS)}")
    settings = _read_settings(text, [part for part in parts if not part.startswith("t")], _RAND_SETTINGS)
    magnitude, layers = int(settings.get("m", 10)), int(settings.get("n", 2))
    operations = RAND_SETS[sets[0]] if sets else RAND_INCREASING_OPERATIONS if settings.get("inc") else RAND_OPERATIONS
    weights = tuple(operations.values()) if isinstance(operations, dict) else None
    if weights and layers > len(weights):
        raise _error(text, f"n is at most {len(weights)}, as none of these operations is drawn twice")
    noise = _noise(settings, 0.0)
    return RandAugment(magnitude, layers, settings.get("p", 0.5), tuple(operations), weights, noise, fill)


def _read_settings(text: str, parts: list[str], known: Mapping[str, tuple[type, float, float]]) -> dict[str, float]:
    settings: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part, re.ASCII)
        if match is None or match[1] not in known:
            raise _error(text, f"{part!r} is none of its settings ({', '.join(known) or 'it has none'}), each with a value")
        key, value = match[1], float(match[2])
        kind, low, high = known[key]
        if key in settings:
            raise _error(text, f"{key} is given twice")
        if not low <= value <= high or (kind is int and "." in match[2]):
            limits = f"at least {low}" if math.isinf(high) else f"from {low} to {high}"
            raise _error(text, f"{key} is {'a whole number' if kind is int else 'a number'} {limits}")
        settings[key] = value
    return settings


def _noise(settings: Mapping[str, float], default: float) -> Noise:
    deviation = settings.get("mstd", default)
    return Noise(math.inf if deviation > 100 else deviation, settings.get("mmax", 10.0))


def _error(text: str, reason: str) -> PolicyError:
    return PolicyError(f"--aa {' '.join(text.split())}: {reason}; known are {KNOWN}")

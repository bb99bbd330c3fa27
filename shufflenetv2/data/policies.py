"""Augmentation policies: AutoAugment, RandAugment, AugMix and TrivialAugment, in the notation of timm.

The settings and their meaning are those of `timm.data.auto_augment`; TrivialAugment is torchvision's. The operations
(operations.py) differ from timm's: they use OpenCV instead of Pillow, take BGR arrays, and draw from the random stream of
the sample instead of global random state.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from ..errors import UserError
from ..extensions import create, is_reference, load_object
from .operations import OPERATIONS, WIDE_BINS, WIDE_OPERATIONS, Color
from .policy_tables import AUGMIX_OPERATIONS, AUTO_POLICIES, RAND_INCREASING_OPERATIONS, RAND_OPERATIONS, RAND_SETS

IMAGENET_MEAN: Color = (104.0, 116.0, 124.0)
EXAMPLES = "original, originalr, v0, v0r, 3a, rand-m9-mstd0.5, augmix-m3, ta_wide"


class Policy(Protocol):
    """A random augmentation of an image. Policies have no state, so threads can share them."""

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the augmented image, or `pixels` itself if nothing changes; `pixels` is never modified.

        Args:
            pixels: uint8 (H, W, 3), BGR.
            rng: source of all random draws.
        """


@dataclass(frozen=True)
class MagnitudeNoise:
    """Random variation of a magnitude, which is then clipped to 0..limit.

    Args:
        deviation: standard deviation of normal noise; if infinite, the magnitude is drawn uniformly between 0 and itself.
        limit: largest magnitude.
    """

    deviation: float = 0.0
    limit: float = 10.0

    def __call__(self, magnitude: float, rng: np.random.Generator) -> float:
        if math.isinf(self.deviation):
            magnitude = rng.uniform(0, magnitude)
        elif self.deviation > 0:
            magnitude = rng.normal(magnitude, self.deviation)
        return max(0.0, min(magnitude, self.limit))


def _apply_operation(
    name: str,
    probability: float,
    magnitude: float,
    noise: MagnitudeNoise,
    pixels: np.ndarray,
    rng: np.random.Generator,
    fill: Color,
) -> np.ndarray:
    if rng.random() >= probability:
        return pixels
    operation, level_to_argument = OPERATIONS[name]
    return operation(pixels, level_to_argument(noise(magnitude, rng) / 10, rng), fill)


@dataclass(frozen=True)
class AutoAugment:
    """Apply one of the learned sub-policies of AutoAugment, chosen at random. https://arxiv.org/abs/1805.09501

    Args:
        name: a key of AUTO_POLICIES.
        noise: variation of the magnitudes.
        fill: colour of the pixels outside a moved image, BGR, 0..255.
    """

    name: str
    noise: MagnitudeNoise = MagnitudeNoise()
    fill: Color = IMAGENET_MEAN

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        policies = AUTO_POLICIES[self.name]
        for name, probability, magnitude in policies[int(rng.random() * len(policies))]:
            pixels = _apply_operation(name, probability, magnitude, self.noise, pixels, rng, self.fill)
        return pixels


@dataclass(frozen=True)
class RandAugment:
    """Apply a few randomly chosen operations of one magnitude. https://arxiv.org/abs/1909.13719

    Args:
        magnitude: of all operations, 0..10, or up to the limit of the noise.
        layers: number of operations drawn for each image.
        probability: of applying an operation that was drawn.
        operations: names to draw from, keys of OPERATIONS.
        weights: of the operations; with weights no operation is drawn twice for an image. None draws them equally often.
        noise: variation of the magnitudes.
        fill: colour of the pixels outside a moved image, BGR, 0..255.
    """

    magnitude: int = 10
    layers: int = 2
    probability: float = 0.5
    operations: tuple[str, ...] = RAND_OPERATIONS
    weights: tuple[float, ...] | None = None
    noise: MagnitudeNoise = MagnitudeNoise()
    fill: Color = IMAGENET_MEAN

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.weights is None:
            names = [self.operations[int(rng.random() * len(self.operations))] for _ in range(self.layers)]
        else:
            probabilities = np.array(self.weights) / sum(self.weights)
            indices = rng.choice(len(self.operations), self.layers, replace=False, p=probabilities)
            names = [self.operations[index] for index in indices]
        for name in names:
            pixels = _apply_operation(name, self.probability, self.magnitude, self.noise, pixels, rng, self.fill)
        return pixels


@dataclass(frozen=True)
class AugMix:
    """Mix the image with several chains of operations applied to it. https://arxiv.org/abs/1912.02781

    The mixture is computed in float32 and rounded once; Pillow, and therefore timm, rounds it twice.

    Args:
        magnitude: of all operations, 0..10.
        width: number of chains.
        depth: number of operations in each chain; 0 draws 1 to 3.
        alpha: parameter of the Dirichlet distribution of the chains' weights, and of the beta distribution of the weight
            of all chains together.
        noise: variation of the magnitudes.
        fill: colour of the pixels outside a moved image, BGR, 0..255.
    """

    magnitude: int = 3
    width: int = 3
    depth: int = 0
    alpha: float = 1.0
    noise: MagnitudeNoise = MagnitudeNoise(deviation=math.inf)
    fill: Color = IMAGENET_MEAN

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        chain_weights = rng.dirichlet([self.alpha] * self.width)
        mix_weight = rng.beta(self.alpha, self.alpha)
        mixed: np.ndarray = np.multiply(pixels, 1 - mix_weight, dtype=np.float32)
        for chain_weight in chain_weights:
            chain = pixels
            for _ in range(self.depth or 1 + int(rng.random() * 3)):
                name = AUGMIX_OPERATIONS[int(rng.random() * len(AUGMIX_OPERATIONS))]
                chain = _apply_operation(name, 1.0, self.magnitude, self.noise, chain, rng, self.fill)
            cv2.addWeighted(mixed, 1, chain, mix_weight * chain_weight, 0, dst=mixed, dtype=cv2.CV_32F)
        return cv2.convertScaleAbs(mixed)


@dataclass(frozen=True)
class TrivialAugmentWide:
    """Apply one operation at one of 31 levels, all equally likely. https://arxiv.org/abs/2103.10158

    Args:
        fill: colour of the pixels outside a moved image, BGR, 0..255.
    """

    fill: Color = IMAGENET_MEAN

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        operation, level_to_argument = list(WIDE_OPERATIONS.values())[int(rng.random() * len(WIDE_OPERATIONS))]
        level = int(rng.random() * WIDE_BINS) / (WIDE_BINS - 1)
        return operation(pixels, level_to_argument(level, rng), self.fill)


class Setting(NamedTuple):
    """Type and range of the number that follows the name of a setting."""

    type: type
    min: float
    max: float = 1000


AUTO_SETTINGS = {"mstd": Setting(float, 0)}
RAND_SETTINGS = {
    "m": Setting(int, 0),
    "n": Setting(int, 1, 100),
    "p": Setting(float, 0, 1),
    "mstd": Setting(float, 0),
    "mmax": Setting(int, 1),
    "inc": Setting(int, 0, 1),
}
AUGMIX_SETTINGS = {
    "m": Setting(int, 0),
    "w": Setting(int, 1, 100),
    "d": Setting(int, 0, 100),
    "a": Setting(float, 0.01),
    "b": Setting(int, 0, 1),
    "mstd": Setting(float, 0),
}


class UserPolicy:
    """Apply a function of the user, 'package.module:function', called as f(pixels, rng); a class is instantiated first.

    Raises:
        UserError: it cannot be imported or called; when it is applied: the result has another shape or data type.
    """

    def __init__(self, reference: str) -> None:
        self.reference = reference
        function = load_object("aa", reference)
        self._function = create("aa", reference) if isinstance(function, type) else function
        if not callable(self._function):
            raise UserError(f"`aa` {reference} cannot be called; it is called as f(image, rng)")

    def __repr__(self) -> str:
        return self.reference

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        result = self._function(pixels.copy(), rng)
        if not (isinstance(result, np.ndarray) and result.shape == pixels.shape and result.dtype == np.uint8):
            raise UserError(
                f"`aa` {self.reference} must return a uint8 array of shape {pixels.shape}, like the image it is given"
            )
        return result


def parse_policy(text: str, *, fill: Color = IMAGENET_MEAN) -> Policy:
    """Build a policy from its description in timm's notation: a name, then settings in any order, separated by '-'.

    - original, originalr, v0, v0r, 3a: AutoAugment. mstd: standard deviation of the magnitudes; above 100 they are drawn
      uniformly.
    - rand: RandAugment. m: magnitude (10); n: layers (2); p: probability of each layer (0.5); mstd: as above (0);
      mmax: largest magnitude (10); inc1: use operations whose effect increases with the magnitude; t: name of a set of
      operations in RAND_SETS.
    - augmix: AugMix. m: magnitude (3); w: width (3); d: depth (drawn from 1..3); a: alpha (1); mstd: as above (uniform);
      b: accepted and ignored, since timm's two ways to mix differ only in rounding.
    - ta_wide: TrivialAugment.
    - package.module:function: a function of the user, see UserPolicy.

    Args:
        text: for example 'rand-m9-mstd0.5-inc1'.
        fill: colour of the pixels outside a moved image, BGR, 0..255.

    Raises:
        UserError: if the text is not a valid description.
    """
    if is_reference(text):
        return UserPolicy(text)
    name, *parts = text.split("-")
    if name in AUTO_POLICIES:
        settings = _parse_settings(text, parts, AUTO_SETTINGS)
        return AutoAugment(name, _magnitude_noise(settings, 0.0), fill)
    if name == "rand":
        return _parse_rand(text, parts, fill)
    if name == "augmix":
        settings = _parse_settings(text, parts, AUGMIX_SETTINGS)
        magnitude, width, depth = (int(settings.get(key, default)) for key, default in (("m", 3), ("w", 3), ("d", 0)))
        return AugMix(magnitude, width, depth, settings.get("a", 1.0), _magnitude_noise(settings, math.inf), fill)
    if name == "ta_wide":
        _parse_settings(text, parts, {})
        return TrivialAugmentWide(fill)
    raise _policy_error(text, f"{name!r} is not a policy")


def _parse_rand(text: str, parts: list[str], fill: Color) -> RandAugment:
    sets = [part[1:] for part in parts if part.startswith("t")]
    if len(sets) > 1 or not set(sets) <= set(RAND_SETS):
        raise _policy_error(text, f"t may appear once, followed by one of {', '.join(RAND_SETS)}")
    settings = _parse_settings(text, [part for part in parts if not part.startswith("t")], RAND_SETTINGS)
    magnitude, layers = int(settings.get("m", 10)), int(settings.get("n", 2))
    operations = RAND_SETS[sets[0]] if sets else RAND_INCREASING_OPERATIONS if settings.get("inc") else RAND_OPERATIONS
    weights = tuple(operations.values()) if isinstance(operations, dict) else None
    if weights and layers > len(weights):
        raise _policy_error(text, f"n must be at most {len(weights)}, since none of these operations is drawn twice")
    noise = _magnitude_noise(settings, 0.0)
    return RandAugment(magnitude, layers, settings.get("p", 0.5), tuple(operations), weights, noise, fill)


def _parse_settings(text: str, parts: list[str], allowed: Mapping[str, Setting]) -> dict[str, float]:
    values: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part, re.ASCII)
        if match is None or match[1] not in allowed:
            names = f"a setting ({', '.join(allowed)}) with its value" if allowed else "allowed: this policy has no settings"
            raise _policy_error(text, f"{part!r} is not {names}")
        name, value = match[1], float(match[2])
        setting = allowed[name]
        if name in values:
            raise _policy_error(text, f"{name} appears twice")
        if not setting.min <= value <= setting.max or (setting.type is int and "." in match[2]):
            kind = "a whole number" if setting.type is int else "a number"
            raise _policy_error(text, f"{name} must be {kind} from {setting.min} to {setting.max}")
        values[name] = value
    return values


def _magnitude_noise(settings: Mapping[str, float], default: float) -> MagnitudeNoise:
    deviation = settings.get("mstd", default)
    return MagnitudeNoise(math.inf if deviation > 100 else deviation, settings.get("mmax", 10.0))


def _policy_error(text: str, reason: str) -> UserError:
    return UserError(f"`aa` {' '.join(text.split())}: {reason}; examples: {EXAMPLES}")

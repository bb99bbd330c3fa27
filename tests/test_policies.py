"""Augmentation policies match timm and torchvision, with draws that depend on the sample's key only."""

import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
import timm.data.auto_augment
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pillow_operations

from shufflenetv2.data import operations, policies, policy_tables
from shufflenetv2.data.operations import OPERATIONS, WIDE_BINS, WIDE_OPERATIONS
from shufflenetv2.data.policies import parse_policy
from shufflenetv2.errors import UserError
from shufflenetv2.rng import SAMPLE, generator
from tests.support import photograph

timm_policies: Any = timm.data.auto_augment  # Any: timm's type hints are incomplete

RGB_FILL = (124, 116, 104)
PHOTOGRAPH = photograph(61, 46, seed=3)
# The settings of timm's training script, with the interpolation that this project uses
HPARAMS = {"img_mean": RGB_FILL, "translate_const": 100, "interpolation": Image.Resampling.BILINEAR}
POLICIES = (
    "original",
    "originalr",
    "original-mstd0.5",
    "v0",
    "v0r",
    "3a",
    "rand-m9-mstd0.5",
    "rand-m9-mstd0.5-inc1",
    "rand",
    "rand-m15-mmax20-n3-p1",
    "rand-m5-mstd101",
    "rand-m7-tweights-n4",
    "rand-m7-t3a",
    "rand-m7-t3aw",
    "augmix-m3",
    "augmix-m5-w4-d2-b1-a0.7",
    "augmix-mstd1",
    "ta_wide",
)


def bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


def timm_policy(text: str) -> Any:
    if text.startswith("rand"):
        return timm_policies.rand_augment_transform(text, dict(HPARAMS))
    if text.startswith("augmix"):
        return timm_policies.augment_and_mix_transform(text, {**HPARAMS, "translate_pct": 0.3})
    return timm_policies.auto_augment_transform(text, dict(HPARAMS))


def difference(result: np.ndarray, expected: Image.Image, inside: Image.Image | None = None) -> np.ndarray:
    """Return absolute differences: of all pixels, or of those that are white in `inside` together with their neighbours."""
    distances: np.ndarray = np.abs(result.astype(int) - bgr(expected))
    if inside is None:
        return distances
    # Outside: at the border Pillow extends the image by half a pixel, and OpenCV interpolates with the fill colour.
    mask: np.ndarray = cv2.erode(np.asarray(inside), np.ones((3, 3)), borderType=cv2.BORDER_CONSTANT, borderValue=0) == 255
    distances = distances[mask]
    return distances


GEOMETRIC = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXRel", "TranslateYRel"}
EXACT = {"AutoContrast", "Equalize", "Invert", "Identity", "Posterize", "Solarize", "Contrast", "Brightness"}


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "GaussianBlurRand"])
def test_every_operation_matches_timm_at_every_magnitude_and_sign(name: str) -> None:
    operation, level_to_argument = OPERATIONS[name]
    timm_name, hparams = (name[:-3], {"translate_pct": 0.3}) if name.endswith("0.3") else (name, {})
    for magnitude in (0, 1, 2.5, 4, 7, 9.3, 10, 14):
        # timm draws the sign from the global generator; 20 draws show both signs.
        random.seed(0)
        level_function = timm_policies.LEVEL_TO_ARG[timm_name]
        expected_values = {level_function(magnitude, hparams)[0] if level_function else 0.0 for _ in range(20)}
        values = {level_to_argument(magnitude / 10, generator(0, SAMPLE, draw)) for draw in range(20)}
        assert sorted(values) == pytest.approx(sorted(expected_values))

        for value in expected_values:
            result = operation(bgr(PHOTOGRAPH), value, policies.IMAGENET_MEAN)
            if name.startswith("Posterize") and value <= 0:  # refused by newer versions of Pillow
                assert not result.any()
                continue
            arguments = (value,) if level_function else ()
            apply = timm_policies.NAME_TO_OP[timm_name]
            if timm_name in GEOMETRIC:
                resample = Image.Resampling.BILINEAR
                expected = apply(PHOTOGRAPH, *arguments, fillcolor=RGB_FILL, resample=resample)
                white = apply(Image.new("L", PHOTOGRAPH.size, 255), *arguments, fillcolor=0, resample=resample)
                distances = difference(result, expected, white)
                assert distances.size > 0.15 * result.size
            else:
                distances = difference(result, apply(PHOTOGRAPH, *arguments))
            if timm_name == "GaussianBlur":  # Pillow approximates the Gaussian by box filters
                assert distances.mean() < 1
                assert distances.max() <= 6
            elif timm_name.removesuffix("Increasing").removesuffix("Original") in EXACT:
                assert distances.max() == 0
            else:  # rounded once; Pillow truncates, and for colour and sharpness rounds, then truncates
                assert distances.max() <= 2
                assert np.mean(distances > 1) < 0.03


def test_both_signs_are_equally_likely() -> None:
    for name in ("Rotate", "ShearX", "TranslateYRel", "ColorIncreasing"):
        _, level_to_argument = OPERATIONS[name]
        drawn = [level_to_argument(0.5, generator(0, SAMPLE, draw)) for draw in range(1000)]
        assert np.mean(np.array(drawn) == max(drawn)) == pytest.approx(0.5, abs=0.05)


def test_the_random_blur_covers_the_radii_of_timm() -> None:
    _, level_to_argument = OPERATIONS["GaussianBlurRand"]
    radii = [level_to_argument(1.0, generator(0, SAMPLE, draw)) for draw in range(500)]
    assert 0.1 <= min(radii) < 0.15
    assert 1.95 < max(radii) <= 2.0
    assert 0.1 <= level_to_argument(0.0, generator(0, SAMPLE, 0)) <= 2.0


def test_flat_and_extreme_images_are_equalized_and_stretched_as_in_pillow() -> None:
    ramp = np.tile(np.linspace(40, 90, 32).astype(np.uint8)[None, :, None], (32, 1, 3))
    two_values = np.where(np.arange(32) < 30, 3, 255).astype(np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
    noisy = np.random.default_rng(0).integers(0, 256, (23, 23, 3), dtype=np.uint8)
    for pixels in (ramp, two_values, noisy, np.full((32, 32, 3), 77, np.uint8), noisy[:4, :4], noisy[:1, :1]):
        image = Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))
        assert difference(operations.equalize(pixels, 0, (0, 0, 0)), timm_policies.equalize(image)).max() == 0
        assert difference(operations.auto_contrast(pixels, 0, (0, 0, 0)), timm_policies.auto_contrast(image)).max() == 0


def affine(image: Image.Image, fill: int | tuple[int, ...], **changes: Any) -> Any:
    """Move or shear an image about its top left corner."""
    arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "center": [0, 0]} | changes
    return pillow_operations.affine(image, **arguments, interpolation=InterpolationMode.BILINEAR, fill=fill)


# TrivialAugment with its wide space, written out with torchvision's functions: name -> (magnitude at the highest of 31 levels,
# whether its sign is drawn, operation (image, magnitude, fill colour)).
WIDE: dict[str, tuple[float, bool, Callable[[Image.Image, float, Any], Any]]] = {
    "Identity": (0.0, False, lambda image, magnitude, fill: image),
    "ShearX": (0.99, True, lambda image, magnitude, fill: affine(image, fill, shear=[math.degrees(math.atan(magnitude)), 0.0])),
    "ShearY": (0.99, True, lambda image, magnitude, fill: affine(image, fill, shear=[0.0, math.degrees(math.atan(magnitude))])),
    "TranslateX": (32.0, True, lambda image, magnitude, fill: affine(image, fill, translate=[int(magnitude), 0])),
    "TranslateY": (32.0, True, lambda image, magnitude, fill: affine(image, fill, translate=[0, int(magnitude)])),
    "Rotate": (
        135.0,
        True,
        lambda image, magnitude, fill: pillow_operations.rotate(image, magnitude, InterpolationMode.BILINEAR, fill=fill),
    ),
    "Brightness": (0.99, True, lambda image, magnitude, fill: pillow_operations.adjust_brightness(image, 1 + magnitude)),
    "Color": (0.99, True, lambda image, magnitude, fill: pillow_operations.adjust_saturation(image, 1 + magnitude)),
    "Contrast": (0.99, True, lambda image, magnitude, fill: pillow_operations.adjust_contrast(image, 1 + magnitude)),
    "Sharpness": (0.99, True, lambda image, magnitude, fill: pillow_operations.adjust_sharpness(image, 1 + magnitude)),
    "Posterize": (6.0, False, lambda image, magnitude, fill: pillow_operations.posterize(image, 8 - round(magnitude))),
    "Solarize": (255.0, False, lambda image, magnitude, fill: pillow_operations.solarize(image, 255 - magnitude)),
    "AutoContrast": (0.0, False, lambda image, magnitude, fill: pillow_operations.autocontrast(image)),
    "Equalize": (0.0, False, lambda image, magnitude, fill: pillow_operations.equalize(image)),
}


@pytest.mark.parametrize("name", WIDE)
def test_trivial_augment_has_the_operations_and_magnitudes_of_torchvision(name: str) -> None:
    highest, signed, reference = WIDE[name]
    operation, level_to_argument = WIDE_OPERATIONS[name]
    white = Image.new("L", PHOTOGRAPH.size, 255)
    for level in range(WIDE_BINS):
        magnitude = highest * level / (WIDE_BINS - 1)
        values = {level_to_argument(level / 30, generator(0, SAMPLE, draw)) for draw in range(16)}
        assert len(values) == (2 if signed and int(magnitude) | int(100 * magnitude) else 1)
        results = [operation(bgr(PHOTOGRAPH), value, policies.IMAGENET_MEAN) for value in values]
        for sign in (1, -1) if signed else (1,):
            expected = reference(PHOTOGRAPH, sign * magnitude, RGB_FILL)
            inside = reference(white, sign * magnitude, 0) if name in GEOMETRIC else None
            # Both signs are equally likely, so it does not matter which direction is positive.
            distances = min((difference(result, expected, inside) for result in results), key=np.mean)
            # 2 in single pixels also for geometric operations: OpenCV 4 interpolates less precisely than OpenCV 5.
            assert distances.max() <= (0 if name in EXACT else 2), level
            assert np.mean(distances > 1) < 0.01


def test_trivial_augment_has_no_other_operations() -> None:
    assert list(WIDE_OPERATIONS) == list(WIDE)


def test_trivial_augment_draws_all_operations_and_levels_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def recorder(name: str) -> operations.LevelToArgument:
        def record(level: float, _rng: np.random.Generator) -> float:
            seen.append((name, round(level * 30)))
            return 0.0

        return record

    monkeypatch.setattr(policies, "WIDE_OPERATIONS", {name: (operations.identity, recorder(name)) for name in WIDE_OPERATIONS})
    for draw in range(14_000):
        parse_policy("ta_wide")(bgr(PHOTOGRAPH)[:1], generator(0, SAMPLE, draw))
    names, bins = zip(*seen, strict=True)
    assert all(850 < names.count(name) < 1150 for name in WIDE_OPERATIONS)
    assert all(350 < bins.count(level) < 560 for level in range(31))


def test_the_tables_match_timm() -> None:
    for name, sub_policies in policy_tables.AUTO_POLICIES.items():
        expected = timm_policies.auto_augment_policy(name, HPARAMS)
        assert [[(step.name, step.prob, step.magnitude) for step in policy] for policy in expected] == list(
            map(list, sub_policies)
        )
    assert [step.name for step in timm_policy("rand-m9").ops] == list(policy_tables.RAND_OPERATIONS)
    assert [step.name for step in timm_policy("rand-m9-inc1").ops] == list(policy_tables.RAND_INCREASING_OPERATIONS)
    names = [name.removesuffix("0.3") for name in policy_tables.AUGMIX_OPERATIONS]
    assert [step.name for step in timm_policy("augmix-m3").ops] == names
    for name, choices in policy_tables.RAND_SETS.items():
        expected = timm_policies.rand_augment_choices(name)
        assert choices == (expected if isinstance(expected, dict) else tuple(expected))


@pytest.mark.parametrize("text", [text for text in POLICIES if text != "ta_wide"])
def test_a_description_has_the_meaning_of_timm(text: str) -> None:
    policy, expected = parse_policy(text), timm_policy(text)
    step = expected.policy[0][0] if isinstance(expected, timm_policies.AutoAugment) else expected.ops[0]
    assert isinstance(policy, policies.AutoAugment | policies.RandAugment | policies.AugMix)
    assert (policy.noise.deviation, policy.noise.limit) == (step.magnitude_std, step.magnitude_max or 10)
    if isinstance(policy, policies.RandAugment):
        assert isinstance(expected, timm_policies.RandAugment)
        assert list(policy.operations) == [step.name for step in expected.ops]
        assert (policy.magnitude, policy.probability, policy.layers) == (step.magnitude, step.prob, expected.num_layers)
        assert (policy.weights is None) == (expected.choice_weights is None)
    if isinstance(policy, policies.AugMix):
        assert isinstance(expected, timm_policies.AugMixAugment)
        assert (policy.magnitude, policy.width, policy.alpha) == (step.magnitude, expected.width, expected.alpha)
        assert policy.depth == max(0, expected.depth)


@pytest.mark.parametrize(
    "text", ["rand-m1-mstd2", "rand-m4-mstd0.5", "rand-m9-mstd2", "rand-m15-mmax20-mstd3", "rand-m5-mstd101", "rand-m6"]
)
def test_magnitudes_have_the_distribution_of_timm(text: str) -> None:
    step = timm_policy(text).ops[0]
    step.prob, step.level_fn, step.aug_fn = 1.0, lambda magnitude, _: (magnitude,), lambda _, magnitude, **__: magnitude
    random.seed(0)
    expected = [step(None) for _ in range(5000)]
    policy = parse_policy(text)
    assert isinstance(policy, policies.RandAugment)
    magnitudes = [policy.noise(policy.magnitude, generator(0, SAMPLE, draw)) for draw in range(5000)]
    percentiles = (2, 10, 25, 50, 75, 90, 98)
    assert np.percentile(magnitudes, percentiles) == pytest.approx(np.percentile(expected, percentiles), abs=0.3)


def test_weighted_operations_are_drawn_by_weight_and_never_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def recorder(name: str) -> operations.LevelToArgument:
        def record(_level: float, _rng: np.random.Generator) -> float:
            seen.append(name)
            return 0.0

        return record

    monkeypatch.setattr(policies, "OPERATIONS", {name: (operations.identity, recorder(name)) for name in OPERATIONS})
    parse_policy("rand-tweights-p1-n15")(bgr(PHOTOGRAPH), generator(0, SAMPLE, 0))
    weights = timm_policies.rand_augment_choices("weights")
    assert sorted(seen) == sorted(weights)
    seen.clear()
    for draw in range(4000):
        parse_policy("rand-tweights-p1-n1")(bgr(PHOTOGRAPH), generator(0, SAMPLE, draw))
    for name, weight in weights.items():
        assert seen.count(name) / 4000 == pytest.approx(weight / sum(weights.values()), abs=0.025)


@pytest.mark.parametrize(
    "text", ["original", "originalr", "v0r", "rand-m7-mstd0.5", "rand-m7-inc1-n3-p0.7", "rand-m7-tweights", "augmix-m3", "3a"]
)
def test_images_change_as_much_as_with_timm(text: str) -> None:
    """The mean change agrees within 10 %, and equally many images stay unchanged."""
    image, count = photograph(24, 20, seed=5), 2500
    pixels, reference, policy = bgr(image), timm_policy(text), parse_policy(text)
    random.seed(1)
    np.random.seed(1)  # timm draws from both global generators
    expected = np.array([difference(pixels, reference(image)).mean() for _ in range(count)])
    changes = np.array([np.abs(policy(pixels, generator(1, SAMPLE, n)).astype(int) - pixels).mean() for n in range(count)])
    assert changes.mean() == pytest.approx(expected.mean(), rel=0.1, abs=0.1)
    assert np.mean(changes == 0) == pytest.approx(np.mean(expected == 0), abs=0.04)


@pytest.mark.parametrize("text", POLICIES)
def test_the_same_key_gives_the_same_pixels_in_any_thread_and_order(text: str) -> None:
    policy, pixels, keys = parse_policy(text), bgr(PHOTOGRAPH), range(48)

    def augmented(key: int) -> np.ndarray:
        return policy(pixels, generator(7, SAMPLE, key))

    expected = [augmented(key) for key in keys]
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    order = list(np.random.default_rng(0).permutation(keys))
    with ThreadPoolExecutor(4) as threads:
        results = dict(zip(order, threads.map(augmented, order), strict=True))
    assert all(np.array_equal(results[key], expected[key]) for key in keys)
    assert states == (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())


@pytest.mark.parametrize("text", POLICIES)
def test_a_policy_augments_images_of_any_size_and_never_modifies_its_argument(text: str) -> None:
    policy = parse_policy(text)
    whole = bgr(photograph(80, 50, seed=6))
    for pixels in (whole, whole[3:40, 5:60], whole[:8, :8], whole[:1, :1], whole[:2, :7]):
        before = pixels.copy()
        results = [policy(pixels, generator(2, SAMPLE, key)) for key in range(60)]
        assert np.array_equal(pixels, before)
        assert all(result.shape == pixels.shape and result.dtype == np.uint8 for result in results)
        if len(pixels) > 2:
            assert len({result.tobytes() for result in results}) > 5
    assert type(policy).__name__ in repr(policy)


def test_pixels_outside_a_moved_image_have_the_fill_colour() -> None:
    white = np.full((20, 20, 3), 255, np.uint8)
    for name in GEOMETRIC - {"TranslateX", "TranslateY"}:
        operation, level_to_argument = OPERATIONS[name]
        colours = operation(white, level_to_argument(1.0, generator(0, SAMPLE, 0)), (1, 2, 3)).reshape(-1, 3)
        assert (colours == (1, 2, 3)).all(axis=1).sum() > 8
    for text in ("rand-p1-n4", "original", "augmix", "ta_wide"):
        assert parse_policy(text, fill=(1.0, 2.0, 3.0)).fill == (1.0, 2.0, 3.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rand-x9",
        "Rand-m9",
        "rand9",
        "rand-m",
        "rand-m9.5",
        "rand-m-9",
        "rand-m9-m8",
        "rand-mstd",
        "rand-mstdinf",
        "rand-p1.5",
        "rand-n0",
        "rand-inc2",
        "rand-mmax0",
        "rand-tfoo",
        "rand-t3a-t3aw",
        "rand-tweights-n16",
        "rand--m9",
        "rand-m٣",
        "rand-m9\n",
        "augmix-n2",
        "augmix-w0",
        "augmix-a0",
        "original-m9",
        "v1",
        "ta_wide-m3",
        "ta_wide-",
        "autoaugment",
    ],
)
def test_an_invalid_description_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_policy(text)
    message = str(error.value)
    assert message.startswith(f"`aa` {text.strip()}: ")
    assert message.endswith("examples: original, originalr, v0, v0r, 3a, rand-m9-mstd0.5, augmix-m3, ta_wide")
    assert len(message.splitlines()) == 1
    assert error.value.status == 2

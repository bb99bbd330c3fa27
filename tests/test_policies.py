"""Augmentation policies and random erasing match timm and torchvision, with draws that depend on the sample's key only."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
import timm.data.auto_augment
import timm.data.random_erasing
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from shufflenetv2.data import operations, policies, policy_tables
from shufflenetv2.data.erasing import MODES, RandomErasing
from shufflenetv2.data.operations import OPERATIONS, WIDE_BINS, WIDE_OPERATIONS
from shufflenetv2.data.policies import parse_policy
from shufflenetv2.errors import UserError
from shufflenetv2.rng import SAMPLE, generator
from tests.support import photograph

timm_policies: Any = timm.data.auto_augment  # Any: timm's type hints are incomplete
timm_erasing: Any = timm.data.random_erasing

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


def test_trivial_augment_has_the_operations_and_magnitudes_of_torchvision() -> None:
    space = TrivialAugmentWide()._augmentation_space(WIDE_BINS)
    assert list(WIDE_OPERATIONS) == list(space)
    white, fill = Image.new("L", PHOTOGRAPH.size, 255), list(RGB_FILL)
    for name, (magnitudes, signed) in space.items():
        operation, level_to_argument = WIDE_OPERATIONS[name]
        for level in range(31):
            # In float32 the middle of 0..32 is 15.999999, which torchvision truncates.
            magnitude = round(float(magnitudes[level]), 5) if magnitudes.ndim else 0.0
            values = {level_to_argument(level / 30, generator(0, SAMPLE, draw)) for draw in range(16)}
            assert len(values) == (2 if signed and int(magnitude) | int(100 * magnitude) else 1)
            results = [operation(bgr(PHOTOGRAPH), value, policies.IMAGENET_MEAN) for value in values]
            for sign in (1, -1) if signed else (1,):
                way = InterpolationMode.BILINEAR
                expected = _apply_op(PHOTOGRAPH, name, sign * magnitude, way, fill)
                inside = _apply_op(white, name, sign * magnitude, way, [0.0]) if name in GEOMETRIC else None
                # Both signs are equally likely, so it does not matter which direction is positive.
                distances = min((difference(result, expected, inside) for result in results), key=np.mean)
                assert distances.max() <= (0 if name in EXACT else 1 if name in GEOMETRIC else 2), (name, level)
                assert np.mean(distances > 1) < 0.01


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


def erase(erasing: RandomErasing, key: int, height: int = 48, width: int = 64, value: int = 1) -> np.ndarray:
    pixels = np.full((height, width, 3), value, np.uint8)
    erasing(pixels, generator(4, SAMPLE, key))
    return pixels


def test_erasing_happens_with_its_probability() -> None:
    for probability in (0.0, 0.3, 1.0):
        happened = [bool((erase(RandomErasing(probability), key) != 1).any()) for key in range(600)]
        assert np.mean(happened) == pytest.approx(probability, abs=0.06 if 0 < probability < 1 else 0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (60, 20)])
def test_erased_regions_have_the_sizes_and_places_of_timm(count: int, height: int, width: int) -> None:
    random.seed(0)
    reference = timm_erasing.RandomErasing(1.0, max_count=count, device="cpu")
    expected = np.stack([reference(torch.ones(1, height, width))[0].numpy() == 0 for _ in range(1500)])
    result = np.stack([erase(RandomErasing(1.0, count=count), key, height, width)[:, :, 0] != 1 for key in range(1500)])
    for axes in ((), (2,), (1,)):  # areas, heights, widths, as fractions of the image's
        extents = [masks.any(axis=axes).reshape(len(masks), -1).mean(axis=1) for masks in (result, expected)]
        percentiles = [np.percentile(extent, (5, 25, 50, 75, 95)) for extent in extents]
        assert percentiles[0] == pytest.approx(percentiles[1], abs=0.051)  # one of 20 pixels
    assert np.abs(result.mean(axis=0) - expected.mean(axis=0)).max() < 0.08  # how often each pixel is erased
    assert result[:, [0, -1]].any(axis=(0, 2)).all()  # the outermost rows and columns too
    assert result[:, :, [0, -1]].any(axis=(0, 1)).all()


def test_no_more_regions_than_count_are_erased() -> None:
    for count in (1, 4):
        numbers = set()
        for key in range(200):
            pixels = erase(RandomErasing(1.0, "rand", count), key, value=0, height=90, width=90)
            numbers.add(len(np.unique(pixels.astype(int) @ (65536, 256, 1))) - 1)  # every rectangle has a different colour
        assert max(numbers) == count
        assert min(numbers) == 1


def test_each_mode_draws_its_colours() -> None:
    mean, std = (100.0, 110.0, 120.0), (10.0, 20.0, 30.0)
    colours: dict[str, list[np.ndarray]] = {mode: [] for mode in MODES}
    for mode in MODES:
        for key in range(400):
            pixels = erase(RandomErasing(1.0, mode, 1, mean, std), key, value=255)
            colours[mode].append(pixels[(pixels != 255).any(axis=2)])
    assert all((region == mean).all() for region in colours["const"])
    assert all((region == region[0]).all() for region in colours["rand"])
    assert any(len(np.unique(region, axis=0)) > 0.9 * len(region) for region in colours["pixel"])
    for drawn in (np.stack([region[0] for region in colours["rand"]]), np.concatenate(colours["pixel"])):
        assert drawn.mean(axis=0) == pytest.approx(mean, abs=4)
        assert drawn.std(axis=0) == pytest.approx(std, rel=0.1)
    bright = erase(RandomErasing(1.0, "pixel", 1, (250.0, 250.0, 250.0), std), 0, value=255)
    assert bright.min() > 100  # values above 255 are clipped and do not wrap around
    # By default: ImageNet's mean, blue first
    default = erase(RandomErasing(1.0), 0)
    assert set(map(tuple, default[default[:, :, 0] != 1].tolist())) == {(104, 116, 124)}


def test_erasing_depends_on_the_key_only_and_works_on_array_views() -> None:
    erasing = RandomErasing(0.7, "pixel", 3)
    expected = [erase(erasing, key) for key in range(40)]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda key: erase(erasing, key), range(39, -1, -1)))
    assert all(np.array_equal(a, b) for a, b in zip(reversed(results), expected, strict=True))
    batch = np.ones((3, 48, 64, 3), np.uint8)
    RandomErasing(1.0)(batch[1], generator(4, SAMPLE, 0))
    assert (batch[1] != 1).any()
    assert (batch[[0, 2]] == 1).all()
    erase(RandomErasing(1.0, "pixel", 2), 0, height=1, width=1)  # nothing fits


def test_invalid_erasing_settings_are_refused_in_one_line() -> None:
    for probability, mode, count, field in (
        (1.5, "const", 1, "`reprob`"),
        (-0.1, "const", 1, "`reprob`"),
        (0.5, "black", 1, "`remode`"),
        (0.5, "const", 0, "`recount`"),
    ):
        with pytest.raises(UserError, match=f"^{field} [^\n]+$"):
            RandomErasing(probability, mode, count)

"""Random erasing matches timm, with draws that depend on the sample's key only."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import timm.data.random_erasing
import torch

from shufflenetv2.data.erasing import MODES, RandomErasing
from shufflenetv2.errors import UserError
from shufflenetv2.rng import SAMPLE, generator

timm_erasing: Any = timm.data.random_erasing  # Any: timm's type hints are incomplete


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

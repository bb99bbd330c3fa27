"""Mixup and cutmix: for the same random draws, images and targets equal timm's; the draws have timm's distribution.

The draws are a function of seed, iteration and rank.
"""

from typing import Any

import numpy as np
import pytest
import timm.data.mixup
import torch
from torch import Tensor

from shufflenetv2.config import AugmentationConfig
from shufflenetv2.recipe import Mixing, build_mixing

timm_mixup: Any = timm.data.mixup

MODES = ("batch", "pair", "elem")
OPTIONS: dict[str, dict[str, Any]] = {
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "cutmix_minmax": {"cutmix_minmax": (0.3, 0.8)},
    "mixup, cutmix": {"mixup": 0.8, "cutmix": 1.0},
    "mixup, cutmix_minmax": {"mixup": 0.8, "cutmix_minmax": (0.3, 0.8)},
    "mixup_prob": {"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 0.6},
}
HEIGHT, WIDTH, CLASSES = 17, 24, 5


def make_mixing(n_class: int = CLASSES, seed: int = 0, **options: Any) -> Mixing:
    return Mixing(AugmentationConfig(**options), n_class, seed)


def batch(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


def many_draws(count: int = 20_000, height: int = 200, width: int = 100, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return independent draws for `count` images: lam (count,), boxes (4, count)."""
    return make_mixing(10, mixup_mode="elem", **options).draw(count, height, width, 1)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [8, 7, 1])
def test_image_i_is_mixed_with_image_n_minus_1_minus_i(name: str, mode: str, count: int) -> None:
    mixing = make_mixing(seed=3, mixup_mode=mode, **OPTIONS[name])
    images, targets = batch(count)
    for iteration in range(1, 9):
        mixed, mixed_targets = mixing(images, targets, iteration)
        lams, boxes = mixing.draw(count, HEIGHT, WIDTH, iteration)
        assert (mixed.dtype, mixed_targets.dtype, mixed_targets.shape) == (torch.float32, torch.float32, (count, CLASSES))
        for i in range(count):
            other, lam = count - 1 - i, float(lams[i])
            top, bottom, left, right = boxes[:, i]
            expected = images[i].double()
            if boxes[:, i].any():
                expected[:, top:bottom, left:right] = images[other, :, top:bottom, left:right].double()
                assert lam == pytest.approx(1 - (bottom - top) * (right - left) / (HEIGHT * WIDTH))
            else:
                expected = lam * expected + (1 - lam) * images[other].double()
            torch.testing.assert_close(mixed[i].double(), expected, rtol=0, atol=1e-4)
            target = [lam * (targets[i] == n).item() + (1 - lam) * (targets[other] == n).item() for n in range(CLASSES)]
            assert mixed_targets[i].tolist() == pytest.approx(target, abs=1e-6)
        torch.testing.assert_close(mixed_targets.sum(dim=1), torch.ones(count))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_images_and_targets_equal_timms_for_the_same_draws(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixing = make_mixing(seed=5, mixup_mode=mode, **OPTIONS[name])
    images, targets = batch(8)
    for iteration in range(1, 9):
        lams, boxes = mixing.draw(8, HEIGHT, WIDTH, iteration)
        draws = {"batch": 1, "pair": 4, "elem": 8}[mode]
        has_box: np.ndarray = (boxes[1] > boxes[0]) & (boxes[3] > boxes[2])
        # Make timm's random functions return the draws of `mixing`.
        queue = [(tuple(boxes[:, i]), lams[i]) for i in range(draws) if has_box[i]]
        reference = timm_mixup.Mixup(1.0, 1.0, switch_prob=0.5, mode=mode, label_smoothing=0.0, num_classes=CLASSES)
        switches = np.where(has_box, 0.0, 0.9)  # cutmix below switch_prob, mixup above; all below the probability of mixing, 1
        with monkeypatch.context() as context:
            context.setattr(np.random, "rand", lambda n=None, values=switches: values[:n] if n else values[0])
            context.setattr(np.random, "beta", lambda *_, size=None, values=lams: values[:size] if size else values[0])
            context.setattr(timm_mixup, "cutmix_bbox_and_lam", lambda *_, queue=queue, **__: queue.pop(0))
            expected_images, expected_targets = reference(images.float(), targets)
        assert not queue  # timm used every box
        mixed, mixed_targets = mixing(images, targets, iteration)
        torch.testing.assert_close(mixed, expected_images, rtol=0, atol=1e-4)
        torch.testing.assert_close(mixed_targets, expected_targets, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_draws_are_per_batch_per_pair_or_per_image(mode: str) -> None:
    lams, _ = make_mixing(mixup=1.0, mixup_mode=mode).draw(9, HEIGHT, WIDTH, 4)
    assert len(set(lams.tolist())) == {"batch": 1, "pair": 5, "elem": 9}[mode]
    if mode == "pair":
        assert np.array_equal(lams, lams[::-1])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_the_lam_of_mixup_has_the_beta_distribution(alpha: float) -> None:
    lams, boxes = many_draws(mixup=alpha)
    percent = (5, 25, 50, 75, 95)
    expected = np.percentile(np.random.default_rng(0).beta(alpha, alpha, 100_000), percent)
    assert np.percentile(lams, percent) == pytest.approx(expected, abs=0.02)
    assert not boxes.any()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("shape", [(12, 21), (200, 100)])
def test_boxes_have_timms_distribution_of_sizes_and_positions(alpha: float, shape: tuple[int, int]) -> None:
    lams, boxes = many_draws(10_000, cutmix=alpha, height=shape[0], width=shape[1])
    np.random.seed(0)  # timm's source of randomness
    drawn = [timm_mixup.cutmix_bbox_and_lam((3, *shape), np.random.beta(alpha, alpha)) for _ in range(10_000)]
    timm_boxes, timm_lams = np.array([box for box, _ in drawn]).T, np.array([lam for _, lam in drawn])
    assert lams.mean() == pytest.approx(timm_lams.mean(), abs=0.01)
    assert np.quantile(lams, (0.1, 0.5, 0.9)) == pytest.approx(np.quantile(timm_lams, (0.1, 0.5, 0.9)), abs=0.025)
    for axis, side in enumerate(shape):
        edges, timm_edges = boxes[2 * axis : 2 * axis + 2], timm_boxes[2 * axis : 2 * axis + 2]
        assert edges.min() >= 0
        assert edges.max() == side
        lengths, timm_lengths = ((each[1] - each[0]) / side for each in (edges, timm_edges))
        assert np.histogram(lengths, 8, (0, 1))[0] / len(drawn) == pytest.approx(
            np.histogram(timm_lengths, 8, (0, 1))[0] / len(drawn), abs=0.02
        )
        if side < 50:  # compare the frequency of every length as well, because odd and even lengths could differ
            assert np.bincount(edges[1] - edges[0]) / len(drawn) == pytest.approx(
                np.bincount(timm_edges[1] - timm_edges[0]) / len(drawn), abs=0.015
            )


def test_cutmix_minmax_draws_side_lengths_and_positions_of_boxes_uniformly() -> None:
    lams, boxes = many_draws(cutmix_minmax=(0.25, 0.5))
    top, bottom, left, right = boxes
    assert lams == pytest.approx(1 - (bottom - top) * (right - left) / (200 * 100), abs=1e-6)
    for low, high, side in ((top, bottom, 200), (left, right, 100)):
        lengths = high - low
        assert (lengths.min(), lengths.max()) == (side // 4, side // 2 - 1)
        assert lengths.mean() == pytest.approx(0.375 * side, rel=0.02)
        assert low.min() == 0
        assert high.max() == side
        assert (low + high).mean() / 2 == pytest.approx(side / 2, rel=0.02)
    assert abs(np.corrcoef(bottom - top, right - left)[0, 1]) < 0.03
    _, boxes = many_draws(10, cutmix_minmax=(1.0, 1.0))
    assert (boxes.T == (0, 200, 0, 100)).all()


def test_mixup_prob_and_mixup_switch_prob_are_probabilities_of_mixing_and_of_cutmix() -> None:
    for probability in (0.0, 0.3, 1.0):
        lams, _ = many_draws(mixup=1.0, mixup_prob=probability)
        assert np.mean(lams != 1) == pytest.approx(probability, abs=0.015)
    for switch in (0.0, 0.2, 1.0):
        _, boxes = many_draws(mixup=1.0, cutmix_minmax=(0.3, 0.4), mixup_switch_prob=switch)
        assert np.mean(boxes.any(axis=0)) == pytest.approx(switch, abs=0.015)
    # Without mixup every image gets cutmix; mixup_switch_prob has no effect.
    _, boxes = many_draws(cutmix_minmax=(0.3, 0.4), mixup_switch_prob=0.0)
    assert boxes.any(axis=0).all()


@pytest.mark.parametrize("mode", MODES)
def test_draws_are_a_function_of_seed_iteration_and_rank(mode: str) -> None:
    images, targets = batch(8)

    def mixed(seed: int = 1, iteration: int = 10, rank: int = 0) -> bytes:
        result = make_mixing(CLASSES, seed, mixup=0.8, cutmix=1.0, mixup_mode=mode)(images, targets, iteration, rank)
        return result[0].numpy().tobytes() + result[1].numpy().tobytes()

    expected = mixed()
    np.random.seed(1)
    torch.manual_seed(1)
    global_states = str(np.random.get_state()), torch.get_rng_state().tolist()
    assert mixed() == expected
    assert global_states == (str(np.random.get_state()), torch.get_rng_state().tolist())
    with_other_arguments = {mixed(seed=2), mixed(iteration=11), mixed(rank=1), mixed(2, 11), mixed(2, 10, 1)}
    assert len(with_other_arguments | {expected}) == 6


def test_mixing_stops_at_mixup_off_iter() -> None:
    images, targets = batch(8)
    mixing = make_mixing(mixup=1.0, cutmix=1.0, mixup_off_iter=5)
    for iteration in range(1, 12):
        mixed, mixed_targets = mixing(images, targets, iteration)
        assert torch.equal(mixed, images.float()) == (iteration >= 5)
        assert torch.equal(mixed_targets, torch.nn.functional.one_hot(targets, CLASSES).float()) == (iteration >= 5)


def test_results_do_not_depend_on_the_dtype_and_memory_format_of_images() -> None:
    images, targets = batch(8)
    before = images.clone()
    channels_last = images.contiguous(memory_format=torch.channels_last)  # the memory format of the loader's batches
    for options in OPTIONS.values():
        mixing = make_mixing(mixup_mode="elem", **options)
        expected = mixing(images, targets, 1)
        for variant in (images.float(), images.half(), channels_last, channels_last.float()):
            result = mixing(variant, targets, 1)
            assert result[0].dtype == torch.float32
            assert all(torch.equal(tensor, expected_tensor) for tensor, expected_tensor in zip(result, expected, strict=True))
    assert torch.equal(images, before)


def test_build_mixing_returns_none_without_mixup_and_cutmix() -> None:
    assert build_mixing(AugmentationConfig(mixup_prob=0.5), CLASSES, 0) is None
    for options in OPTIONS.values():
        assert build_mixing(AugmentationConfig(**options), CLASSES, 7) == make_mixing(seed=7, **options)

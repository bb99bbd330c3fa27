"""Mixed images and targets are timm's for the same draws; and the draws are distributed as its are, but a function."""

from typing import Any

import numpy as np
import pytest
import timm.data.mixup
import torch
from torch import Tensor

from shufflenetv2.recipe import Mixing

timm_mixup: Any = timm.data.mixup

MODES = ("batch", "pair", "elem")
KINDS: dict[str, dict[str, Any]] = {
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "cutmix_minmax": {"cutmix_minmax": (0.3, 0.8)},
    "both": {"mixup": 0.8, "cutmix": 1.0},
    "minmax and mixup": {"mixup": 0.8, "cutmix_minmax": (0.3, 0.8)},
    "at times": {"mixup": 0.8, "cutmix": 1.0, "probability": 0.6},
}
HEIGHT, WIDTH, CLASSES = 17, 24, 5


def batch(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


def many_draws(count: int = 20_000, height: int = 200, width: int = 100, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    return Mixing(10, mode="elem", **settings).draw(count, height, width, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [8, 7, 1])
def test_every_image_is_its_share_of_itself_and_the_rest_of_the_one_as_far_from_the_end(
    kind: str, mode: str, count: int
) -> None:
    mixing = Mixing(CLASSES, seed=3, mode=mode, **KINDS[kind])
    images, targets = batch(count)
    for iteration in range(1, 9):
        mixed, goals = mixing(images, targets, iteration)
        shares, boxes = mixing.draw(count, HEIGHT, WIDTH, iteration)
        assert (mixed.dtype, goals.dtype, goals.shape) == (torch.float32, torch.float32, (count, CLASSES))
        for i in range(count):
            other, share = count - 1 - i, float(shares[i])
            top, bottom, left, right = boxes[:, i]
            expected = images[i].double()
            if boxes[:, i].any():
                expected[:, top:bottom, left:right] = images[other, :, top:bottom, left:right].double()
                assert share == pytest.approx(1 - (bottom - top) * (right - left) / (HEIGHT * WIDTH))
            else:
                expected = share * expected + (1 - share) * images[other].double()
            torch.testing.assert_close(mixed[i].double(), expected, rtol=0, atol=1e-4)
            goal = [share * (targets[i] == n).item() + (1 - share) * (targets[other] == n).item() for n in range(CLASSES)]
            assert goals[i].tolist() == pytest.approx(goal, abs=1e-6)
        torch.testing.assert_close(goals.sum(dim=1), torch.ones(count))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_timm_makes_the_same_of_the_same_draws(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixing = Mixing(CLASSES, seed=5, mode=mode, **KINDS[kind])
    images, targets = batch(8)
    for iteration in range(1, 9):
        shares, boxes = mixing.draw(8, HEIGHT, WIDTH, iteration)
        draws = {"batch": 1, "pair": 4, "elem": 8}[mode]
        cut: np.ndarray = (boxes[1] > boxes[0]) & (boxes[3] > boxes[2])
        queue = [(tuple(boxes[:, i]), shares[i]) for i in range(draws) if cut[i]]
        theirs = timm_mixup.Mixup(mode=mode, label_smoothing=0.0, num_classes=CLASSES)
        monkeypatch.setattr(timm_mixup, "cutmix_bbox_and_lam", lambda *_, queue=queue, **__: queue.pop(0))
        monkeypatch.setattr(theirs, "_params_per_batch", lambda shares=shares, cut=cut: (float(shares[0]), bool(cut[0])))
        monkeypatch.setattr(theirs, "_params_per_elem", lambda n, shares=shares, cut=cut: (shares[:n].copy(), cut[:n]))
        expected_images, expected_goals = theirs(images.float(), targets)
        assert not queue
        mixed, goals = mixing(images, targets, iteration)
        torch.testing.assert_close(mixed, expected_images, rtol=0, atol=1e-4)
        torch.testing.assert_close(goals, expected_goals, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_draw_is_shared_by_the_batch_by_pairs_or_by_none(mode: str) -> None:
    shares, _ = Mixing(CLASSES, mixup=1.0, mode=mode).draw(9, HEIGHT, WIDTH, 4)
    assert len(set(shares.tolist())) == {"batch": 1, "pair": 5, "elem": 9}[mode]
    if mode == "pair":
        assert np.array_equal(shares, shares[::-1])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixups_shares_have_the_beta_distribution(alpha: float) -> None:
    shares, boxes = many_draws(mixup=alpha)
    percent = (5, 25, 50, 75, 95)
    expected = np.percentile(np.random.default_rng(0).beta(alpha, alpha, 100_000), percent)
    assert np.percentile(shares, percent) == pytest.approx(expected, abs=0.02)
    assert not boxes.any()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("shape", [(12, 21), (200, 100)])
def test_boxes_are_as_large_and_where_timms_are(alpha: float, shape: tuple[int, int]) -> None:
    shares, boxes = many_draws(10_000, cutmix=alpha, height=shape[0], width=shape[1])
    np.random.seed(0)  # timm's source of randomness
    drawn = [timm_mixup.cutmix_bbox_and_lam((3, *shape), np.random.beta(alpha, alpha)) for _ in range(10_000)]
    theirs, their_shares = np.array([box for box, _ in drawn]).T, np.array([share for _, share in drawn])
    assert shares.mean() == pytest.approx(their_shares.mean(), abs=0.01)
    assert np.quantile(shares, (0.1, 0.5, 0.9)) == pytest.approx(np.quantile(their_shares, (0.1, 0.5, 0.9)), abs=0.025)
    for axis, side in enumerate(shape):
        mine, timms = boxes[2 * axis : 2 * axis + 2], theirs[2 * axis : 2 * axis + 2]
        assert mine.min() >= 0
        assert mine.max() == side
        lengths, their_lengths = ((each[1] - each[0]) / side for each in (mine, timms))
        assert np.histogram(lengths, 8, (0, 1))[0] / len(drawn) == pytest.approx(
            np.histogram(their_lengths, 8, (0, 1))[0] / len(drawn), abs=0.02
        )
        if side < 50:  # each length, and so also odd and even ones
            assert np.bincount(mine[1] - mine[0]) / len(drawn) == pytest.approx(
                np.bincount(timms[1] - timms[0]) / len(drawn), abs=0.015
            )


def test_sides_between_smallest_and_largest_are_drawn_evenly_and_the_box_lies_anywhere() -> None:
    shares, boxes = many_draws(cutmix_minmax=(0.25, 0.5))
    top, bottom, left, right = boxes
    assert shares == pytest.approx(1 - (bottom - top) * (right - left) / (200 * 100), abs=1e-6)
    for low, high, side in ((top, bottom, 200), (left, right, 100)):
        lengths = high - low
        assert (lengths.min(), lengths.max()) == (side // 4, side // 2 - 1)
        assert lengths.mean() == pytest.approx(0.375 * side, rel=0.02)
        assert low.min() == 0
        assert high.max() == side
        assert (low + high).mean() / 2 == pytest.approx(side / 2, rel=0.02)
    assert abs(np.corrcoef(bottom - top, right - left)[0, 1]) < 0.03
    _, whole = many_draws(10, cutmix_minmax=(1.0, 1.0))
    assert (whole.T == (0, 200, 0, 100)).all()


def test_probabilities_are_those_given() -> None:
    for probability in (0.0, 0.3, 1.0):
        shares, _ = many_draws(mixup=1.0, probability=probability)
        assert np.mean(shares != 1) == pytest.approx(probability, abs=0.015)
    for switch in (0.0, 0.2, 1.0):
        _, boxes = many_draws(mixup=1.0, cutmix_minmax=(0.3, 0.4), switch_probability=switch)
        assert np.mean(boxes.any(axis=0)) == pytest.approx(switch, abs=0.015)
    _, boxes = many_draws(cutmix_minmax=(0.3, 0.4), switch_probability=0.0)  # which is for where there are both
    assert boxes.any(axis=0).all()


@pytest.mark.parametrize("mode", MODES)
def test_what_is_drawn_follows_from_seed_iteration_and_process_alone(mode: str) -> None:
    images, targets = batch(8)

    def mixed(seed: int = 1, iteration: int = 10, process: int = 0) -> bytes:
        result = Mixing(CLASSES, seed, mixup=0.8, cutmix=1.0, mode=mode)(images, targets, iteration, process)
        return result[0].numpy().tobytes() + result[1].numpy().tobytes()

    expected = mixed()
    np.random.seed(1)
    torch.manual_seed(1)
    states = str(np.random.get_state()), torch.get_rng_state().tolist()
    assert mixed() == expected
    assert states == (str(np.random.get_state()), torch.get_rng_state().tolist())
    others = {mixed(seed=2), mixed(iteration=11), mixed(process=1), mixed(2, 11), mixed(2, 10, 1)}
    assert len(others | {expected}) == 6


def test_from_one_iteration_on_nothing_is_mixed() -> None:
    images, targets = batch(8)
    mixing = Mixing(CLASSES, mixup=1.0, cutmix=1.0, off_iter=5)
    for iteration in range(1, 12):
        mixed, goals = mixing(images, targets, iteration)
        assert torch.equal(mixed, images.float()) == (iteration >= 5)
        assert torch.equal(goals, torch.nn.functional.one_hot(targets, CLASSES).float()) == (iteration >= 5)


def test_bytes_floats_and_interleaved_images_give_the_same() -> None:
    images, targets = batch(8)
    before = images.clone()
    interleaved = images.contiguous(memory_format=torch.channels_last)  # as the loader hands them over
    for settings in KINDS.values():
        mixing = Mixing(CLASSES, mode="elem", **settings)
        expected = mixing(images, targets, 1)
        for other in (images.float(), images.half(), interleaved, interleaved.float()):
            got = mixing(other, targets, 1)
            assert got[0].dtype == torch.float32
            assert all(torch.equal(mine, wanted) for mine, wanted in zip(got, expected, strict=True))
    assert torch.equal(images, before)

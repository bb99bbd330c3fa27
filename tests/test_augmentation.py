"""What the newer augmentations do to an image, views of one image, and what an evaluation makes of views."""

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from shufflenetv2.data import DataIterator, DecodedImage, Digits, EvaluationTransform, RandomErasing, TrainTransform
from shufflenetv2.data.jitter import draw_jitter
from shufflenetv2.data.transforms import BLUR_KERNEL, CenterCrop, OpencvResize
from shufflenetv2.engine import evaluate
from shufflenetv2.rng import SAMPLE, generator
from tests.support import photograph

SIDE = 32
PIXELS = np.ascontiguousarray(np.asarray(photograph(61, 46, seed=3))[:, :, ::-1])
PLAIN: dict[str, Any] = {"color_jitter": (0.0, 0.0, 0.0), "hflip": 0.0}


def augmented(key: int, **settings: Any) -> np.ndarray:
    """The result for one key of the random streams: (SIDE, SIDE, 3), or (views, SIDE, SIDE, 3)."""
    transform = TrainTransform(SIDE, **settings)
    out = np.empty((transform.views, SIDE, SIDE, 3), np.uint8)
    transform(DecodedImage(PIXELS), out, generator(1, SAMPLE, key))
    return out if transform.views > 1 else out[0]


def negative(pixels: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    """A policy."""
    return 255 - pixels


@pytest.mark.parametrize("hflip", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("jitter", [(0.4, 0.4, 0.4), (0.0, 0.0, 0.0), (0.0, 0.3, 0.0)])
def test_by_default_an_image_is_cropped_flipped_and_jittered_and_nothing_else_is_drawn(
    hflip: float, jitter: tuple[float, float, float]
) -> None:
    """The published recipe, written out, to the last bit and the last draw."""
    transform = TrainTransform(SIDE, hflip=hflip, color_jitter=jitter)
    for key in range(40):
        rng, other = generator(1, SAMPLE, key), generator(1, SAMPLE, key)
        out = np.empty((SIDE, SIDE, 3), np.uint8)
        transform(DecodedImage(PIXELS), out, rng)
        top, left, height, width = transform.draw_crop(46, 61, other)
        flipped = other.random() < hflip
        expected = cv2.resize(PIXELS[top : top + height, left : left + width], (SIDE, SIDE))
        expected = expected[:, ::-1] if flipped else expected
        if any(jitter):
            expected = cv2.transform(np.ascontiguousarray(expected), draw_jitter(jitter, other).matrix(cv2.mean(expected)))
        assert np.array_equal(out, expected)
        assert rng.random() == other.random()


def test_flips_mirror_both_ways_with_their_probabilities() -> None:
    upright = [augmented(key, **PLAIN) for key in range(300)]
    both = PLAIN | {"hflip": 1.0, "vflip": 1.0}
    for key in range(20):
        assert np.array_equal(augmented(key, **PLAIN | {"vflip": 1.0}), upright[key][::-1])
        assert np.array_equal(augmented(key, **both), upright[key][::-1, ::-1])
    flipped = [np.array_equal(augmented(key, **PLAIN | {"vflip": 0.3}), upright[key][::-1]) for key in range(300)]
    assert np.mean(flipped) == pytest.approx(0.3, abs=0.08)


def test_grey_images_are_pillows_and_as_many_as_asked_for() -> None:
    colourful = [augmented(key, **PLAIN) for key in range(300)]
    for key in range(20):
        grey = augmented(key, **PLAIN, grayscale=1.0)
        assert np.array_equal(grey, grey[:, :, :1].repeat(3, axis=2))
        expected = np.asarray(Image.fromarray(np.ascontiguousarray(colourful[key][:, :, ::-1])).convert("L")).astype(int)
        assert np.abs(grey[:, :, 0] - expected).max() <= 1
    kept = [np.array_equal(augmented(key, **PLAIN, grayscale=0.3), colourful[key]) for key in range(300)]
    assert np.mean(kept) == pytest.approx(0.7, abs=0.08)


def test_blurred_images_are_torchvisions_and_as_many_as_asked_for() -> None:
    sharp = [augmented(key, **PLAIN) for key in range(300)]
    for key in range(20):
        rng = generator(1, SAMPLE, key)
        TrainTransform(SIDE).draw_crop(46, 61, rng)
        rng.random(2)  # whether to flip, whether to blur
        sigma = 0.1 + 1.9 * rng.random()
        expected = gaussian_blur(torch.from_numpy(sharp[key]).permute(2, 0, 1), [BLUR_KERNEL] * 2, [sigma] * 2)
        got = augmented(key, **PLAIN, blur=1.0).astype(int)
        assert np.abs(got - expected.permute(1, 2, 0).numpy()).max() <= 1
    kept = [np.array_equal(augmented(key, **PLAIN, blur=0.3), sharp[key]) for key in range(300)]
    assert np.mean(kept) == pytest.approx(0.7, abs=0.08)


INTERPOLATIONS = {
    "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA, "nearest": cv2.INTER_NEAREST,
    "lanczos": cv2.INTER_LANCZOS4,
}  # fmt: skip


def test_images_are_resized_in_the_way_asked_for_in_training_and_in_evaluation() -> None:
    whole = PLAIN | {"scale": (1.0, 1.0), "ratio": (61 / 46, 61 / 46)}
    results = set()
    for name, flag in INTERPOLATIONS.items():
        expected = cv2.resize(PIXELS, (SIDE, SIDE), interpolation=flag)
        assert np.array_equal(augmented(0, **whole, interpolation=name), expected)
        out = np.empty((36, 36, 3), np.uint8)
        EvaluationTransform(36, 36, name)(DecodedImage(PIXELS), out)
        short = cv2.resize(PIXELS, (int(36 / 46 * 61 + 0.5), 36), interpolation=flag)
        assert np.array_equal(out, CenterCrop(36)(short))
        results.add(expected.tobytes())
    assert len(results) == len(INTERPOLATIONS)


def test_a_random_interpolation_is_bilinear_or_bicubic_as_often() -> None:
    bilinear = 0
    for key in range(300):
        got = augmented(key, **PLAIN, interpolation="random")
        ways = [np.array_equal(got, augmented(key, **PLAIN, interpolation=name)) for name in ("bilinear", "bicubic")]
        assert any(ways)
        bilinear += ways[0]
    assert 120 < bilinear < 180


def test_a_policy_comes_after_the_flips_and_before_the_jitter_which_comes_before_grey() -> None:
    def marked(pixels: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
        result = pixels.copy()
        result[0, 0] = (10, 200, 90)
        return result

    transform = TrainTransform(SIDE)
    for key in range(20):
        rng = generator(1, SAMPLE, key)
        transform.draw_crop(46, 61, rng)
        rng.random()
        expected = augmented(key, **PLAIN | {"hflip": 1.0})
        expected[0, 0] = (10, 200, 90)
        assert np.array_equal(augmented(key, **PLAIN | {"hflip": 1.0}, policy=marked), expected)
        expected = cv2.transform(expected, draw_jitter((0.4,) * 3, rng).matrix(cv2.mean(expected)))
        assert np.array_equal(augmented(key, hflip=1.0, policy=marked), expected)
        expected = cv2.transform(expected, np.array([[0.114, 0.587, 0.299]] * 3))
        assert np.array_equal(augmented(key, hflip=1.0, policy=marked, grayscale=1.0), expected)


def test_the_first_of_several_views_is_only_cropped_and_flipped_and_all_are_of_that_crop() -> None:
    for key in range(30):
        for hflip in (0.0, 0.5):
            plain = augmented(key, **PLAIN | {"hflip": hflip})
            views = augmented(key, **PLAIN | {"hflip": hflip}, policy=negative, views=3)
            assert np.array_equal(views, np.stack((plain, 255 - plain, 255 - plain)))
            views = augmented(key, hflip=hflip, views=3, grayscale=0.5, blur=0.5)
            assert np.array_equal(views[0], plain)
            assert not np.array_equal(views[1], plain)
            assert not np.array_equal(views[1], views[2])


@pytest.mark.parametrize("first", [True, False])
def test_the_first_view_is_erased_too_unless_it_is_to_be_left_alone(first: bool) -> None:
    erasing = RandomErasing(1.0, "const", mean=(1.0, 2.0, 3.0))
    for key in range(20):
        plain = augmented(key, **PLAIN)
        views = augmented(key, **PLAIN, views=3, erasing=erasing, erases_first=first)
        erased = [(view != plain).any() and (view[(view != plain).any(axis=2)] == (1, 2, 3)).all() for view in views]
        assert erased == [first, True, True]
        assert not np.array_equal(views[1], views[2])  # each in its own place
    assert (augmented(0, **PLAIN, erasing=erasing) != augmented(0, **PLAIN)).any()


@pytest.mark.parametrize("views", [1, 2, 5, 10])
def test_views_of_an_evaluation_are_the_centre_the_corners_and_their_mirror_images(views: int) -> None:
    resized = OpencvResize(40)(PIXELS)  # 40 rows, 53 columns
    assert resized.shape == (40, 53, 3)
    crops = [resized[4:36, 10:42], resized[:32, :32], resized[:32, 21:], resized[8:, :32], resized[8:, 21:]]
    crops = crops[: 1 if views < 5 else 5]
    expected = crops + ([crop[:, ::-1] for crop in crops] if views in (2, 10) else [])
    transform = EvaluationTransform(SIDE, 40, views=views)
    out = np.empty((views, SIDE, SIDE, 3), np.uint8)
    transform(DecodedImage(PIXELS), out)
    assert np.array_equal(out, np.stack(expected))


def test_a_repeated_sample_stands_beside_itself_and_is_augmented_otherwise() -> None:
    digits = Digits("train")
    with_repeats = DataIterator(digits, TrainTransform(SIDE), 9, seed=4, workers=2, repeats=3)
    order = DataIterator(digits, TrainTransform(SIDE), 9, seed=4, workers=1)
    later = DataIterator(digits, TrainTransform(SIDE), 9, seed=4, workers=1, repeats=3, start_iteration=2)
    singles = order.sample_names(1)
    for iteration in range(1, 4):
        names = with_repeats.sample_names(iteration)
        assert names == [name for name in singles[3 * iteration - 3 : 3 * iteration] for _ in range(3)]
        images, targets = with_repeats.next()
        assert torch.equal(targets.view(3, 3), targets.view(3, 3)[:, :1].expand(3, 3))
        assert len({image.numpy().tobytes() for image in images}) == 9
    assert torch.equal(later.next()[0], images)
    for iterator in (with_repeats, order, later):
        iterator.close()


def test_the_first_views_of_a_batch_come_before_the_second_ones() -> None:
    settings: dict[str, Any] = {"views": 3, "policy": negative, **PLAIN}
    images, targets = DataIterator(Digits("train"), TrainTransform(SIDE, **settings), 4, seed=4, workers=2).next()
    plain, same = DataIterator(Digits("train"), TrainTransform(SIDE, **PLAIN), 4, seed=4, workers=2).next()
    assert images.shape == (12, 3, SIDE, SIDE)
    assert torch.equal(targets, same)
    assert torch.equal(images, torch.cat((plain, 255 - plain, 255 - plain)))


class Lookup(nn.Module):
    """Answers with the logits that its images hold."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def answers(count: int, views: int, n_class: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits (views, N, n_class) and targets (N,)."""
    rng = torch.Generator().manual_seed(count)
    return scale * torch.randn(views, count, n_class, generator=rng), torch.randint(0, n_class, (count,), generator=rng)


@pytest.mark.parametrize("views", [1, 2, 5])
def test_views_are_judged_by_the_mean_of_their_probabilities(views: int) -> None:
    logits, targets = answers(30, views, 7)
    batches = [(logits[:, part].reshape(-1, 7, 1, 1), targets[part]) for part in (slice(0, 8), slice(8, 29), slice(29, 30))]
    result = evaluate(Lookup(), batches)
    mean = logits.double().softmax(dim=2).mean(dim=0)
    ranks = (mean > mean.gather(1, targets[:, None])).sum(dim=1)
    assert result.images == 30
    assert result.loss == pytest.approx(-mean.gather(1, targets[:, None]).log().mean().item(), rel=1e-5)
    assert result.top1_error == pytest.approx((ranks > 0).double().mean().item())
    assert result.top5_error == pytest.approx((ranks > 4).double().mean().item())
    assert result.confusion is None


def test_views_that_are_surely_wrong_have_a_large_loss_and_not_an_infinite_one() -> None:
    logits = torch.tensor([[[200.0, 0.0]], [[300.0, 0.0]]])
    result = evaluate(Lookup(), [(logits.reshape(2, 2, 1, 1), torch.tensor([1]))])
    assert result.loss == pytest.approx(200 + math.log(2), rel=1e-5)


def test_what_is_taken_for_what_is_counted() -> None:
    logits, targets = answers(200, 2, 6)
    batches = [(logits[:, part].reshape(-1, 6, 1, 1), targets[part]) for part in (slice(0, 77), slice(77, 200))]
    result = evaluate(Lookup(), batches, confusion=True)
    guesses = logits.softmax(dim=2).mean(dim=0).argmax(dim=1)
    assert result.confusion is not None
    assert result.confusion.dtype == torch.int64
    assert result.confusion.tolist() == confusion_matrix(targets, guesses, labels=range(6)).tolist()
    assert result.top1_error == pytest.approx(1 - result.confusion.diagonal().sum().item() / 200)

"""Training transforms: order and probabilities of the steps, several views per image. Evaluation of several views per image."""

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
    """Augment PIXELS with the random stream number `key`: (SIDE, SIDE, 3), or (views, SIDE, SIDE, 3)."""
    transform = TrainTransform(SIDE, **settings)
    out = np.empty((transform.views, SIDE, SIDE, 3), np.uint8)
    transform(DecodedImage(PIXELS), out, generator(1, SAMPLE, key))
    return out if transform.views > 1 else out[0]


def negative(pixels: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    """Invert the image; a policy without randomness."""
    return 255 - pixels


@pytest.mark.parametrize("hflip", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("jitter", [(0.4, 0.4, 0.4), (0.0, 0.0, 0.0), (0.0, 0.3, 0.0)])
def test_by_default_an_image_is_cropped_flipped_and_jittered_as_in_the_published_recipe(
    hflip: float, jitter: tuple[float, float, float]
) -> None:
    """Pixels are bit-identical, and the same number of random numbers is drawn."""
    transform = TrainTransform(SIDE, hflip=hflip, color_jitter=jitter)
    for key in range(40):
        rng, reference_rng = generator(1, SAMPLE, key), generator(1, SAMPLE, key)
        out = np.empty((SIDE, SIDE, 3), np.uint8)
        transform(DecodedImage(PIXELS), out, rng)
        top, left, height, width = transform.draw_crop(46, 61, reference_rng)
        flipped = reference_rng.random() < hflip
        expected = cv2.resize(PIXELS[top : top + height, left : left + width], (SIDE, SIDE))
        expected = expected[:, ::-1] if flipped else expected
        if any(jitter):
            expected = cv2.transform(
                np.ascontiguousarray(expected), draw_jitter(jitter, reference_rng).matrix(cv2.mean(expected))
            )
        assert np.array_equal(out, expected)
        assert rng.random() == reference_rng.random()  # no further number was drawn


def test_hflip_and_vflip_flip_in_their_direction_with_the_given_probability() -> None:
    unflipped = [augmented(key, **PLAIN) for key in range(300)]
    both = PLAIN | {"hflip": 1.0, "vflip": 1.0}
    for key in range(20):
        assert np.array_equal(augmented(key, **PLAIN | {"vflip": 1.0}), unflipped[key][::-1])
        assert np.array_equal(augmented(key, **both), unflipped[key][::-1, ::-1])
    flipped = [np.array_equal(augmented(key, **PLAIN | {"vflip": 0.3}), unflipped[key][::-1]) for key in range(300)]
    assert np.mean(flipped) == pytest.approx(0.3, abs=0.08)


def test_grey_images_match_pillow_and_occur_with_the_given_probability() -> None:
    colourful = [augmented(key, **PLAIN) for key in range(300)]
    for key in range(20):
        grey = augmented(key, **PLAIN, grayscale=1.0)
        assert np.array_equal(grey, grey[:, :, :1].repeat(3, axis=2))
        expected = np.asarray(Image.fromarray(np.ascontiguousarray(colourful[key][:, :, ::-1])).convert("L")).astype(int)
        assert np.abs(grey[:, :, 0] - expected).max() <= 1
    unchanged = [np.array_equal(augmented(key, **PLAIN, grayscale=0.3), colourful[key]) for key in range(300)]
    assert np.mean(unchanged) == pytest.approx(0.7, abs=0.08)


def test_blurred_images_match_torchvision_and_occur_with_the_given_probability() -> None:
    sharp = [augmented(key, **PLAIN) for key in range(300)]
    for key in range(20):
        rng = generator(1, SAMPLE, key)
        TrainTransform(SIDE).draw_crop(46, 61, rng)
        rng.random(2)  # whether to flip, whether to blur
        sigma = 0.1 + 1.9 * rng.random()
        expected = gaussian_blur(torch.from_numpy(sharp[key]).permute(2, 0, 1), [BLUR_KERNEL] * 2, [sigma] * 2)
        result = augmented(key, **PLAIN, blur=1.0).astype(int)
        assert np.abs(result - expected.permute(1, 2, 0).numpy()).max() <= 1
    unchanged = [np.array_equal(augmented(key, **PLAIN, blur=0.3), sharp[key]) for key in range(300)]
    assert np.mean(unchanged) == pytest.approx(0.7, abs=0.08)


INTERPOLATIONS = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
    "lanczos": cv2.INTER_LANCZOS4,
}


def test_training_and_evaluation_resize_with_the_given_interpolation() -> None:
    whole = PLAIN | {"scale": (1.0, 1.0), "ratio": (61 / 46, 61 / 46)}
    results = set()
    for name, flag in INTERPOLATIONS.items():
        expected = cv2.resize(PIXELS, (SIDE, SIDE), interpolation=flag)
        assert np.array_equal(augmented(0, **whole, interpolation=name), expected)
        out = np.empty((36, 36, 3), np.uint8)
        EvaluationTransform(36, 36, name)(DecodedImage(PIXELS), out)
        resized = cv2.resize(PIXELS, (int(36 / 46 * 61 + 0.5), 36), interpolation=flag)
        assert np.array_equal(out, CenterCrop(36)(resized))
        results.add(expected.tobytes())
    assert len(results) == len(INTERPOLATIONS)


def test_a_random_interpolation_is_bilinear_or_bicubic_equally_often() -> None:
    bilinear = 0
    for key in range(300):
        result = augmented(key, **PLAIN, interpolation="random")
        matches = [np.array_equal(result, augmented(key, **PLAIN, interpolation=name)) for name in ("bilinear", "bicubic")]
        assert any(matches)
        bilinear += matches[0]
    assert 120 < bilinear < 180


def test_the_order_of_steps_is_flips_policy_jitter_grayscale() -> None:
    def mark_corner(pixels: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
        result = pixels.copy()
        result[0, 0] = (10, 200, 90)
        return result

    transform = TrainTransform(SIDE)
    for key in range(20):
        rng = generator(1, SAMPLE, key)
        transform.draw_crop(46, 61, rng)
        rng.random()  # whether to flip
        expected = augmented(key, **PLAIN | {"hflip": 1.0})
        expected[0, 0] = (10, 200, 90)
        assert np.array_equal(augmented(key, **PLAIN | {"hflip": 1.0}, policy=mark_corner), expected)
        expected = cv2.transform(expected, draw_jitter((0.4,) * 3, rng).matrix(cv2.mean(expected)))
        assert np.array_equal(augmented(key, hflip=1.0, policy=mark_corner), expected)
        expected = cv2.transform(expected, np.array([[0.114, 0.587, 0.299]] * 3))
        assert np.array_equal(augmented(key, hflip=1.0, policy=mark_corner, grayscale=1.0), expected)


def test_several_views_share_one_crop_and_the_first_is_only_cropped_and_flipped() -> None:
    for key in range(30):
        for hflip in (0.0, 0.5):
            plain = augmented(key, **PLAIN | {"hflip": hflip})
            views = augmented(key, **PLAIN | {"hflip": hflip}, policy=negative, views=3)
            assert np.array_equal(views, np.stack((plain, 255 - plain, 255 - plain)))
            views = augmented(key, hflip=hflip, views=3, grayscale=0.5, blur=0.5)
            assert np.array_equal(views[0], plain)
            assert not np.array_equal(views[1], plain)
            assert not np.array_equal(views[1], views[2])


@pytest.mark.parametrize("erases_first", [True, False])
def test_the_first_view_is_erased_unless_erases_first_is_false(erases_first: bool) -> None:
    erasing = RandomErasing(1.0, "const", mean=(1.0, 2.0, 3.0))
    for key in range(20):
        plain = augmented(key, **PLAIN)
        views = augmented(key, **PLAIN, views=3, erasing=erasing, erases_first=erases_first)
        erased = [(view != plain).any() and (view[(view != plain).any(axis=2)] == (1, 2, 3)).all() for view in views]
        assert erased == [erases_first, True, True]
        assert not np.array_equal(views[1], views[2])  # each view has a rectangle of its own
    assert (augmented(0, **PLAIN, erasing=erasing) != augmented(0, **PLAIN)).any()


@pytest.mark.parametrize("views", [1, 2, 5, 10])
def test_evaluation_views_are_the_centre_the_corners_and_their_mirror_images(views: int) -> None:
    resized = OpencvResize(40)(PIXELS)  # 40 rows, 53 columns
    assert resized.shape == (40, 53, 3)
    crops = [resized[4:36, 10:42], resized[:32, :32], resized[:32, 21:], resized[8:, :32], resized[8:, 21:]]
    crops = crops[: 1 if views < 5 else 5]
    expected = crops + ([crop[:, ::-1] for crop in crops] if views in (2, 10) else [])
    transform = EvaluationTransform(SIDE, 40, views=views)
    out = np.empty((views, SIDE, SIDE, 3), np.uint8)
    transform(DecodedImage(PIXELS), out)
    assert np.array_equal(out, np.stack(expected))


def test_repeats_of_a_sample_follow_each_other_and_are_augmented_differently() -> None:
    digits = Digits("train")
    with_repeats = DataIterator(digits, TrainTransform(SIDE), 9, seed=4, workers=2, repeats=3)
    order = DataIterator(digits, TrainTransform(SIDE), 9, seed=4, workers=1)
    resumed = DataIterator(digits, TrainTransform(SIDE), 9, seed=4, workers=1, repeats=3, start_iteration=2)
    singles = order.sample_names(1)
    for iteration in range(1, 4):
        names = with_repeats.sample_names(iteration)
        assert names == [name for name in singles[3 * iteration - 3 : 3 * iteration] for _ in range(3)]
        images, targets = with_repeats.next()
        assert torch.equal(targets.view(3, 3), targets.view(3, 3)[:, :1].expand(3, 3))
        assert len({image.numpy().tobytes() for image in images}) == 9
    assert torch.equal(resumed.next()[0], images)
    for iterator in (with_repeats, order, resumed):
        iterator.close()


def test_a_batch_holds_all_first_views_before_all_second_views() -> None:
    settings: dict[str, Any] = {"views": 3, "policy": negative, **PLAIN}
    images, targets = DataIterator(Digits("train"), TrainTransform(SIDE, **settings), 4, seed=4, workers=2).next()
    plain, plain_targets = DataIterator(Digits("train"), TrainTransform(SIDE, **PLAIN), 4, seed=4, workers=2).next()
    assert images.shape == (12, 3, SIDE, SIDE)
    assert torch.equal(targets, plain_targets)
    assert torch.equal(images, torch.cat((plain, 255 - plain, 255 - plain)))


class LogitsFromPixels(nn.Module):
    """Return the pixels of the images as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def random_logits(count: int, views: int, n_class: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return logits (views, N, n_class) and targets (N,)."""
    rng = torch.Generator().manual_seed(count)
    return scale * torch.randn(views, count, n_class, generator=rng), torch.randint(0, n_class, (count,), generator=rng)


@pytest.mark.parametrize("views", [1, 2, 5])
def test_evaluation_averages_the_probabilities_of_the_views(views: int) -> None:
    logits, targets = random_logits(30, views, 7)
    batches = [(logits[:, part].reshape(-1, 7, 1, 1), targets[part]) for part in (slice(0, 8), slice(8, 29), slice(29, 30))]
    result = evaluate(LogitsFromPixels(), batches)
    mean = logits.double().softmax(dim=2).mean(dim=0)
    ranks = (mean > mean.gather(1, targets[:, None])).sum(dim=1)
    assert result.images == 30
    assert result.loss == pytest.approx(-mean.gather(1, targets[:, None]).log().mean().item(), rel=1e-5)
    assert result.top1_error == pytest.approx((ranks > 0).double().mean().item())
    assert result.top5_error == pytest.approx((ranks > 4).double().mean().item())
    assert result.predictions is None


def test_confidently_wrong_views_have_a_finite_loss() -> None:
    logits = torch.tensor([[[200.0, 0.0]], [[300.0, 0.0]]])
    result = evaluate(LogitsFromPixels(), [(logits.reshape(2, 2, 1, 1), torch.tensor([1]))])
    assert result.loss == pytest.approx(200 + math.log(2), rel=1e-5)


def test_the_confusion_matrix_counts_predicted_classes() -> None:
    logits, targets = random_logits(200, 2, 6)
    batches = [(logits[:, part].reshape(-1, 6, 1, 1), targets[part]) for part in (slice(0, 77), slice(77, 200))]
    result = evaluate(LogitsFromPixels(), batches, predictions=True)
    guesses = logits.softmax(dim=2).mean(dim=0).argmax(dim=1)
    assert result.predictions is not None
    matrix = result.predictions.confusion_matrix(6)
    assert matrix.tolist() == confusion_matrix(targets, guesses, labels=range(6)).tolist()
    assert result.top1_error == pytest.approx(1 - matrix.trace() / 200)

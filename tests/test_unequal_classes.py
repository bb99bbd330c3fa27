"""Training with classes of unequal size: weights of the classes in the loss, focal loss, balanced sampling."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from shufflenetv2 import recalibrate
from shufflenetv2.config import AugmentationConfig, DistillationConfig, OptimizationConfig
from shufflenetv2.errors import UserError
from shufflenetv2.recipe import LossFunction, Mixing, build_class_weights, build_loss
from tests.support import Train, same_tensors

COUNTS = {"cat": 20, "dog": 5, "owl": 2}
CLASSES = len(COUNTS)
TARGETS = np.repeat(np.arange(CLASSES), list(COUNTS.values()))


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make class folders with 20, 5 and 2 small images, each class in another colour."""
    folder = tmp_path_factory.mktemp("unequal")
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(COUNTS.items()):
        (folder / name).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            pixels[..., label] += 120
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def arguments_for(folder: Path, *arguments: str | Path) -> list[str | Path]:
    """Return the command line of a run of six iterations on the images in `folder`."""
    common: list[str | Path] = [
        "--train-dir", folder, "--val-dir", folder, "--model-size", "0.5x", "--input-size", "32", "--batch-size", "6",
        "--total-iters", "6", "--display-interval", "2", "--device", "cpu", "--no-figures", "--workers", "1",
    ]  # fmt: skip
    return [*common, *arguments]


# ---- class weights


def make_loss(class_weights: Tensor | None, **options: Any) -> LossFunction:
    """Build a loss without a teacher; with `jsd` for three views."""
    augmentation = AugmentationConfig(aug_splits=3)
    return build_loss(OptimizationConfig(**options), augmentation, DistillationConfig(), class_weights)


def logits_and_targets() -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, class indices, and the targets of their mixtures (class probabilities)."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, CLASSES, generator=generator)
    targets = torch.randint(0, CLASSES, (12,), generator=generator)
    mixing = Mixing(AugmentationConfig(mixup=1.0, mixup_mode="elem"), CLASSES)
    return logits, targets, mixing(torch.zeros(12, 3, 8, 8), targets, 1)[1]


WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def test_balanced_weights_are_those_of_scikit_learn_and_sqrt_is_in_proportion_to_their_root() -> None:
    names = list(COUNTS)
    balanced, root = (build_class_weights(option, names, TARGETS) for option in ("balanced", "sqrt"))
    assert balanced is not None
    assert root is not None
    expected = compute_class_weight("balanced", classes=np.arange(CLASSES), y=TARGETS)
    np.testing.assert_allclose(balanced, expected, rtol=1e-6)
    torch.testing.assert_close(root / root[0], (balanced / balanced[0]).sqrt())
    assert root[TARGETS].mean().item() == pytest.approx(1)

    with_empty_class = build_class_weights("balanced", ["ant", *names], TARGETS + 1)
    assert with_empty_class is not None
    assert torch.equal(with_empty_class[1:], balanced)
    assert build_class_weights("", names, TARGETS) is None


def test_without_smoothing_the_weighted_loss_is_torchs_with_a_fixed_divisor() -> None:
    logits, targets, mixed = logits_and_targets()
    loss = make_loss(WEIGHTS, label_smooth=0.0)
    summed = functional.cross_entropy(logits, targets, WEIGHTS, reduction="sum")
    torch.testing.assert_close(loss(logits, targets), summed / 12)  # torch's mean divides by the sum of the weights
    torch.testing.assert_close(loss(logits, mixed), functional.cross_entropy(logits, mixed, WEIGHTS))  # here it does not


@pytest.mark.parametrize("options", [{}, {"bce_loss": True}], ids=["cross-entropy", "binary"])
def test_the_loss_of_an_image_counts_with_the_weight_of_its_class(options: dict[str, bool]) -> None:
    logits, targets, mixed = logits_and_targets()
    plain, weighted = make_loss(None, **options), make_loss(WEIGHTS, **options)
    losses = torch.stack([plain(logits[i : i + 1], targets[i : i + 1]) for i in range(12)])  # with label smoothing
    torch.testing.assert_close(weighted(logits, targets), (WEIGHTS[targets] * losses).mean())
    halves = [weighted(logits[part], targets[part]) for part in (slice(0, 6), slice(6, 12))]
    torch.testing.assert_close(sum(halves), 2 * weighted(logits, targets))  # as with accumulation or several processes

    # A mixture counts as both of its images, each with its own weight.
    lam = mixed.gather(1, targets[:, None]).squeeze(1)
    lam = torch.where(targets == targets.flip(0), 1.0, lam)
    parts = [
        weight * WEIGHTS[label] * plain(logits[i : i + 1], label[None])
        for i in range(12)
        for label, weight in ((targets[i], lam[i]), (targets.flip(0)[i], 1 - lam[i]))
    ]
    torch.testing.assert_close(weighted(logits, mixed), torch.stack(parts).sum() / 12)


def test_equal_weights_change_no_loss() -> None:
    logits, targets, mixed = logits_and_targets()
    ones = torch.ones(CLASSES)
    for options in ({}, {"bce_loss": True}):
        for kind in (targets, mixed):
            torch.testing.assert_close(make_loss(ones, **options)(logits, kind), make_loss(None, **options)(logits, kind))
    views = targets[:4].repeat(3)
    torch.testing.assert_close(make_loss(ones, jsd=True)(logits, views), make_loss(None, jsd=True)(logits, views))


def test_only_the_cross_entropy_of_views_is_weighted() -> None:
    logits, targets, _ = logits_and_targets()
    views = targets[:4].repeat(3)
    difference = make_loss(WEIGHTS, jsd=True)(logits, views) - make_loss(None, jsd=True)(logits, views)
    expected = make_loss(WEIGHTS)(logits[:4], targets[:4]) - make_loss(None)(logits[:4], targets[:4])
    torch.testing.assert_close(difference, expected)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.txt", "owl 8\n\ncat  1\nbig dog 2.0\n"),
        ("weights.csv", 'class,weight\ncat,1\n"big dog", 2\nowl,8\n'),
        ("weights.json", json.dumps({"owl": 8, "cat": 1.0, "big dog": 2})),
    ],
)
def test_weights_of_a_file_count_in_their_ratios(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    weights = build_class_weights(str(tmp_path / name), ["big dog", "cat", "owl"], np.array([0, 0, 1, 1, 1, 1, 2]))
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([2.0, 1.0, 8.0]) * 7 / 16)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.txt", "cat 1\ndog 2\nowl 3\nauk 4", "names the class 'auk', which is none of the 3 classes .*; remove it"),
        ("w.txt", "cat 1\nDog 2\nowl 3", "names the class 'Dog', .*; did you mean 'dog'?"),
        ("w.txt", "cat 1", "has no weight for the class 'dog' and 1 more; add a line for each class"),
        ("w.txt", "cat 1\ncat 2", "names the class 'cat' twice"),
        ("w.txt", "cat 0\ndog 1\nowl 1", "gives 'cat' the weight 0: must be a number above 0"),
        ("w.csv", "cat,one\ndog,1\nowl,1", "gives 'cat' the weight one: must be a number above 0"),
        ("w.csv", "cat,inf", "the weight inf: must be"),
        ("w.csv", "cat,1\ndog", "line 2: must hold a class and its weight"),
        ("w.json", '{"cat": -1}', "the weight -1: must be"),
        ("w.json", '{"cat": 1, "cat": 2}', "names the class 'cat' twice"),
        ("w.json", '[["cat", 1]]', "must hold an object of classes and numbers"),
        ("w.json", "{", "is not JSON"),
        ("w.json", "[" * 100_000, "is not JSON"),
        ("w.csv", "cat," + "1" * 200_000, "is not a table: field larger"),
        ("w.txt", "cat 1e300\ndog 1\nowl 1", "differ by more than a 32-bit number can hold"),
        ("balnced", None, "cannot be read: No such file or directory; did you mean balanced?"),
        ("absent.txt", None, "cannot be read: No such file or directory; it may also be balanced or sqrt"),
    ],
)
def test_unusable_weights_get_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        build_class_weights(name, list(COUNTS), TARGETS)
    assert str(error.value).startswith(f"`class_weights` {name}")
    assert "\n" not in str(error.value)


def test_a_run_logs_its_class_weights_and_refuses_those_without_effect(
    train_here: Train, unequal: Path, tmp_path: Path
) -> None:
    weighted = train_here(*arguments_for(unequal, "--class-weights", "balanced"))
    assert weighted.returncode == 0, weighted.stderr
    assert "class weights from 0.45 (cat) to 4.5 (owl), with mean 1 over the samples of an epoch" in weighted.stdout
    assert "--balanced-sampling" not in weighted.stdout
    (tmp_path / "w.txt").write_text("cat 1\n")
    for arguments, message in (
        (("--class-weights", "w.txt", "--save", "other"), "--class-weights w.txt has no weight for the class 'dog' and 1 more"),
        (("--class-weights", "sqrt"), "--class-weights was balanced and is sqrt"),
        (
            ("--class-weights", "sqrt", "--balanced-sampling"),
            "--class-weights sqrt is for classes that are drawn in proportion",
        ),
        (("--class-weights", "sqrt", "--teacher", "x", "--distill-alpha", "1"), "no effect with --distill-alpha 1"),
    ):
        refused = train_here(*arguments_for(unequal, *arguments))
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert message in refused.stderr


# ---- focal loss


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_focal_loss_is_torchvisions(gamma: float, smoothing: float) -> None:
    logits, targets, mixed = logits_and_targets()
    binary = make_loss(None, bce_loss=True, focal_gamma=gamma, label_smooth=smoothing)
    for kind, probabilities in ((targets, functional.one_hot(targets, CLASSES).float()), (mixed, mixed)):
        smoothed = probabilities * (1 - smoothing) + smoothing / CLASSES
        expected = sigmoid_focal_loss(logits, smoothed, alpha=-1, gamma=gamma, reduction="mean")
        torch.testing.assert_close(binary(logits, kind), expected)

    # For two classes the softmax of (a, b) is the sigmoid of a - b.
    pairs, first = logits[:, :2], mixed[:, 0]
    cross_entropy = make_loss(None, focal_gamma=gamma, label_smooth=smoothing)
    smoothed = first * (1 - smoothing) + smoothing / 2
    expected = sigmoid_focal_loss(pairs[:, 0] - pairs[:, 1], smoothed, alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(cross_entropy(pairs, torch.stack((first, 1 - first), 1)), expected)


def test_the_focal_loss_of_a_class_is_its_cross_entropy_times_the_power_of_its_improbability() -> None:
    logits, targets, _ = logits_and_targets()
    p = logits.softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
    losses = (1 - p) ** 1.5 * -p.log()
    torch.testing.assert_close(make_loss(None, focal_gamma=1.5, label_smooth=0.0)(logits, targets), losses.mean())
    weighted = make_loss(WEIGHTS, focal_gamma=1.5, label_smooth=0.0)(logits, targets)
    torch.testing.assert_close(weighted, (WEIGHTS[targets] * losses).mean())


@pytest.mark.parametrize("options", [{}, {"bce_loss": True}], ids=["cross-entropy", "binary"])
def test_certain_images_have_finite_focal_gradients(options: dict[str, bool]) -> None:
    logits = torch.tensor([[99.0, -99.0, -99.0], [-99.0, 99.0, -99.0]], requires_grad=True)
    torch.autograd.backward(make_loss(None, focal_gamma=0.5, label_smooth=0.0, **options)(logits, torch.tensor([0, 0])))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# ---- balanced sampling


def test_weights_of_a_file_have_mean_1_over_a_balanced_epoch(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("cat 1\ndog 2\nowl 6\n")
    weights = build_class_weights(str(tmp_path / "w.txt"), list(COUNTS), TARGETS, balanced_sampling=True)
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, 6.0]) / 3)


def test_an_interrupted_run_with_balanced_classes_continues_to_the_same_bits_and_can_become_balanced_later(
    train_here: Train, unequal: Path, tmp_path: Path
) -> None:
    (tmp_path / "w.csv").write_text("cat,1\ndog,2\nowl,6\n")
    options = ("--balanced-sampling", "--class-weights", "w.csv", "--focal-gamma", "2", "--aug-repeats", "2", "--mixup", "0.2")
    balanced = arguments_for(unequal, *options, "--total-iters", "10")
    assert train_here(*balanced, "--save", "whole").returncode == 0
    stopped = train_here(*balanced, "--save", "stopped", "--hook", "tests.support:Stop")
    assert stopped.returncode == 143
    assert train_here(*balanced, "--save", "stopped", "--workers", "3").returncode == 0
    plain = train_here(*arguments_for(unequal), "--save", "changed")
    assert plain.returncode == 0
    assert "--class-weights balanced or --balanced-sampling gives small classes more weight" in plain.stdout
    continued = train_here(*balanced, "--change-recipe", "--save", "changed")
    assert continued.returncode == 0, continued.stderr
    assert "balanced-sampling False -> True" in continued.stdout

    results = {
        name: torch.load(tmp_path / name / "model.pkl", weights_only=True)["state_dict"]
        for name in ("whole", "stopped", "changed")
    }
    assert same_tensors(results["whole"], results["stopped"])
    assert not same_tensors(results["whole"], results["changed"])

    recalibrated = recalibrate("whole/checkpoint-000010.pth.tar", tmp_path / "again.pkl", train_dir=str(unequal), batch_size=6)
    assert same_tensors(recalibrated.state_dict, results["whole"])  # the images come in the same order

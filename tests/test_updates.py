"""What is minimised, and how a step is taken: losses, parts of a batch, clipping, scaling, averaging."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm.data.mixup
import timm.loss
import timm.utils
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.config import AugmentationConfig, DistillationConfig, OptimizationConfig
from shufflenetv2.engine import train_step
from shufflenetv2.recipe import AveragedWeights, DistillationLoss, LossFunction, Mixing, build_loss, clip_gradients

timm_loss: Any = timm.loss
timm_mixup: Any = timm.data.mixup

CLASSES = 10


def make_loss(label_smooth: float = 0.1, **options: Any) -> LossFunction:
    """Build a loss without a teacher; with `jsd` for three views."""
    optimization = OptimizationConfig(label_smooth=label_smooth, **options)
    return build_loss(optimization, AugmentationConfig(aug_splits=3), DistillationConfig())


def logits_and_goals() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, classes, and shares of classes."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, CLASSES, generator=generator)
    targets = torch.randint(0, CLASSES, (12,), generator=generator)
    _, shares = Mixing(AugmentationConfig(mixup=1.0, mixup_mode="elem"), CLASSES)(torch.zeros(12, 3, 8, 8), targets, 1)
    return logits, targets, shares


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_the_losses_are_timms_of_classes_and_of_mixtures(smoothing: float) -> None:
    logits, targets, shares = logits_and_goals()
    # Timm smooths the targets when it mixes them, and here the loss does: shares.
    smoothed = shares * (1 - smoothing) + smoothing / CLASSES
    mixed = timm_mixup.mixup_target(targets, CLASSES, 0.7, smoothing)
    unsmoothed = timm_mixup.mixup_target(targets, CLASSES, 0.7, 0.0)

    cross_entropy, theirs = make_loss(smoothing), timm_loss.SoftTargetCrossEntropy()
    torch.testing.assert_close(cross_entropy(logits, targets), timm_loss.LabelSmoothingCrossEntropy(smoothing)(logits, targets))
    torch.testing.assert_close(cross_entropy(logits, shares), theirs(logits, smoothed))
    torch.testing.assert_close(cross_entropy(logits, unsmoothed), theirs(logits, mixed))

    binary, theirs = make_loss(smoothing, bce_loss=True), timm_loss.BinaryCrossEntropy(smoothing)
    torch.testing.assert_close(binary(logits, targets), theirs(logits, targets))
    torch.testing.assert_close(binary(logits, shares), theirs(logits, smoothed))
    torch.testing.assert_close(binary(logits, unsmoothed), theirs(logits, mixed))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_divergence_of_views_is_added_to_the_cross_entropy_of_the_first(smoothing: float) -> None:
    logits, targets, _ = logits_and_goals()
    targets = targets[:4].repeat(3)  # as the loop gives them
    got = make_loss(smoothing, jsd=True)(logits, targets)
    torch.testing.assert_close(got, timm_loss.JsdCrossEntropy(3, smoothing=smoothing)(logits, targets))
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    torch.autograd.backward(make_loss(smoothing, jsd=True)(ours, targets))
    torch.autograd.backward(timm_loss.JsdCrossEntropy(3, smoothing=smoothing)(theirs, targets))
    torch.testing.assert_close(ours.grad, theirs.grad)
    views = logits.view(3, 4, CLASSES).softmax(dim=2)
    mean = views.mean(dim=0)
    divergence = sum((view * (view / mean).log()).sum() for view in views) / 4 / 3  # alpha is 12, as in the paper
    expected = functional.cross_entropy(logits[:4], targets[:4], label_smoothing=smoothing) + 12 * divergence
    torch.testing.assert_close(got, expected)


def test_views_that_are_certain_have_gradients_too() -> None:
    logits = torch.tensor([[90.0, -90.0], [0.0, 1.0], [0.5, 0.0]], requires_grad=True)  # the first's shares are 1 and 0
    torch.autograd.backward(make_loss(jsd=True)(logits, torch.tensor([0, 0, 0])))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def small_network() -> ShuffleNetV2:
    """In double precision, where only a mistake shows; in eval mode, since batch norm looks at a whole part."""
    network = ShuffleNetV2(32, CLASSES, "0.5x")
    network.initialize_weights(torch.Generator().manual_seed(1))
    return network.double().eval()


def images_and_goals(count: int) -> tuple[Tensor, dict[str, tuple[Any, LossFunction]]]:
    """Images, and goals with the loss that takes them."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, CLASSES, (count,), generator=generator)
    _, shares = Mixing(AugmentationConfig(mixup=1.0, mixup_mode="elem"), CLASSES)(images, targets, 1)
    teachers = torch.randn(count, CLASSES, generator=generator)
    loss = make_loss()
    return images, {
        "classes": (targets, loss),
        "shares": (shares.double(), loss),
        "binary": (shares.double(), make_loss(bce_loss=True)),
        "teacher": ((targets, teachers.double()), DistillationLoss(loss, 0.5, 4.0)),
        "teacher and shares": ((shares.double(), teachers.double()), DistillationLoss(loss, 0.5, 4.0)),
    }


def step(
    goal: Any, images: Tensor, loss_function: LossFunction, rate: float = 1.0, **settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, logits, and how far each weight went."""
    network = small_network()
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    if "limit" in settings:
        limit = settings.pop("limit")
        settings["clip"] = lambda: clip_gradients(network.parameters(), limit, "norm")
    loss, logits = train_step(network, images, goal, loss_function, optimizer, **settings)
    return loss, logits, nn.utils.parameters_to_vector(network.parameters()).detach() - before


@pytest.mark.parametrize("kind", ["classes", "shares", "binary", "teacher", "teacher and shares"])
def test_a_batch_in_parts_is_the_batch(kind: str) -> None:
    images, goals = images_and_goals(64)
    goal, loss_function = goals[kind]
    whole, in_parts = step(goal, images, loss_function), step(goal, images, loss_function, accum_steps=4)
    assert whole[2].norm() > 0.01
    for one, other in zip(whole, in_parts, strict=True):
        assert one.shape == other.shape
        assert not other.requires_grad
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8)  # the losses are of single precision in part


def test_no_part_is_larger_than_its_share() -> None:
    sizes: list[int] = []
    network = small_network()
    network.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    images, goals = images_and_goals(16)
    train_step(network, images, *goals["classes"], torch.optim.SGD(network.parameters(), lr=0.1), accum_steps=4)
    assert sizes == [4] * 4


@pytest.mark.parametrize("accum_steps", [1, 4])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_gradient_is_limited_after_the_backward_pass_and_before_the_update(accum_steps: int, scaled: bool) -> None:
    images, goals = images_and_goals(16)
    goal, loss_function = goals["classes"]

    def moved(**settings: Any) -> Tensor:
        scaler = GradScaler("cpu", init_scale=2.0**16) if scaled else None
        return step(goal, images, loss_function, scaler=scaler, accum_steps=accum_steps, **settings)[2]

    free = moved()
    assert free.norm() > 0.01
    torch.testing.assert_close(moved(limit=0.001), free * 0.001 / free.norm(), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(moved(limit=1e6), free, rtol=1e-6, atol=1e-9)


def test_clipping_happens_once_with_all_gradients_and_the_old_weights() -> None:
    images, goals = images_and_goals(16)
    network = small_network()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    calls: list[bool] = []

    def clip() -> None:
        untouched = all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
        calls.append(untouched and all(parameter.grad is not None for parameter in network.parameters()))

    train_step(network, images, *goals["classes"], torch.optim.SGD(network.parameters(), lr=0.1), accum_steps=4, clip=clip)
    assert calls == [True]
    assert not all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("clip", [None, lambda: None], ids=["free", "clipped"])
def test_a_step_whose_scaled_gradients_are_not_finite_is_left_out_and_the_scale_falls(clip: Callable[[], None] | None) -> None:
    images, goals = images_and_goals(8)
    network = small_network().float()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer, scaler = torch.optim.SGD(network.parameters(), lr=0.1), GradScaler("cpu", init_scale=2.0**127)
    goal, loss_function = goals["classes"]

    def steep(logits: Tensor, targets: Tensor) -> Tensor:
        return loss_function(logits, targets) * 1e30

    losses = [float(train_step(network, images, goal, steep, optimizer, scaler, clip=clip)[0]) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)  # the loss that is told is not scaled
    assert scaler.get_scale() == 2.0**124
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("accum_steps", [1, 4])
def test_scaling_the_loss_changes_nothing_else(accum_steps: int) -> None:
    images, goals = images_and_goals(16)
    goal, loss_function = goals["classes"]
    scaled = step(goal, images, loss_function, accum_steps=accum_steps, scaler=GradScaler("cpu", init_scale=1024.0))
    for one, other in zip(step(goal, images, loss_function, accum_steps=accum_steps), scaled, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_gradients_of_the_step_before_are_forgotten() -> None:
    images, goals = images_and_goals(16)
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    train_step(network, images, *goals["classes"], optimizer)
    first = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    train_step(network, images, *goals["classes"], optimizer)
    assert all(torch.equal(a, b.grad) for a, b in zip(first, network.parameters(), strict=True) if b.grad is not None)


@pytest.mark.parametrize("decay", [0.5, 0.9998])
@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_keeps_what_timms_keeps(decay: float, warmup: bool) -> None:
    network = ShuffleNetV2(32, 5, "0.5x")
    averaged = AveragedWeights(network, decay, warmup=warmup)
    theirs = timm.utils.ModelEmaV3(network, decay=decay, use_warmup=warmup)
    for iteration in (1, 2, 3, 10, 1000, 100_000, 10_000_000):
        # Without a warm-up timm's first update is a copy all the same; ours keeps the initial weights' share.
        expected = decay if iteration == 1 and not warmup else theirs.get_decay(iteration)
        assert averaged.decay_of(iteration) == pytest.approx(expected, abs=1e-12)


def test_the_average_under_a_warm_up_is_timms() -> None:
    network = ShuffleNetV2(32, 5, "0.5x").train()
    averaged, theirs = AveragedWeights(network, 0.9, warmup=True), timm.utils.ModelEmaV3(network, 0.9, use_warmup=True)
    for iteration in range(1, 5):
        network(torch.rand(4, 3, 32, 32) * 255)  # moves the statistics
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(iteration)
        averaged.update(network, iteration)
        theirs.update(network, iteration)
        if iteration == 1:
            assert all(map(torch.equal, averaged.network.parameters(), network.parameters()))
    for (name, mine), other in zip(averaged.network.state_dict().items(), theirs.module.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


def test_an_average_in_the_hosts_memory_is_the_same_and_is_evaluated_as_a_copy_elsewhere() -> None:
    network = ShuffleNetV2(32, 5, "0.5x")
    beside, on_host = AveragedWeights(network, 0.9), AveragedWeights(network, 0.9, device=torch.device("cpu"))
    with torch.no_grad():
        network.classifier[0].weight.add_(1)  # type: ignore[operator]
    for averaged in (beside, on_host):
        averaged.update(network, 1)
        assert averaged.on(torch.device("cpu")) is averaged.network
    states = beside.network.state_dict(), on_host.network.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    elsewhere = on_host.on(torch.device("meta"))
    assert {parameter.device.type for parameter in elsewhere.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in on_host.network.parameters()} == {"cpu"}

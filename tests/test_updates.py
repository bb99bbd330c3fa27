"""The losses, and one update: accumulation steps, clipping, loss scaling, averaged weights."""

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


def logits_and_targets() -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, class indices and mixed targets (class probabilities)."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, CLASSES, generator=generator)
    targets = torch.randint(0, CLASSES, (12,), generator=generator)
    _, mixed_targets = Mixing(AugmentationConfig(mixup=1.0, mixup_mode="elem"), CLASSES)(torch.zeros(12, 3, 8, 8), targets, 1)
    return logits, targets, mixed_targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_the_losses_equal_those_of_timm_for_classes_and_mixed_targets(smoothing: float) -> None:
    logits, targets, mixed_targets = logits_and_targets()
    # timm smooths the targets when it mixes them; here the loss does.
    smoothed = mixed_targets * (1 - smoothing) + smoothing / CLASSES
    mixed = timm_mixup.mixup_target(targets, CLASSES, 0.7, smoothing)
    unsmoothed = timm_mixup.mixup_target(targets, CLASSES, 0.7, 0.0)

    cross_entropy, reference = make_loss(smoothing), timm_loss.SoftTargetCrossEntropy()
    torch.testing.assert_close(cross_entropy(logits, targets), timm_loss.LabelSmoothingCrossEntropy(smoothing)(logits, targets))
    torch.testing.assert_close(cross_entropy(logits, mixed_targets), reference(logits, smoothed))
    torch.testing.assert_close(cross_entropy(logits, unsmoothed), reference(logits, mixed))

    binary, reference = make_loss(smoothing, bce_loss=True), timm_loss.BinaryCrossEntropy(smoothing)
    torch.testing.assert_close(binary(logits, targets), reference(logits, targets))
    torch.testing.assert_close(binary(logits, mixed_targets), reference(logits, smoothed))
    torch.testing.assert_close(binary(logits, unsmoothed), reference(logits, mixed))

    for threshold in (0.0, 0.2, 0.5):  # 0.2 is between the two classes that are mixed, and between these and the others
        binary = make_loss(smoothing, bce_loss=True, bce_target_thresh=threshold)
        reference = timm_loss.BinaryCrossEntropy(smoothing, target_threshold=threshold)
        torch.testing.assert_close(binary(logits, targets), reference(logits, targets))
        torch.testing.assert_close(binary(logits, unsmoothed), reference(logits, mixed))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_divergence_of_views_is_added_to_the_cross_entropy_of_the_first(smoothing: float) -> None:
    logits, targets, _ = logits_and_targets()
    targets = targets[:4].repeat(3)  # as the loop gives them
    loss = make_loss(smoothing, jsd=True)(logits, targets)
    torch.testing.assert_close(loss, timm_loss.JsdCrossEntropy(3, smoothing=smoothing)(logits, targets))
    own, reference = (logits.clone().requires_grad_() for _ in range(2))
    torch.autograd.backward(make_loss(smoothing, jsd=True)(own, targets))
    torch.autograd.backward(timm_loss.JsdCrossEntropy(3, smoothing=smoothing)(reference, targets))
    torch.testing.assert_close(own.grad, reference.grad)
    views = logits.view(3, 4, CLASSES).softmax(dim=2)
    mean = views.mean(dim=0)
    divergence = sum((view * (view / mean).log()).sum() for view in views) / 4 / 3  # alpha is 12, as in the paper
    expected = functional.cross_entropy(logits[:4], targets[:4], label_smoothing=smoothing) + 12 * divergence
    torch.testing.assert_close(loss, expected)


def test_certain_views_have_finite_gradients() -> None:
    logits = torch.tensor([[90.0, -90.0], [0.0, 1.0], [0.5, 0.0]], requires_grad=True)  # the first probabilities are 1 and 0
    torch.autograd.backward(make_loss(jsd=True)(logits, torch.tensor([0, 0, 0])))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def small_network() -> ShuffleNetV2:
    """Return a float64 network, in which only a mistake shows, in eval mode, since batch norm depends on the chunk."""
    network = ShuffleNetV2(32, CLASSES, "0.5x")
    network.initialize_weights(torch.Generator().manual_seed(1))
    return network.double().eval()


def images_and_targets(count: int) -> tuple[Tensor, dict[str, tuple[Any, LossFunction]]]:
    """Return images, and targets of several kinds with the loss that takes them."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, CLASSES, (count,), generator=generator)
    _, mixed_targets = Mixing(AugmentationConfig(mixup=1.0, mixup_mode="elem"), CLASSES)(images, targets, 1)
    teachers = torch.randn(count, CLASSES, generator=generator)
    loss = make_loss()
    return images, {
        "classes": (targets, loss),
        "mixed_targets": (mixed_targets.double(), loss),
        "binary": (mixed_targets.double(), make_loss(bce_loss=True)),
        "teacher": ((targets, teachers.double()), DistillationLoss(loss, 0.5, 4.0)),
        "teacher and mixed_targets": ((mixed_targets.double(), teachers.double()), DistillationLoss(loss, 0.5, 4.0)),
    }


def step(
    targets: Any, images: Tensor, loss_function: LossFunction, rate: float = 1.0, **settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the logits, and the change of all weights."""
    network = small_network()
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    if "limit" in settings:
        limit = settings.pop("limit")
        settings["clip"] = lambda: clip_gradients(network.parameters(), limit, "norm")
    loss, logits = train_step(network, images, targets, loss_function, optimizer, **settings)
    return loss, logits, nn.utils.parameters_to_vector(network.parameters()).detach() - before


@pytest.mark.parametrize("kind", ["classes", "mixed_targets", "binary", "teacher", "teacher and mixed_targets"])
def test_accumulation_steps_give_the_update_of_the_complete_batch(kind: str) -> None:
    images, targets_and_losses = images_and_targets(64)
    targets, loss_function = targets_and_losses[kind]
    complete, accumulated = step(targets, images, loss_function), step(targets, images, loss_function, accum_steps=4)
    assert complete[2].norm() > 0.01
    for one, other in zip(complete, accumulated, strict=True):
        assert one.shape == other.shape
        assert not other.requires_grad
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8)  # some losses are computed in float32


def test_accumulation_steps_have_equal_size() -> None:
    sizes: list[int] = []
    network = small_network()
    network.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    images, targets_and_losses = images_and_targets(16)
    train_step(network, images, *targets_and_losses["classes"], torch.optim.SGD(network.parameters(), lr=0.1), accum_steps=4)
    assert sizes == [4] * 4


@pytest.mark.parametrize("accum_steps", [1, 4])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_gradient_is_clipped_between_the_backward_pass_and_the_update(accum_steps: int, scaled: bool) -> None:
    images, targets_and_losses = images_and_targets(16)
    targets, loss_function = targets_and_losses["classes"]

    def update(**settings: Any) -> Tensor:
        scaler = GradScaler("cpu", init_scale=2.0**16) if scaled else None
        return step(targets, images, loss_function, scaler=scaler, accum_steps=accum_steps, **settings)[2]

    unclipped = update()
    assert unclipped.norm() > 0.01
    torch.testing.assert_close(update(limit=0.001), unclipped * 0.001 / unclipped.norm(), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(update(limit=1e6), unclipped, rtol=1e-6, atol=1e-9)


def test_clipping_happens_once_with_all_gradients_and_the_old_weights() -> None:
    images, targets_and_losses = images_and_targets(16)
    network = small_network()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    calls: list[bool] = []

    def clip() -> None:
        untouched = all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
        calls.append(untouched and all(parameter.grad is not None for parameter in network.parameters()))

    train_step(
        network, images, *targets_and_losses["classes"], torch.optim.SGD(network.parameters(), lr=0.1), accum_steps=4, clip=clip
    )
    assert calls == [True]
    assert not all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("clip", [None, lambda: None], ids=["free", "clipped"])
def test_a_step_with_non_finite_scaled_gradients_is_skipped_and_the_scale_falls(clip: Callable[[], None] | None) -> None:
    images, targets_and_losses = images_and_targets(8)
    network = small_network().float()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer, scaler = torch.optim.SGD(network.parameters(), lr=0.1), GradScaler("cpu", init_scale=2.0**127)
    targets, loss_function = targets_and_losses["classes"]

    def steep(logits: Tensor, targets: Tensor) -> Tensor:
        return loss_function(logits, targets) * 1e30

    losses = [float(train_step(network, images, targets, steep, optimizer, scaler, clip=clip)[0]) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)  # the returned loss is not scaled
    assert scaler.get_scale() == 2.0**124
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("accum_steps", [1, 4])
def test_scaling_the_loss_changes_nothing_else(accum_steps: int) -> None:
    images, targets_and_losses = images_and_targets(16)
    targets, loss_function = targets_and_losses["classes"]
    scaled = step(targets, images, loss_function, accum_steps=accum_steps, scaler=GradScaler("cpu", init_scale=1024.0))
    for one, other in zip(step(targets, images, loss_function, accum_steps=accum_steps), scaled, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_gradients_do_not_accumulate_across_steps() -> None:
    images, targets_and_losses = images_and_targets(16)
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    train_step(network, images, *targets_and_losses["classes"], optimizer)
    first = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    train_step(network, images, *targets_and_losses["classes"], optimizer)
    assert all(torch.equal(a, b.grad) for a, b in zip(first, network.parameters(), strict=True) if b.grad is not None)


@pytest.mark.parametrize("decay", [0.5, 0.9998])
@pytest.mark.parametrize("warmup", [False, True])
def test_the_decay_of_averaged_weights_equals_that_of_timm(decay: float, warmup: bool) -> None:
    network = ShuffleNetV2(32, 5, "0.5x")
    averaged = AveragedWeights(network, decay, warmup=warmup)
    timm_ema = timm.utils.ModelEmaV3(network, decay=decay, use_warmup=warmup)
    for iteration in (1, 2, 3, 10, 1000, 100_000, 10_000_000):
        # Without a warm-up the first update of timm is a copy; here it keeps its fraction of the initial weights.
        expected = decay if iteration == 1 and not warmup else timm_ema.get_decay(iteration)
        assert averaged.decay_of(iteration) == pytest.approx(expected, abs=1e-12)


def test_averaged_weights_with_warm_up_equal_those_of_timm() -> None:
    network = ShuffleNetV2(32, 5, "0.5x").train()
    averaged, timm_ema = AveragedWeights(network, 0.9, warmup=True), timm.utils.ModelEmaV3(network, 0.9, use_warmup=True)
    for iteration in range(1, 5):
        network(torch.rand(4, 3, 32, 32) * 255)  # moves the statistics
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(iteration)
        averaged.update(network, iteration)
        timm_ema.update(network, iteration)
        if iteration == 1:
            assert all(map(torch.equal, averaged.network.parameters(), network.parameters()))
    for (name, mine), other in zip(averaged.network.state_dict().items(), timm_ema.module.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


def test_averaged_weights_in_host_memory_are_the_same_and_are_copied_for_evaluation() -> None:
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

"""The training loop, driven by iterations."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..config import Config
from ..network import ShuffleNetV2
from ..recipe import LossFunction, Mixing, build_clipping, build_loss, build_mixing
from ..report import TrainMetrics
from ..rng import DEVICE, generator
from . import distributed
from .metrics import GradientNorm, Stopwatch
from .state import TrainingState


@dataclass(frozen=True)
class StepSettings:
    """How an iteration is computed.

    Args:
        loss_function: (logits, targets) -> scalar; with a teacher (logits, (targets, teacher's logits)) -> scalar.
        seed: seed of the random draws on the device (dropout).
        mixing: mixes the images and their targets (mixup, cutmix), if wanted.
        teacher: network whose logits the loss function takes as well (distillation), if wanted.
        accum_steps: see `train_step`.
        clip: see `train_step`.
        dist_bn: how several processes combine their batch-norm statistics, 'broadcast' or 'reduce'.
    """

    loss_function: LossFunction
    seed: int = 0
    mixing: Mixing | None = None
    teacher: nn.Module | None = None
    accum_steps: int = 1
    clip: Callable[[], object] | None = None
    dist_bn: str = "broadcast"

    @classmethod
    def from_config(
        cls, config: Config, network: ShuffleNetV2, teacher: nn.Module | None = None, class_weights: Tensor | None = None
    ) -> "StepSettings":
        """Return the settings that the options require for a network.

        Args:
            network: on its device.
            teacher, class_weights: of the loss, if wanted, on the same device.
        """
        optimization, augmentation = config.optimization, config.augmentation
        return cls(
            build_loss(optimization, augmentation, config.distillation, class_weights),
            seed=optimization.seed,
            mixing=build_mixing(augmentation, network.n_class, optimization.seed),
            teacher=teacher,
            accum_steps=optimization.grad_accum_steps,
            clip=build_clipping(network, optimization),
            dist_bn=config.model.dist_bn,
        )


class Callbacks:
    """What `train` calls; every method does nothing by default. An exception ends the training with a complete state."""

    def before_iteration(self, iteration: int, images: Tensor, targets: Tensor) -> None:
        """Receive the batch as the loss function will see it."""

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        """Receive the result of an iteration. Reading a value waits for the device."""

    def on_metrics(self, metrics: TrainMetrics) -> None:
        """Receive the metrics, every `display_interval` iterations and after the last one."""

    def between_iterations(self, iteration: int) -> None:
        """Validate, stop, ...; its time is not counted as training time. Must leave the model in train mode."""

    def on_complete(self, iteration: int) -> None:
        """Save the state, if that is due: nothing of the iteration is left to do. Its time is not counted either."""


def train_step(
    model: nn.Module,
    images: Tensor,
    targets: Any,
    loss_function: LossFunction,
    optimizer: Optimizer,
    scaler: GradScaler | None = None,
    *,
    accum_steps: int = 1,
    clip: Callable[[], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Perform one update: forward, backward, optimizer step.

    Args:
        model: in train mode.
        images: (N, C, H, W), BGR or grey, 0..255, uint8 or floating point, on the model's device.
        targets: (N,) int64 class indices, or any tensor or nested tuple of tensors that the loss function takes.
        loss_function: (logits, targets) -> scalar, a mean over the images.
        optimizer: over the parameters of the model.
        scaler: scales the loss, for float16.
        accum_steps: compute the batch in this many chunks of equal size, one after the other, to save memory.
        clip: limits the gradients; called before the optimizer step.

    Returns:
        The loss, scalar, and the logits (N, n_class); both detached and on the device.
    """
    optimizer.zero_grad()
    losses, logits = [], []
    for step, (chunk, chunk_targets) in enumerate(zip(images.chunk(accum_steps), _chunk(targets, accum_steps), strict=True), 1):
        # Several processes sum their gradients once, with the last chunk.
        with model.no_sync() if step < accum_steps and isinstance(model, DistributedDataParallel) else nullcontext():
            logits.append(model(chunk))
            loss = loss_function(logits[-1], chunk_targets) / accum_steps
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
            losses.append(loss.detach())
    if scaler is not None and clip is not None:
        scaler.unscale_(optimizer)
    if clip is not None:
        clip()
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return torch.stack(losses).sum(), torch.cat(logits).detach()


def _chunk(targets: Any, chunks: int) -> Iterable[Any]:
    if isinstance(targets, Tensor):
        return targets.chunk(chunks)
    return zip(*(_chunk(item, chunks) for item in targets), strict=True)


def train(
    model: nn.Module,
    state: TrainingState,
    batches: Iterator[tuple[Tensor, Tensor]],
    settings: StepSettings,
    *,
    until: int,
    display_interval: int = 20,
    callbacks: Callbacks | None = None,
) -> None:
    """Train from iteration `state.iteration + 1` to iteration `until`, or until `state.stop_reason` is set, in place.

    Args:
        model: the network of `state`, or a wrapper around it (nn.DataParallel, DistributedDataParallel, torch.compile).
        batches: pairs (images, targets), beginning with that of iteration `state.iteration + 1`.
        display_interval: number of iterations between two calls of `callbacks.on_metrics`, which the last iteration calls
            as well. Only there the loop waits for the device.

    Raises:
        NonFiniteLossError: a loss was infinite or NaN; raised at the next display.
    """
    callbacks = callbacks or Callbacks()
    device = next(model.parameters()).device
    stopwatch = Stopwatch()
    model.train()
    while state.iteration < until and not state.stop_reason:
        iteration = state.iteration + 1
        with stopwatch.waiting_for_data():
            images, targets = next(batches)
            images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)

        seed_device(settings.seed, iteration)
        state.scheduler.step()
        images, mixed_targets, targets = prepare_batch(images, targets, settings.mixing, iteration)
        callbacks.before_iteration(iteration, images, mixed_targets)
        loss_targets = (mixed_targets, settings.teacher(images)) if settings.teacher else mixed_targets
        is_displayed = iteration % display_interval == 0 or iteration == until
        gradients = GradientNorm(state.network, settings.clip) if is_displayed else None
        loss, logits = train_step(
            model, images, loss_targets, settings.loss_function, state.optimizer, state.scaler,
            accum_steps=settings.accum_steps, clip=gradients or settings.clip,
        )  # fmt: skip
        distributed.synchronize_batch_norm(state.network, settings.dist_bn)
        state.complete_iteration(loss, logits, targets)
        stopwatch.count(len(images))
        callbacks.after_iteration(iteration, loss, logits)

        if is_displayed:
            callbacks.on_metrics(state.display_metrics(loss, stopwatch, gradients))
            stopwatch = Stopwatch()
        with stopwatch.paused():
            callbacks.between_iterations(iteration)
        if state.stop_reason and not is_displayed:
            callbacks.on_metrics(state.display_metrics(loss, stopwatch))
        with stopwatch.paused():
            callbacks.on_complete(iteration)


def seed_device(seed: int, iteration: int) -> None:
    """Make the random draws of torch in an iteration (dropout) a function of (seed, iteration, rank)."""
    torch.manual_seed(int(generator(seed, DEVICE, iteration, distributed.rank()).integers(2**63)))


def prepare_batch(images: Tensor, targets: Tensor, mixing: Mixing | None, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images and targets of the loss, and the class indices by which accuracy is counted."""
    if len(images) > len(targets):  # several views of each image
        targets = targets.repeat(len(images) // len(targets))
    if mixing is None:
        return images, targets, targets
    images, mixed_targets = mixing(images, targets, iteration, distributed.rank())
    return images, mixed_targets, mixed_targets.argmax(dim=1)  # the class with the larger weight


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of batch norm by their plain averages over batches of images.

    During training the statistics are exponential averages over weights that were still changing. As in the original, nothing
    else changes: forward passes only, and every batch has the same weight, in all processes of a run. The model is left in
    eval mode.

    Args:
        model: network, or a wrapper around it.
        batches: batches of images (N, C, H, W), augmented as for training, on any device.

    Raises:
        ValueError: there are no batches.
    """
    device = next(model.parameters()).device
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    count = 0
    for count, images in enumerate(batches, 1):
        for layer in layers:
            layer.momentum = 1 / count  # the running mean becomes the plain mean of all batches so far
        model(images.to(device, non_blocking=True))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
    if not count:
        raise ValueError("there are no images to recalibrate batch norm with")
    distributed.synchronize_batch_norm(model, "reduce")

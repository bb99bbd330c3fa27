"""The training loop, driven by iterations."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..errors import UserError
from ..network import ShuffleNetV2
from ..recipe import AveragedWeights, LossFunction, Mixing, Schedule
from ..report import RunLog
from ..rng import DEVICE, generator
from . import distributed
from .evaluation import count_correct
from .hooks import Hook


class NonFiniteLossError(UserError):
    """The loss is infinite or not a number, or the weights or batch norm's statistics are.

    Attributes:
        iteration: where that was first so.
    """

    status = 1

    def __init__(self, iteration: int, learning_rate: float, what: str = "the loss is") -> None:
        super().__init__(f"{what} not finite at iteration {iteration}, where the learning rate was {learning_rate:g}")
        self.iteration = iteration


class Progress:
    """What the TRAIN lines are made of, gathered on the device so that no iteration waits for it."""

    def __init__(self) -> None:
        self._images = 0
        self._correct: Tensor | None = None  # int64 (2,): first guess, first five

    def add(self, logits: Tensor, targets: Tensor) -> None:
        correct = count_correct(logits, targets)
        self._correct = correct if self._correct is None else self._correct + correct
        self._images += len(targets)

    def state_dict(self) -> dict[str, int]:
        """The counts of all processes; waits for the device."""
        correct = [0, 0] if self._correct is None else self._correct.tolist()
        images, top1, top5 = distributed.all_reduce_sum(torch.tensor([self._images, *correct])).tolist()
        return {"images": images, "top1": top1, "top5": top5}

    def load_state_dict(self, state: dict[str, int], device: torch.device) -> None:
        own = distributed.rank() == 0  # the others' counts are among these
        self._images = state["images"] if own else 0
        self._correct = torch.tensor([state["top1"], state["top5"]], device=device) if own else None


class TrainingState:
    """Everything the next iteration depends on, apart from the options: what a checkpoint holds.

    Args:
        network: the bare network, whose state dict has the published names.
        optimizer, scheduler: over the network's parameters.
        averaged: of the network, if wanted.
        scaler: of the loss, where the gradients are float16.

    Attributes:
        iteration: how many are done.
        validated: the last one after which a validation was completed.
        best: the highest value so far of what a validation is judged by; None before the first.
        skipped: (first, last) iterations in which nothing is learned, because their loss was not finite.
    """

    def __init__(
        self, network: ShuffleNetV2, optimizer: Optimizer, scheduler: Schedule, averaged: AveragedWeights | None = None,
        scaler: GradScaler | None = None,
    ) -> None:  # fmt: skip
        self.network, self.optimizer, self.scheduler, self.averaged = network, optimizer, scheduler, averaged
        self.scaler = scaler
        self.iteration = 0
        self.validated = 0
        self.best: float | None = None
        self.skipped: list[tuple[int, int]] = []
        self.progress = Progress()
        self._first_bad: Tensor | None = None  # the first iteration whose loss was not finite or 0, on the device
        self._rates: dict[int, float] = {}  # learning rates of the iterations that nobody has looked at yet

    def note(self, loss: Tensor) -> None:
        """Remembers, without waiting for the device, if this iteration's loss is not finite."""
        self._rates[self.iteration] = float(self.scheduler.get_last_lr()[0])
        bad = torch.where(loss.isfinite(), 0, self.iteration)
        self._first_bad = bad if self._first_bad is None else torch.where(self._first_bad > 0, self._first_bad, bad)

    def require_finite(self) -> None:
        """Waits for the device.

        Raises:
            NonFiniteLossError: where a loss since the last call, or a weight or statistic now, is not finite.
        """
        bad, what = 0 if self._first_bad is None else int(self._first_bad), "the loss is"
        if not bad and not all(tensor.isfinite().all() for tensor in self.network.state_dict().values()):
            bad, what = self.iteration, "weights or batch-norm statistics are"
        never = self.iteration + 1
        first = -distributed.all_reduce_max(-(bad or never))  # of all processes
        if first < never:
            raise NonFiniteLossError(first, self._rates.get(first, float(self.scheduler.get_last_lr()[0])), what)
        self._rates.clear()

    def step_schedule(self) -> None:
        """Sets the learning rate of the next iteration."""
        with warnings.catch_warnings():  # torch expects it after the update; see linear_decay
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def pass_over(self, last: int) -> None:
        """Leaves everything up to this iteration undone, except that the schedule goes on."""
        while self.iteration < last:
            self.step_schedule()
            self.iteration += 1

    def state_dict(self) -> dict[str, Any]:
        averaged = {"state_dict_ema": self.averaged.network.state_dict()} if self.averaged else {}
        return {
            **averaged,
            "iteration": self.iteration,
            "validated": self.validated,
            "best": self.best,
            "skipped": list(self.skipped),
            "state_dict": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "progress": self.progress.state_dict(),
        }

    def load_weights(self, state: dict[str, Any]) -> None:
        """Takes the weights and the iteration of a checkpoint, and leaves the optimizer as it is."""
        self.network.load_state_dict(state["state_dict"])
        if self.averaged:
            self.averaged.network.load_state_dict(state.get("state_dict_ema", state["state_dict"]))
        self.pass_over(state["iteration"])
        self.validated = self.iteration

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        self.validated = state["validated"]
        self.best = state.get("best")
        self.skipped = list(state["skipped"])
        self.network.load_state_dict(state["state_dict"])
        if self.averaged:
            self.averaged.network.load_state_dict(state["state_dict_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress()
        self.progress.load_state_dict(state["progress"], next(self.network.parameters()).device)
        self._first_bad, self._rates = None, {}


def train_step(
    model: nn.Module,
    images: Tensor,
    targets: Any,
    loss_function: LossFunction,
    optimizer: Optimizer,
    scaler: GradScaler | None = None,
    *,
    parts: int = 1,
    clip: Callable[[], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """One update: forward, backward, optimizer step.

    Args:
        model: in train mode.
        images: (N, 3, H, W), BGR, 0..255, uint8 or floating point, on the model's device.
        targets: (N,) int64 classes, or whatever else the loss function takes, a tensor or a tuple of tensors.
        loss_function: (logits, targets) -> scalar, a mean over the images.
        scaler: of the loss, for float16.
        parts: of the batch, all of N / parts images, computed one after the other in the memory of one.
        clip: limits the gradients, before the optimizer's step.

    Returns:
        The loss, scalar, and the logits (N, n_class), detached, on the device.
    """
    optimizer.zero_grad()
    losses, logits = [], []
    for number, (part, goal) in enumerate(zip(images.chunk(parts), _chunks(targets, parts), strict=True), 1):
        # Gradients of several processes are added up once, with the last part.
        with model.no_sync() if number < parts and isinstance(model, DistributedDataParallel) else nullcontext():
            logits.append(model(part))
            loss = loss_function(logits[-1], goal) / parts
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


def _chunks(targets: Any, parts: int) -> Iterable[Any]:
    if isinstance(targets, Tensor):
        return targets.chunk(parts)
    return zip(*(_chunks(each, parts) for each in targets), strict=True)


def seed_device(seed: int, iteration: int) -> None:
    """Makes what torch draws in an iteration (dropout) a function of (seed, iteration, process)."""
    torch.manual_seed(int(generator(seed, DEVICE, iteration, distributed.rank()).integers(2**63)))


def every(interval: int | str) -> Callable[[int], bool]:
    """Whether something is due after an iteration: every so many (int), or after so much time ('90s', '10m', '2h').

    All processes are told the same.
    """
    if isinstance(interval, int):
        return lambda iteration: iteration % interval == 0
    seconds = float(interval[:-1]) * {"s": 1, "m": 60, "h": 3600}[interval[-1]]
    last, agreed = time.monotonic(), distributed.DelayedAllReduceMax()

    def is_due(iteration: int) -> bool:
        nonlocal last
        if not agreed(time.monotonic() - last >= seconds):
            return False
        last = time.monotonic()
        return True

    return is_due


def train(
    model: nn.Module,
    state: TrainingState,
    batches: Iterator[tuple[Tensor, Tensor]],
    loss_function: LossFunction,
    *,
    total_iters: int,
    seed: int,
    log: RunLog,
    display_interval: int,
    mixing: Mixing | None = None,
    teacher: nn.Module | None = None,
    parts: int = 1,
    clip: Callable[[], object] | None = None,
    dist_bn: str = "broadcast",
    hooks: Sequence[Hook] = (),
    events: Iterable[tuple[Callable[[int], bool], Callable[[], object]]] = (),
    check: Callable[[], object] = lambda: None,
) -> None:
    """Trains from `state.iteration` to `total_iters`, in place.

    Args:
        model: the network of `state`, or a wrapper around it (nn.DataParallel, DistributedDataParallel).
        batches: of (images, targets), the first being that of iteration `state.iteration + 1`.
        seed: of what is drawn on the device.
        log: told every iteration, and every `display_interval` the figures.
        mixing: of the images and their targets, if wanted.
        teacher: what the loss function gets logits from as well: it is then called with (targets, teacher's logits).
        parts, clip: see `train_step`.
        dist_bn: how several processes' batch-norm statistics become one, 'broadcast' or 'reduce'.
        hooks: told of every iteration.
        events: (whether it is due after an iteration, what to do then), asked and done in this order.
        check: called after every iteration, before the events; what it raises ends the training there,
            with the state complete.
    """
    device = next(model.parameters()).device
    events = list(events)
    model.train()
    since, data_time, iterations, images_seen = time.perf_counter(), 0.0, 0, 0
    while state.iteration < total_iters:
        before = time.perf_counter()
        images, targets = next(batches)
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        data_time += time.perf_counter() - before

        iteration = state.iteration + 1
        seed_device(seed, iteration)
        state.step_schedule()
        if len(images) > len(targets):  # several views of each
            targets = targets.repeat(len(images) // len(targets))
        goal: Any = targets
        if mixing:
            images, goal = mixing(images, targets, iteration, distributed.rank())
            targets = goal.argmax(dim=1)  # for the TRAIN line: whichever has the larger share
        for hook in hooks:
            hook.before_iteration(iteration, images, goal)
        if teacher:
            goal = (goal, teacher(images))
        loss, logits = train_step(model, images, goal, loss_function, state.optimizer, state.scaler, parts=parts, clip=clip)
        distributed.synchronize_batch_norm(state.network, dist_bn)
        state.progress.add(logits, targets)
        if state.averaged:
            state.averaged.update(state.network, iteration)
        state.iteration = iteration
        state.note(loss)
        iterations += 1
        images_seen += len(targets)
        log.advance(iteration)
        for hook in hooks:
            hook.after_iteration(iteration, loss, logits)

        if iteration % display_interval == 0:
            state.require_finite()  # waits for the device
            seen = state.progress.state_dict()
            log.training(
                iteration,
                learning_rate=float(state.scheduler.get_last_lr()[0]),
                loss=float(distributed.all_reduce_sum(loss.cpu().double())) / distributed.world_size(),
                top1_error=1 - seen["top1"] / seen["images"],
                top5_error=1 - seen["top5"] / seen["images"],
                data_time=data_time / iterations,
                train_time=(elapsed := time.perf_counter() - since) / iterations,
                images_per_second=images_seen * distributed.world_size() / elapsed,
            )
            state.progress = Progress()
            since, data_time, iterations, images_seen = time.perf_counter(), 0.0, 0, 0
        check()
        for is_due, event in events:
            if is_due(iteration):
                started = time.perf_counter()
                event()
                model.train()
                since += time.perf_counter() - started  # an iteration's time is its own


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces the running statistics of batch norm by their plain averages over batches of images.

    Training averages them exponentially, over weights that were still moving. As in the
    original, nothing but the statistics changes: forward passes only, each batch counting alike,
    those of all processes too. The model is left in eval mode.

    Args:
        batches: of images (N, 3, H, W), prepared as for training, on any device.

    Raises:
        ValueError: where there are no batches.
    """
    device = next(model.parameters()).device
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    number = 0
    for number, images in enumerate(batches, 1):
        for layer in layers:
            layer.momentum = 1 / number  # the running mean becomes the mean of all so far
        model(images.to(device, non_blocking=True))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
    if not number:
        raise ValueError("there are no images to recalibrate batch norm with")
    distributed.synchronize_batch_norm(model, "reduce")

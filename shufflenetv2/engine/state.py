"""The state of a training run: everything the next iteration depends on, apart from the options."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..config import Config
from ..errors import UserError
from ..network import ShuffleNetV2
from ..recipe import (
    AveragedWeights,
    PlateauSchedule,
    Schedule,
    build_averaging,
    build_optimizer,
    build_schedule,
    fast_forward,
    freeze,
    start_from,
)
from ..report import TrainMetrics
from ..weights import Weights
from . import distributed
from .background import copy_to_host
from .devices import Devices
from .evaluation import EvaluationResult
from .metrics import GradientNorm, RunningAccuracy, Stopwatch, peak_memory
from .nonfinite import LossMonitor
from .results import ValidatedWeights

BN_TF = (0.01, 1e-3)  # momentum and epsilon of TensorFlow's batch norm


class TrainingState:
    """Everything the next iteration depends on, apart from the options; the content of a checkpoint.

    Args:
        network: the bare network, without a wrapper for several GPUs, so that its state dict has the published names.
        optimizer: over the parameters of the network.
        scheduler: learning rates of the optimizer.
        averaged: exponential moving average of the weights (EMA), if wanted.
        scaler: scales the loss, where gradients are float16.
        eval_metric: validation result by which weights are compared; see `EvaluationResult.score`.

    Attributes:
        iteration: number of completed iterations.
        validated: the last iteration after which a validation was completed.
        validations: {iteration: score} of every completed validation: that of the weights or of their average, whichever is
            better by `eval_metric`; a higher score is better.
        best: the weights with the best validation so far, copied to host memory; None before the first validation.
        skipped: ranges (first, last) of iterations without an update, because their loss was not finite.
        stop_reason: why the run ends before its last iteration; empty while it goes on.
        order_offset: `offset` of the DataIterator: batch k begins at position (k - 1) * batch size + offset of the stream.
        history: deliberate changes of the recipe, the oldest first; see `RecipeChange.record`.
    """

    def __init__(
        self,
        network: ShuffleNetV2,
        optimizer: Optimizer,
        scheduler: Schedule,
        averaged: AveragedWeights | None = None,
        scaler: GradScaler | None = None,
        eval_metric: str = "top1",
    ) -> None:
        self.network, self.optimizer, self.scheduler = network, optimizer, scheduler
        self.averaged, self.scaler, self.eval_metric = averaged, scaler, eval_metric
        self.iteration = 0
        self.validated = 0
        self.validations: dict[int, float] = {}
        self.best: ValidatedWeights | None = None
        self.skipped: list[tuple[int, int]] = []
        self.stop_reason = ""
        self.order_offset = 0
        self.history: list[dict[str, Any]] = []
        self.accuracy = RunningAccuracy()
        self._loss_monitor = LossMonitor()

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first parameter group in the last iteration."""
        return float(self.scheduler.get_last_lr()[0])

    def complete_iteration(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Account for an update: count the iteration and its accuracy, average the weights, examine the loss."""
        self.iteration += 1
        self.accuracy.update(logits, targets)
        if self.averaged:
            self.averaged.update(self.network, self.iteration)
        self._loss_monitor.record(self.iteration, loss, self.learning_rate)

    def complete_validation(self, results: Sequence[EvaluationResult]) -> bool:
        """Account for a validation, and keep the better of the validated weights if they are the best so far.

        Args:
            results: of the weights and, if there is one, of their average; the same in all processes.

        Returns:
            Whether `best` has changed.
        """
        averaged, result = max(enumerate(results), key=lambda pair: pair[1].score(self.eval_metric))  # the first of equals
        score = result.score(self.eval_metric)
        self.validated = self.iteration
        self.validations[self.iteration] = score
        if isinstance(self.scheduler, PlateauSchedule):
            self.scheduler.observe(-score)
        if not self.is_best(result):
            return False
        network = self.averaged.network if averaged and self.averaged else self.network
        self.best = ValidatedWeights(
            self.iteration, bool(averaged), copy_to_host(network.state_dict()), replace(result, predictions=None)
        )
        return True

    def is_best(self, result: EvaluationResult, others: Sequence[EvaluationResult] = ()) -> bool:
        """Return whether a result is better than that of the best weights so far, and than others of the same validation."""
        scores = [other.score(self.eval_metric) for other in others]
        if self.best:
            scores.append(self.best.score(self.eval_metric))
        return all(result.score(self.eval_metric) > score for score in scores)

    def iterations_without_improvement(self) -> int:
        """Return the number of iterations since the best score, the last change of the recipe, or the start of the run."""
        best = max(self.validations.values(), default=None)
        first_best = min((iteration for iteration, score in self.validations.items() if score == best), default=0)
        last_change = self.history[-1]["iteration"] if self.history else 0
        return self.iteration - max(first_best, last_change)

    def require_finite(self) -> None:
        """Check all losses since the last call, the weights and the batch-norm statistics. Waits for the device.

        Raises:
            NonFiniteLossError: one of them is infinite or NaN.
        """
        self._loss_monitor.check(self.network, self.iteration, self.learning_rate)

    def display_metrics(self, loss: Tensor, stopwatch: Stopwatch, gradients: GradientNorm | None = None) -> TrainMetrics:
        """Return the metrics since the last call, and start counting anew. Waits for the device.

        Raises:
            NonFiniteLossError: a loss since the last call, a weight or a statistic is infinite or NaN.
        """
        self.require_finite()
        counts = self.accuracy.state_dict()
        self.accuracy = RunningAccuracy()
        return TrainMetrics(
            iteration=self.iteration,
            learning_rate=self.learning_rate,
            loss=float(distributed.all_reduce_sum(loss.cpu().double())) / distributed.world_size(),
            top1_error=1 - counts["top1"] / counts["images"],
            top5_error=1 - counts["top5"] / counts["images"],
            **stopwatch.rates(),
            grad_norm=None if gradients is None or gradients.value is None else float(gradients.value),
            memory_mb=peak_memory(loss.device),
        )

    def fast_forward(self, iteration: int) -> None:
        """Advance the iteration count and the schedule to `iteration`, without updates."""
        if iteration > self.iteration:
            fast_forward(self.scheduler, iteration)
            self.iteration = iteration

    def state_dict(self) -> dict[str, Any]:
        """Return tensors on the device, not copies, and plain values."""
        averaged = {"state_dict_ema": self.averaged.network.state_dict()} if self.averaged else {}
        return {
            **averaged,
            "iteration": self.iteration,
            "validated": self.validated,
            "validations": dict(self.validations),
            "eval_metric": self.eval_metric,
            "best_weights": self.best and self.best.to_checkpoint(),
            "skipped": list(self.skipped),
            "stop_reason": self.stop_reason,
            "order_offset": self.order_offset,
            "history": list(self.history),
            "state_dict": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "progress": self.accuracy.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.iteration = state["iteration"]
        self.validated = state["validated"]
        is_comparable = state.get("eval_metric") == self.eval_metric
        self.validations = dict(state["validations"]) if is_comparable else {}
        best = state.get("best_weights")  # older checkpoints have none
        self.best = best and ValidatedWeights.from_checkpoint(best)
        self.skipped = list(state["skipped"])
        self.stop_reason = state.get("stop_reason", "")
        self.order_offset = state.get("order_offset", 0)
        self.history = list(state.get("history", []))
        self.network.load_state_dict(state["state_dict"])
        if self.averaged:
            self.averaged.network.load_state_dict(state["state_dict_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.accuracy = RunningAccuracy()
        self.accuracy.load_state_dict(state["progress"], next(self.network.parameters()).device)
        self._loss_monitor = LossMonitor()

    def load_weights(self, state: dict[str, Any]) -> None:
        """Take over only the weights and the iteration of a checkpoint; the optimizer starts afresh."""
        self.network.load_state_dict(state["state_dict"])
        if self.averaged:
            self.averaged.network.load_state_dict(state.get("state_dict_ema", state["state_dict"]))
        self.fast_forward(state["iteration"])
        self.validated = self.iteration


def build_training_state(
    config: Config,
    devices: Devices,
    class_names: list[str],
    weights: Weights | None = None,
    log: Callable[[str], object] = lambda line: None,
) -> TrainingState:
    """Build the network, its optimizer, schedule and averaged weights as they are before the first iteration.

    Args:
        class_names: class names in the order of their labels.
        weights: weights to start from; None for random weights.
        log: receives one line about the initial weights, and one about frozen modules.

    Raises:
        UserError: an option does not fit the network, the weights or the devices.
    """
    optimization = config.optimization
    network = _build_network(config, len(class_names), weights)
    if weights:
        log(start_from(network, weights, class_names))
    if config.fine_tuning.freeze:
        log(freeze(network, config.fine_tuning.freeze))
    network = _convert_batch_norm(network, config, devices)
    devices.place(network)  # first of all: the state of the optimizer is allocated beside the weights
    optimizer = build_optimizer(network, optimization, config.fine_tuning)
    averaged = build_averaging(network, optimization)
    schedule = build_schedule(
        optimizer, config.schedule, optimization.total_iters, seed=optimization.seed, val_interval=config.run.val_interval
    )
    return TrainingState(network, optimizer, schedule, averaged, devices.scaler(), config.run.eval_metric)


def _build_network(config: Config, n_class: int, weights: Weights | None) -> ShuffleNetV2:
    """Return the network with random weights, and the layout of `weights` (original or torchvision)."""
    model, data = config.model, config.data
    momentum, eps = BN_TF if model.bn_tf else (model.bn_momentum or 0.1, model.bn_eps or 1e-5)
    architecture = weights.architecture if weights else {}
    network = ShuffleNetV2(
        data.input_size, n_class, model.model_size, in_chans=model.in_chans, dropout=model.drop, mean=data.mean,
        std=data.std, pooling=model.gp, drop_path=model.drop_path, drop_block=model.drop_block, bn_eps=eps,
        bn_momentum=momentum,
        **{name: architecture[name] for name in ("layout", "head_bias") if name in architecture},
    )  # fmt: skip
    network.initialize_weights(torch.Generator().manual_seed(config.optimization.seed), model.init)
    return network


def _convert_batch_norm(network: ShuffleNetV2, config: Config, devices: Devices) -> ShuffleNetV2:
    """Replace the batch-norm layers as `split_bn` and `sync_bn` require."""
    if config.model.split_bn:
        from timm.layers import convert_splitbn_model  # deferred: importing timm takes a second

        network = convert_splitbn_model(network, config.augmentation.aug_splits)  # type: ignore[no-untyped-call]
    if config.model.sync_bn:
        if devices.first.type == "cpu" or devices.count > 1:
            raise UserError(f"`sync_bn` needs one process per GPU (torchrun), and this run uses {devices}")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return network

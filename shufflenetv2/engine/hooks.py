"""Hooks: user code that is called during a run."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import RunConfig
from ..errors import UserError
from ..extensions import create, load_object
from ..network import ShuffleNetV2
from ..report import CLASS_ACCURACY, RESERVED, batch_picture, class_accuracy, mistakes_picture, write_batch
from .evaluation import EvaluationResult

SHOWN_IMAGES = 16  # of a batch, in TensorBoard
MAX_SHOWN_CLASSES = 100  # largest number of classes whose accuracies are shown as curves


class Hook:
    """Base class of user code that is called during a run; override any of the methods.

    The `hook` option takes a subclass as `package.module:Class`; the class is instantiated without arguments. Every process
    of the run calls its own instance. An exception raised by a hook ends the run. Checkpoints do not contain the attributes
    of hooks. Draw random numbers from `shufflenetv2.rng.generator`, so that a resumed run draws the same numbers.
    """

    def before_run(self, run: Any) -> None:
        """Run before the first iteration.

        Args:
            run: the Trainer, with attributes `config`, `state`, `train_set` and `val_set`; `run.stop("why")` ends the
                training after an iteration, and the results follow as after the last one.
        """

    def before_iteration(self, iteration: int, images: Tensor, targets: Tensor) -> None:
        """Receive a batch on the device, after mixup and cutmix, before the update.

        Shape:
            images (N, C, H, W), BGR or grey, 0..255; targets (N,), class indices, or with mixup or cutmix (N, n_class),
            probabilities.
        """

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        """Receive the scalar loss and the logits (N, n_class) of an update. Reading a value waits for the device."""

    def before_evaluation(self, iteration: int) -> None:
        """Run before each evaluation on the validation set."""

    def after_evaluation(self, iteration: int, result: EvaluationResult) -> None:
        """Receive the result of an evaluation; the averaged weights (EMA) are evaluated separately."""

    def after_save(self, iteration: int, path: str) -> None:
        """Run after a checkpoint or model file was queued for writing; the file may not be complete yet."""

    def after_run(self, run: Any) -> None:
        """Run at the end, after batch-norm recalibration, when the results are on disk."""


def load_hook(name: str) -> Hook:
    """Instantiate the hook that 'package.module:Class' names.

    Raises:
        UserError: the module or class does not exist, the class is not a Hook, or its constructor needs arguments.
    """
    hook_class = load_object("hook", name)
    if not (isinstance(hook_class, type) and issubclass(hook_class, Hook)):
        raise UserError(f"`hook` {name} is not a class derived from shufflenetv2.engine.Hook")
    hook: Hook = create("hook", name)
    return hook


class HookList(Hook):
    """Call several hooks in order."""

    def __init__(self, hooks: list[Hook]) -> None:
        self._hooks = hooks

    def before_run(self, run: Any) -> None:
        for hook in self._hooks:
            hook.before_run(run)

    def before_iteration(self, iteration: int, images: Tensor, targets: Tensor) -> None:
        for hook in self._hooks:
            hook.before_iteration(iteration, images, targets)

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        for hook in self._hooks:
            hook.after_iteration(iteration, loss, logits)

    def before_evaluation(self, iteration: int) -> None:
        for hook in self._hooks:
            hook.before_evaluation(iteration)

    def after_evaluation(self, iteration: int, result: EvaluationResult) -> None:
        for hook in self._hooks:
            hook.after_evaluation(iteration, result)

    def after_save(self, iteration: int, path: str) -> None:
        for hook in self._hooks:
            hook.after_save(iteration, path)

    def after_run(self, run: Any) -> None:
        for hook in self._hooks:
            hook.after_run(run)


def load_hooks(config: RunConfig, log_folder: Path | None, class_names: list[str]) -> HookList:
    """Instantiate the hooks of the `hook` option, and after them `SaveImages` if `save_images` is set, and `ShowRun`."""
    hooks = [load_hook(name) for name in config.hook]
    if config.save_images and log_folder:
        hooks.append(SaveImages(log_folder / "images", config.display_interval, class_names))
    if log_folder:
        hooks.append(ShowRun(config.val_interval))
    return HookList(hooks)


class SaveImages(Hook):
    """Write a PNG file with the images of the batch every `interval` iterations (`save_images`)."""

    def __init__(self, folder: Path, interval: int, class_names: list[str]) -> None:
        self._folder, self._interval, self._class_names = folder, interval, class_names

    def before_iteration(self, iteration: int, images: Tensor, targets: Tensor) -> None:
        if iteration % self._interval:
            return
        write_batch(self._folder / f"{iteration:06}.png", images, targets, self._class_names)


class ShowRun(Hook):
    """Show more of a run in TensorBoard: network, images of a batch, mistakes, and the accuracy of each class.

    Args:
        interval: number of iterations between two batches that are shown, besides the first.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._evaluated = 0  # the last iteration whose evaluation was shown

    def before_run(self, run: Any) -> None:
        self._run = run

    def before_iteration(self, iteration: int, images: Tensor, targets: Tensor) -> None:
        if iteration == 1:
            network = self._run.state.network
            size = self._run.config.data.input_size
            # Not the network of the run, parts of whose code may be replaced by faster code.
            self._run.log.graph(ShuffleNetV2(size, network.n_class, network.model_size, **network.architecture))
        if iteration == 1 or iteration % self._interval == 0:
            pixels = images[:SHOWN_IMAGES].clamp(0, 255).to("cpu", dtype=torch.uint8).contiguous().numpy()
            self._run.log.picture(iteration, "batch", batch_picture(pixels))

    def after_evaluation(self, iteration: int, result: EvaluationResult) -> None:
        """Show the first evaluation of an iteration: that of the weights, not that of their average."""
        if iteration in (self._evaluated, self._run.state.validated) or result.classes is None or result.predictions is None:
            return
        self._evaluated = iteration
        class_names = self._run.val_set.class_names
        if len(class_names) <= MAX_SHOWN_CLASSES:
            self._run.log.record(iteration, CLASS_ACCURACY, class_accuracy(class_names, result.classes.recall, RESERVED))
        picture = mistakes_picture(self._run.val_set, result.predictions, result.left_out)
        if picture is not None:
            self._run.log.picture(iteration, "mistakes", picture)

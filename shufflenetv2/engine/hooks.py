"""Hooks: user code that is called during a run."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import RunConfig
from ..errors import UserError
from ..extensions import create, load_object
from ..report import write_batch
from .evaluation import EvaluationResult


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
    """Instantiate the hooks of the `hook` option, and after them `SaveImages` if `save_images` is set."""
    hooks = [load_hook(name) for name in config.hook]
    if config.save_images and log_folder:
        hooks.append(SaveImages(log_folder / "images", config.display_interval, class_names))
    return HookList(hooks)


class SaveImages(Hook):
    """Write a PNG file with the images of the batch every `interval` iterations (`save_images`)."""

    def __init__(self, folder: Path, interval: int, class_names: list[str]) -> None:
        self._folder, self._interval, self._class_names = folder, interval, class_names

    def before_iteration(self, iteration: int, images: Tensor, targets: Tensor) -> None:
        if iteration % self._interval:
            return
        write_batch(self._folder / f"{iteration:06}.png", images, targets, self._class_names)

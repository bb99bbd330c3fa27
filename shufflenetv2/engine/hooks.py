"""Hooks: user code that is called during a run."""

import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import RunConfig
from ..errors import UserError
from ..report import write_grid
from .evaluation import EvaluationResult


class Hook:
    """Base class of user code that is called during a run; override any of the methods.

    The `hook` option takes a subclass as `package.module:Class`; the class is instantiated without arguments. Every process
    of the run calls its own instance. An exception raised by a hook ends the run. Checkpoints do not include what a hook
    changes or remembers. Draw random numbers from `shufflenetv2.rng.generator`, so that a resumed run repeats them.
    """

    def before_run(self, run: Any) -> None:
        """Run before the first iteration; `run` is the Trainer, with attributes `config`, `state`, `train_set`, `val_set`."""

    def before_iteration(self, iteration: int, images: Tensor, targets: Tensor) -> None:
        """Receive the batch as the loss sees it, on the device: images (N, 3, H, W), targets (N,) or mixed (N, n_class)."""

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        """Receive the result of an update: scalar loss, logits (N, n_class). Reading a value synchronizes with the device."""

    def before_evaluation(self, iteration: int) -> None:
        """Run before each evaluation on the validation set."""

    def after_evaluation(self, iteration: int, result: EvaluationResult) -> None:
        """Receive the result of an evaluation; the averaged weights (EMA) are evaluated separately."""

    def after_save(self, iteration: int, path: str) -> None:
        """Run after a file was queued for writing; the file may not be complete yet."""

    def after_run(self, run: Any) -> None:
        """Run at the end, after batch-norm recalibration, when the results are on disk."""


def load_hook(name: str) -> Hook:
    """Instantiate the hook that 'package.module:Class' names; modules are searched in the working directory, too.

    Raises:
        UserError: the module or class does not exist, the class is not a Hook, or its constructor needs arguments.
    """
    module_name, _, class_name = name.partition(":")
    if not (class_name and all(part.isidentifier() for part in module_name.split("."))):
        raise UserError(f"`hook` {name}: must have the form package.module:Class")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"`hook` {name}: {error}") from error
    hook_class = getattr(module, class_name, None)
    if not (isinstance(hook_class, type) and issubclass(hook_class, Hook)):
        raise UserError(f"`hook` {name}: {module_name} has no class {class_name} derived from shufflenetv2.engine.Hook")
    try:
        inspect.signature(hook_class).bind()
    except TypeError as error:
        raise UserError(f"`hook` {name}: {error}; a hook is instantiated without arguments") from error
    return hook_class()


class HookList(Hook):
    """Calls several hooks, one after the other."""

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
    """Instantiate the hooks that the `hook` and `save_images` options name, in this order."""
    hooks = [load_hook(name) for name in config.hook]
    if config.save_images and log_folder:
        hooks.append(SaveImages(log_folder / "images", config.display_interval, class_names))
    return HookList(hooks)


class SaveImages(Hook):
    """Write a picture of the network's input every `interval` iterations (`save_images`)."""

    def __init__(self, folder: Path, interval: int, class_names: list[str]) -> None:
        self._folder, self._interval, self._class_names = folder, interval, class_names

    def before_iteration(self, iteration: int, images: Tensor, targets: Tensor) -> None:
        if iteration % self._interval:
            return
        if targets.ndim == 1:
            captions = [self._class_names[label] for label in targets[: len(images)].tolist()]
        else:
            captions = [self._mixed_caption(weights) for weights in targets]
        pixels = images.clamp(0, 255).to("cpu", dtype=torch.uint8).contiguous().numpy()
        write_grid(self._folder / f"{iteration:06}.png", pixels, captions)

    def _mixed_caption(self, weights: Tensor) -> str:
        """Name the two classes of a mixed image, with their weights."""
        top_weights, labels = weights.topk(min(2, len(weights)))
        pairs = zip(top_weights.tolist(), labels.tolist(), strict=True)
        return " / ".join(f"{self._class_names[label]} {weight:.2f}" for weight, label in pairs if weight)

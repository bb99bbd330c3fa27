"""Code of one's own, called as a run goes on."""

import importlib
import inspect
import os
import sys
from typing import Any

from torch import Tensor

from ..errors import UserError
from .evaluation import EvaluationResult


class HookError(UserError):
    """A hook that cannot be loaded; the text says why."""


class Hook:
    """What `--hook package.module:Class` names: a class with some of these methods, made without arguments.

    All are called in every process. What a hook changes is not in the checkpoint; what it raises
    ends the run. Whoever draws random numbers here should draw them from `shufflenetv2.randomness`,
    or a run that was resumed will not be the same.
    """

    def before_run(self, run: Any) -> None:
        """Before the first iteration; `run` is the TrainingRun, with its options, state and data sets."""

    def before_iteration(self, iteration: int, images: Tensor, goals: Tensor) -> None:
        """With the batch as the loss will see it, (N, 3, H, W) and (N,) or (N, n_class), on the device."""

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        """After the update. Reading a value waits for the device."""

    def before_evaluation(self, iteration: int) -> None:
        """Before each validation."""

    def after_evaluation(self, iteration: int, result: EvaluationResult) -> None:
        """After each validation, that of the averaged weights too."""

    def after_save(self, iteration: int, path: str) -> None:
        """After a file was handed to the writer, which may take a moment yet."""

    def after_run(self, run: Any) -> None:
        """After the last iteration and the recalibration, with the results on the disk."""


def load_hook(name: str) -> Hook:
    """An instance of the class that 'package.module:Class' names, found as `python -m` finds it.

    Raises:
        HookError: where there is no such module or class, or it is no Hook, or wants arguments.
    """
    module_name, _, class_name = name.partition(":")
    if not (class_name and all(part.isidentifier() for part in module_name.split("."))):
        raise HookError(f"--hook {name}: must be package.module:Class")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise HookError(f"--hook {name}: {error}") from error
    hook_class = getattr(module, class_name, None)
    if not (isinstance(hook_class, type) and issubclass(hook_class, Hook)):
        raise HookError(f"--hook {name}: {module_name} has no class {class_name} derived from shufflenetv2.engine.Hook")
    try:
        inspect.signature(hook_class).bind()
    except TypeError as error:
        raise HookError(f"--hook {name}: {error}; a hook is made without arguments") from error
    return hook_class()

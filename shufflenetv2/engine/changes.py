"""Deliberate changes of a run's recipe: which ones a checkpoint can continue with, how it does, and their record."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import DEFAULTS, RunConfig, describe_changes, in_words
from ..errors import UserError
from ..network import published_name
from ..recipe import PlateauSchedule, fast_forward
from ..weights import describe_mismatch
from .state import TrainingState

# Options that decide what a checkpoint holds, or how its run began.
FIXED = (
    "model_size",
    "in_chans",
    "init",
    "split_bn",
    "opt",
    "opt_kwargs",
    "freeze",
    "backbone_lr_scale",
    "initial_checkpoint",
    "pretrained",
)


@dataclass(frozen=True)
class RecipeChange:
    """A difference between the recipe of a checkpoint and that of the run which continues from it.

    Attributes:
        iteration: number of iterations completed before the change.
        options: {name: (value before, value now)} of the options that differ.
    """

    iteration: int
    options: dict[str, tuple[Any, Any]]

    def __str__(self) -> str:
        return "; ".join(
            f"`{name}` was {in_words(before)} and is {in_words(now)}" for name, (before, now) in self.options.items()
        )

    @property
    def is_longer(self) -> bool:
        """Whether the run is longer now, and nothing else differs."""
        before, now = self.options.get("total_iters", (0, 0))
        return now > before and self.options.keys() <= {"total_iters", "val_interval"}  # by default a part of the former

    def record(self) -> dict[str, Any]:
        """Return the change in plain values, as checkpoints and results list it in their 'history'."""
        return {"iteration": self.iteration, "options": dict(self.options)}

    def is_permitted(self, config: RunConfig) -> bool:
        """Return whether the user has asked for such a change.

        Raises:
            UserError: they have, but no checkpoint can continue with it.
        """
        if not (config.change_recipe or (config.prolong and self.is_longer)):
            return False
        if fixed := [name for name in self.options if name in FIXED]:
            names = " and ".join(f"`{name}`" for name in fixed)
            raise UserError(f"{names} cannot change within a run; `experiment` NAME begins a new one ({self})")
        total_iters = self.options.get("total_iters", (0, self.iteration))[1]
        if total_iters < self.iteration:
            raise UserError(
                f"`total_iters` {total_iters} is less than the {self.iteration} iterations that the run has behind it"
            )
        return True


def continue_changed(state: TrainingState, content: Mapping[str, Any], change: RecipeChange) -> str:
    """Load a checkpoint into the state of a run with another recipe.

    Weights, averages and the optimizer's state of each parameter go on. The parameter groups, their learning rates included,
    are those of the new recipe. The samples go on where they were, even if the batch size changes.

    Args:
        state: as `build_training_state` made it for the new recipe; changed in place.
        content: content of the checkpoint.

    Returns:
        A line for the log.

    Raises:
        UserError: the new recipe has other parameters, or groups them in another way; nothing is changed then.
    """
    state_dict = {published_name(name): tensor for name, tensor in content["state_dict"].items()}
    if mismatch := describe_mismatch(state.network.state_dict(), state_dict):
        raise UserError(f"the recipe cannot change in this way within a run: {mismatch} ({change})")
    before, now = content["optimizer"], state.optimizer.state_dict()
    if [len(group["params"]) for group in before["param_groups"]] != [len(group["params"]) for group in now["param_groups"]]:
        raise UserError(f"the recipe cannot change in this way within a run: it groups the parameters differently ({change})")
    groups = [{**old, **new} for old, new in zip(before["param_groups"], now["param_groups"], strict=True)]
    scheduler = state.scheduler.state_dict()
    state.load_state_dict(
        {
            "state_dict_ema": state_dict,  # the start of an average that the run did not have so far
            **content,
            "optimizer": {**before, "param_groups": groups},
            "scheduler": scheduler,
            "stop_reason": "",
            "order_offset": _continued_offset(content, change),
            "history": [*content.get("history", []), change.record()],
        }
    )
    rate_before = before["param_groups"][0]["lr"]
    schedule = state.scheduler
    if isinstance(schedule, PlateauSchedule) and "rule" in content["scheduler"] and "learning_rate" not in change.options:
        schedule.load_state_dict(content["scheduler"])  # the rates that the validations have led to
        if "eval_metric" in change.options:
            schedule.forget()
    fast_forward(state.scheduler, state.iteration)
    return (
        f"recipe changed after iteration {change.iteration}: {describe_changes(change.options)}; "
        f"the learning rate goes from {rate_before:g} to {state.learning_rate:g}"
    )


def _continued_offset(content: Mapping[str, Any], change: RecipeChange) -> int:
    """Return the offset with which the next batch begins at the position that follows the last batch.

    If `balanced_sampling` changes, the stream goes on at the same position of the other order: no random augmentation is
    repeated, and from there on the other order holds.
    """
    before = DEFAULTS | content["options"]
    now = before | {name: value for name, (_, value) in change.options.items()}
    position = change.iteration * before["batch_size"] + content.get("order_offset", 0)
    if now["aug_repeats"] != before["aug_repeats"]:  # the number of positions that each sample has
        position = position // before["aug_repeats"] * now["aug_repeats"]
    return int(position - change.iteration * now["batch_size"])

"""Learning-rate schedules: pure functions of the iteration, applied to an optimizer by torch's LambdaLR.

The k-th update (k = 1, 2, ..., total_iters) uses `learning_rate(k, ...)`. The schedule `linear` is that of the original,
base_lr * (1 - k / total_iters). The other schedules have the values of timm's schedulers at time t = k - 1.
"""

import bisect
import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from ..config import MAX_NUMBER, ScheduleConfig
from ..errors import UserError


def learning_rate(iteration: int, base_lr: float, config: ScheduleConfig, total_iters: int, seed: int = 0) -> float:
    """Return the learning rate of one update.

    Args:
        iteration: number of the update, from 1; 0 gives the rate before the first update.
        base_lr: highest learning rate of the parameter group. `warmup_lr` and `min_lr` are the same for all groups.
        total_iters: number of updates, including warm-up and cool-down. The warm-up replaces the beginning of the decay; the
            decay does not start later because of it, as in timm's train.py.
        seed: seed of the noise.
    """
    t = max(0, iteration - 1)
    # 1) cool-down at the end
    if t >= total_iters - config.cooldown_iters:
        return config.min_lr
    # 2) linear warm-up
    if t < config.warmup_iters:
        lr = warmup(t, base_lr, config, total_iters)
        return lr + lr * noise(t, config, total_iters, seed)
    # 3) decay in between
    if config.sched == "linear":
        t = iteration  # the original's first update already uses less than the base rate, and its last update uses 0
    lr = decay(t, base_lr, config, total_iters)
    return max(config.min_lr, lr + lr * noise(t, config, total_iters, seed))


# ---- curves: factor of the base rate at time t, for a decay (or one cycle of it) that takes `length` updates

Curve = Callable[[float, float, ScheduleConfig], float]
STEP_FACTOR = 0.1  # default of `decay_rate` for step, multistep and plateau


def linear(t: float, length: float, config: ScheduleConfig) -> float:
    return 1 - t / length


def cosine(t: float, length: float, config: ScheduleConfig) -> float:
    return 0.5 * (1 + math.cos(math.pi * t / length))


def tanh(t: float, length: float, config: ScheduleConfig) -> float:
    progress = t / length
    return 0.5 * (1 - math.tanh(-7 * (1 - progress) + 3 * progress))  # https://arxiv.org/abs/1806.01593


def poly(t: float, length: float, config: ScheduleConfig) -> float:
    return float((1 - t / length) ** (config.decay_rate or 1.0))


def step(t: float, length: float, config: ScheduleConfig) -> float:
    return float((config.decay_rate or STEP_FACTOR) ** (t // (config.decay_iters or 1)))


def multistep(t: float, length: float, config: ScheduleConfig) -> float:
    return float((config.decay_rate or STEP_FACTOR) ** bisect.bisect_right(config.decay_milestones, t + 1))


def constant(t: float, length: float, config: ScheduleConfig) -> float:
    return 1.0


CURVES: dict[str, Curve] = {
    "linear": linear,
    "cosine": cosine,
    "tanh": tanh,
    "poly": poly,
    "step": step,
    "multistep": multistep,
    "constant": constant,
    "plateau": constant,  # PlateauSchedule lowers the base rate
}
CYCLIC = ("cosine", "tanh", "poly")
# These curves are scaled to end at `min_lr`. The other curves are not scaled: the rate stays at `min_lr` once it is reached.
ENDS_AT_MIN_LR = ("linear", *CYCLIC)


# ---- composition of a curve with cycles, warm-up and noise


def decay(t: int, base_lr: float, config: ScheduleConfig, total_iters: int) -> float:
    """Return the rate at time t, without warm-up, cool-down and noise."""
    number, t_in_cycle, length = cycle_at(t, first_cycle_length(config, total_iters), config.lr_cycle_mul)
    if number >= config.lr_cycle_limit:
        return config.min_lr
    top = base_lr * config.lr_cycle_decay**number
    bottom = config.min_lr if config.sched in ENDS_AT_MIN_LR else 0.0
    return bottom + (top - bottom) * CURVES[config.sched](t_in_cycle, length, config)


def warmup(t: int, base_lr: float, config: ScheduleConfig, total_iters: int) -> float:
    """Return the rate at time t of the linear warm-up, which rises to the base rate (for `tanh`: to the value of its curve)."""
    target = decay(config.warmup_iters, base_lr, config, total_iters) if config.sched == "tanh" else base_lr
    return config.warmup_lr + t * ((target - config.warmup_lr) / config.warmup_iters)


def noise(t: int, config: ScheduleConfig, total_iters: int, seed: int) -> float:
    """Return the relative change of the rate at time t by noise.

    It is normally distributed with standard deviation `lr_noise_std`, smaller than `lr_noise_pct` in absolute value, and 0
    outside of the part of the run that `lr_noise` gives.
    """
    if config.lr_noise is None:
        return 0.0
    first, last = (*config.lr_noise, 1.0)[:2]
    if not first * total_iters <= t < last * total_iters:
        return 0.0
    generator = torch.Generator().manual_seed(seed + t)
    while True:
        change = torch.randn(1, generator=generator).item() * config.lr_noise_std
        if abs(change) < config.lr_noise_pct:
            return change


def cycle_at(t: int, first_length: float, multiple: float) -> tuple[int, float, float]:
    """Return the number (from 0) of the cycle at time t, the time since its start, and its length."""
    if multiple == 1:
        number = int(t // first_length)
        return number, t - first_length * number, first_length
    number = math.floor(math.log(1 - t / first_length * (1 - multiple), multiple))
    start = (1 - multiple**number) / (1 - multiple) * first_length
    return number, t - start, multiple**number * first_length


def first_cycle_length(config: ScheduleConfig, total_iters: int) -> float:
    """Return the length of the first cycle, in updates; all cycles together take the updates before the cool-down."""
    cycles = sum(config.lr_cycle_mul**number for number in range(config.lr_cycle_limit))
    length = (total_iters - config.cooldown_iters) / cycles
    # Slightly shorter, so that rounding in cycle_at cannot put the first update of a cycle into the previous cycle.
    return length if config.lr_cycle_limit == 1 else length * (1 - 1e-9)


# ---- schedules of an optimizer


class Schedule(Protocol):
    """Interface of a schedule: the k-th call of `step`, before the k-th update, sets the learning rates of that update."""

    def step(self) -> None:
        """Set the learning rates of the next update."""

    def get_last_lr(self) -> Sequence[float | Tensor]:
        """Return the current rate of each parameter group."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Restore a state; the optimizer's own state must have been loaded before."""


class IterationSchedule(LambdaLR):
    """LambdaLR whose functions return the learning rate of a group itself, not a multiple of its base rate."""

    def get_lr(self) -> list[float | Tensor]:
        return [lr_of_iteration(self.last_epoch) for lr_of_iteration in self.lr_lambdas]

    def step(self, epoch: int | None = None) -> None:
        with warnings.catch_warnings():  # torch expects this call after the update, and warns; see linear_decay
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            super().step(epoch)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "iteration" in state_dict:  # written by version 0.1
            fast_forward(self, state_dict["iteration"])
        else:
            super().load_state_dict(state_dict)


class PlateauSchedule:
    """Schedule that lowers the base rates when the validation error no longer falls; call `observe` after each validation.

    Args:
        patience: number of successive validations without a lower error that are tolerated before the rates are lowered.

    Attributes:
        iteration: number of calls of `step`, and so the number of the update whose rates are set.
    """

    def __init__(self, optimizer: Optimizer, config: ScheduleConfig, total_iters: int, *, patience: int, seed: int = 0) -> None:
        self.iteration = 0
        self._optimizer, self._config, self._total_iters, self._seed = optimizer, config, total_iters, seed
        # ReduceLROnPlateau changes the rates of an optimizer. It gets a second optimizer, which holds only the base rates, so
        # that warm-up and noise can be applied to them afterwards.
        base_lrs = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self._base = SGD([{"params": [nn.Parameter(torch.empty(0))], "lr": lr} for lr in base_lrs])
        self._rule = ReduceLROnPlateau(
            self._base, factor=config.decay_rate or STEP_FACTOR, patience=patience, min_lr=config.min_lr
        )
        self._set_rates()

    def _set_rates(self) -> None:
        for group, base in zip(self._optimizer.param_groups, self._base.param_groups, strict=True):
            group["lr"] = learning_rate(self.iteration, base["lr"], self._config, self._total_iters, self._seed)

    def step(self) -> None:
        self.iteration += 1
        self._set_rates()

    def observe(self, error: float) -> None:
        """Receive the error of a validation, and lower the rates from the next update on if it is time to.

        All processes must pass the same error. Errors during the warm-up are ignored.
        """
        if self.iteration > self._config.warmup_iters:
            self._rule.step(error)

    def forget(self) -> None:
        """Forget the errors observed so far, and keep the rates: the errors to come are measured in another way."""
        self._rule.best, self._rule.num_bad_epochs = math.inf, 0

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self._optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "rule": self._rule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.iteration = state_dict["iteration"]
        self._rule.load_state_dict(state_dict["rule"])
        for base, lr in zip(self._base.param_groups, self._rule.get_last_lr(), strict=True):
            base["lr"] = lr


def linear_decay(optimizer: Optimizer, total_iters: int) -> LambdaLR:
    """Build the original's schedule, whose rate is base_lr * (1 - k / total_iters) after k calls of `step`.

    As in the original, `step` is called *before* the update of an iteration: the k-th update (k = 1, 2, ...) uses the rate for
    k, and the last update uses 0.
    """
    return _iteration_schedule(optimizer, ScheduleConfig(), total_iters)


def build_schedule(
    optimizer: Optimizer, config: ScheduleConfig, total_iters: int, *, seed: int = 0, val_interval: int = 1
) -> IterationSchedule | PlateauSchedule:
    """Build the schedule of an optimizer.

    Args:
        optimizer: its parameter groups must have their highest learning rates.
        total_iters: number of updates.
        seed: seed of the noise.
        val_interval: number of updates between two calls of `PlateauSchedule.observe`.

    Raises:
        UserError: for options that contradict each other or have no effect on this schedule.
    """
    check_schedule(config, total_iters, min(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups))
    if config.sched == "plateau":
        return PlateauSchedule(optimizer, config, total_iters, patience=config.patience_iters // val_interval, seed=seed)
    return _iteration_schedule(optimizer, config, total_iters, seed)


def _iteration_schedule(optimizer: Optimizer, config: ScheduleConfig, total_iters: int, seed: int = 0) -> IterationSchedule:
    def rate_of_iteration(base_lr: float) -> Callable[[int], float]:
        return lambda iteration: learning_rate(iteration, base_lr, config, total_iters, seed)

    base_lrs = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    return IterationSchedule(optimizer, [rate_of_iteration(base_lr) for base_lr in base_lrs])


def fast_forward(schedule: Schedule, iteration: int) -> None:
    """Set a schedule and its optimizer's learning rates as if `step` had been called `iteration` times on a new schedule."""
    if isinstance(schedule, PlateauSchedule):
        schedule.iteration = iteration - 1
    else:
        schedule.load_state_dict({**schedule.state_dict(), "last_epoch": iteration - 1, "_step_count": iteration})
    schedule.step()


# Options that only some schedules use, with these schedules
USED_BY = {
    "decay_iters": ("step",),
    "decay_milestones": ("multistep",),
    "decay_rate": ("step", "multistep", "poly", "plateau"),
    "lr_cycle_mul": CYCLIC,
    "lr_cycle_limit": CYCLIC,
    "lr_cycle_decay": CYCLIC,
}


def check_schedule(config: ScheduleConfig, total_iters: int, base_lr: float) -> None:
    """Check the options of a schedule against each other.

    Args:
        base_lr: lowest of the parameter groups' base learning rates.

    Raises:
        UserError: for options that contradict each other or have no effect on this schedule.
    """
    sched, milestones = config.sched, config.decay_milestones
    for name, schedules in USED_BY.items():
        if sched not in schedules and getattr(config, name) != getattr(ScheduleConfig, name):
            raise UserError(f"`{name}` has no effect on `sched` {sched}; it is for {', '.join(schedules)}")
    if config.warmup_iters + config.cooldown_iters >= total_iters:
        raise UserError(
            f"`warmup_iters` {config.warmup_iters} and `cooldown_iters` {config.cooldown_iters} leave none of the "
            f"{total_iters} iterations between them; lower them"
        )
    if not config.min_lr <= base_lr:
        raise UserError(f"`min_lr` {config.min_lr:g} is higher than the learning rate, {base_lr:g}; lower it")
    if sched == "step" and not config.decay_iters:
        raise UserError("`sched` step needs `decay_iters`, the number of iterations between two steps")
    if sched == "multistep":
        text = " ".join(map(str, milestones))
        if not milestones:
            raise UserError("`sched` multistep needs `decay_milestones`, the iterations of the steps")
        if any(first >= second for first, second in pairwise(milestones)):
            raise UserError(f"`decay_milestones` {text} must be in ascending order")
        if milestones[-1] > total_iters:
            raise UserError(f"`decay_milestones` {text} exceed the {total_iters} iterations; leave the last milestones out")
    if sched == "plateau" and config.decay_rate and config.decay_rate >= 1:
        raise UserError(f"`decay_rate` {config.decay_rate:g} of `sched` plateau must be below 1")
    if sched in ("step", "multistep") and config.decay_rate:
        steps = total_iters // config.decay_iters if config.decay_iters else len(milestones)
        if math.log(base_lr) + steps * math.log(config.decay_rate) > math.log(MAX_NUMBER):
            raise UserError(
                f"`decay_rate` {config.decay_rate:g} raises the learning rate to more than {MAX_NUMBER:g}; lower it"
            )
    if config.lr_noise:
        if config.lr_noise[0] >= (*config.lr_noise, 1.0)[1]:
            text = " ".join(f"{fraction:g}" for fraction in config.lr_noise)
            raise UserError(f"`lr_noise` {text} is an empty part of the run; give the smaller fraction first")
        if config.lr_noise_std > 100 * config.lr_noise_pct:  # `noise` would draw very often until a draw is accepted
            raise UserError(f"`lr_noise_std` {config.lr_noise_std:g} must be at most 100 times `lr_noise_pct`")
    first = first_cycle_length(config, total_iters)
    if min(first, first * config.lr_cycle_mul ** (config.lr_cycle_limit - 1)) < 0.999:
        raise UserError(f"`lr_cycle_limit` {config.lr_cycle_limit} makes cycles shorter than an iteration; lower it")

"""Learning-rate schedules, all in iterations: the original's linear one, and timm's."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..errors import UserError
from .averaging import linear_decay

SCHEDULES = ("linear", "cosine", "step", "multistep", "tanh", "poly", "plateau", "constant")
CYCLIC = ("cosine", "tanh", "poly")
# Which schedules look at an option that not all of them look at.
USED_BY = {
    "decay_iters": ("step",),
    "decay_milestones": ("multistep",),
    "decay_rate": ("step", "multistep", "poly", "plateau"),
    "cycle_mul": CYCLIC,
    "cycle_limit": CYCLIC,
    "cycle_decay": CYCLIC,
}


class ScheduleError(UserError):
    """A schedule that contradicts itself; the text is one line that names the option and the remedy."""


@dataclass(frozen=True)
class ScheduleOptions:
    """What a schedule is built from.

    Rates in proportion to a group's own base rate are every group's; `warmup_lr` and `min_lr` are
    rates as they are, the same for all groups (as in timm).

    Attributes:
        sched: one of `SCHEDULES`.
        total_iters: updates in all, warm-up and cool-down among them.
        warmup_iters: the first updates, from `warmup_lr` in equal steps up to the base rate (tanh: to its curve).
            They lie over the curve's beginning and do not put it off, as in timm's `train.py`.
        min_lr: where the curve ends. After the warm-up no rate is lower.
        decay_iters: step: after every so many updates the rate drops.
        decay_milestones: multistep: the first update of each lower rate.
        decay_rate: step, multistep, plateau: a drop's factor. poly: the power, which is what timm takes it for.
        cooldown_iters: the last updates, at `min_lr`.
        patience: plateau: the rate drops after one more validation than this without a lower error.
        lr_noise: share of `total_iters` from which on rates are noisy, and that up to which (default: the end).
        lr_noise_pct: the noise is less than this share of the rate.
        lr_noise_std: standard deviation of the noise, before it is cut off there.
        cycle_mul: length of a cycle, as a multiple of the one before.
        cycle_limit: number of cycles; together they take all updates but the cool-down's.
        cycle_decay: the rate a cycle begins with, as a multiple of that of the one before.
        seed: of the noise, which is a function of it and of the update.
    """

    sched: str
    total_iters: int
    warmup_iters: int = 0
    warmup_lr: float = 1e-6
    min_lr: float = 0.0
    decay_iters: int | None = None
    decay_milestones: tuple[int, ...] = ()
    decay_rate: float = 0.1
    cooldown_iters: int = 0
    patience: int = 10
    lr_noise: tuple[float, ...] | None = None
    lr_noise_pct: float = 0.67
    lr_noise_std: float = 1.0
    cycle_mul: float = 1.0
    cycle_limit: int = 1
    cycle_decay: float = 0.5
    seed: int = 0


class Schedule(Protocol):
    """What training asks of a schedule; torch's LambdaLR is one too."""

    def step(self) -> None:
        """Sets the rates of the next update; called before it."""

    def get_last_lr(self) -> Sequence[float | Tensor]:
        """The rate of each parameter group."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Goes on where that was taken, the optimizer's own state being loaded as well."""


class TimmSchedule:
    """One of timm's schedules, between a warm-up and a cool-down.

    The k-th call of step() sets the rates of the k-th update (k = 1, 2, ...), which are timm's at
    t = k - 1. They depend on nothing but k.

    Attributes:
        iteration: how many updates have had their rates.
    """

    def __init__(self, optimizer: Optimizer, options: ScheduleOptions) -> None:
        self.iteration = 0
        self._optimizer, self._options = optimizer, options
        self._timm = _timm_scheduler(optimizer, options)

    def step(self) -> None:
        options, t = self._options, self.iteration
        self.iteration += 1
        if t >= options.total_iters - options.cooldown_iters:
            self._timm.update_groups(options.min_lr)
        elif t < options.warmup_iters:
            self._timm.step_update(t)
        else:
            self._timm.step_update(t + 1 if options.sched == "linear" else t)  # base * (1 - k / total), see linear_decay
            for group in self._optimizer.param_groups:
                group["lr"] = max(group["lr"], options.min_lr)

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self._optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.iteration = state_dict["iteration"]


class PlateauSchedule(TimmSchedule):
    """A rate that drops when the validation error no longer does: call `observe` after each validation."""

    def __init__(self, optimizer: Optimizer, options: ScheduleOptions) -> None:
        super().__init__(optimizer, options)
        # torch's rule multiplies the rates it finds. The optimizer's have warm-up and noise in them, so it gets its own.
        groups = [{"params": [nn.Parameter(torch.empty(0))], "lr": rate} for rate in self._timm.base_values]
        self._plain = SGD(groups)
        factor, patience, lowest = options.decay_rate, options.patience, options.min_lr
        self._rule = ReduceLROnPlateau(self._plain, factor=factor, patience=patience, min_lr=lowest)

    def observe(self, error: float) -> None:
        """Tells the error of a validation (lower is better); the next update's rate may be lower.

        All processes must be told the same. What is seen during the warm-up does not count.
        """
        if self.iteration > self._options.warmup_iters:
            self._rule.step(error)
            self._timm.base_values = self._rule.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rule": self._rule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        super().load_state_dict(state_dict)
        self._rule.load_state_dict(state_dict["rule"])
        self._timm.base_values = self._rule.get_last_lr()
        for group, rate in zip(self._plain.param_groups, self._timm.base_values, strict=True):
            group["lr"] = rate


def build_schedule(optimizer: Optimizer, options: ScheduleOptions) -> Schedule:
    """The schedule of an optimizer's groups, each from the rate it has now.

    Returns:
        'linear' without any extra is `linear_decay` itself, 'plateau' is a `PlateauSchedule`,
        everything else a `TimmSchedule`.

    Raises:
        ScheduleError: for options that contradict each other, or that the schedule would not look at.
    """
    lowest = min(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
    _refuse_nonsense(options, lowest)
    extras = (options.warmup_iters, options.min_lr, options.cooldown_iters, options.lr_noise)
    if options.sched == "linear" and not any(extras):
        return linear_decay(optimizer, options.total_iters)
    return PlateauSchedule(optimizer, options) if options.sched == "plateau" else TimmSchedule(optimizer, options)


def _timm_scheduler(optimizer: Optimizer, options: ScheduleOptions) -> Any:
    """timm's, indexed by updates from 0, where the warm-up begins; good for all updates before the cool-down."""
    from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler, StepLRScheduler, TanhLRScheduler

    common: dict[str, Any] = {
        "t_in_epochs": False,
        "warmup_t": options.warmup_iters,
        "warmup_lr_init": options.warmup_lr,
        "warmup_prefix": False,
        "noise_range_t": [share * options.total_iters for share in (*options.lr_noise, 1.0)[:2]] if options.lr_noise else None,
        "noise_pct": options.lr_noise_pct,
        "noise_std": options.lr_noise_std,
        "noise_seed": options.seed,
    }
    if options.sched in ("step", "constant", "plateau"):
        factor = options.decay_rate if options.sched == "step" else 1.0
        return StepLRScheduler(optimizer, decay_t=options.decay_iters or 1, decay_rate=factor, **common)
    if options.sched == "multistep":
        milestones = list(options.decay_milestones)
        return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=options.decay_rate, **common)
    common |= {
        "t_initial": _first_cycle(options),
        "lr_min": options.min_lr,
        "cycle_mul": options.cycle_mul,
        "cycle_decay": options.cycle_decay,
        "cycle_limit": options.cycle_limit,
    }
    if options.sched == "cosine":
        return CosineLRScheduler(optimizer, **common)
    if options.sched == "tanh":
        return TanhLRScheduler(optimizer, **common)
    return PolyLRScheduler(optimizer, power=1.0 if options.sched == "linear" else options.decay_rate, **common)


def _first_cycle(options: ScheduleOptions) -> float:
    """The length of the first cycle, in updates, of as many as fill all but the cool-down."""
    cycles = sum(options.cycle_mul**number for number in range(options.cycle_limit))
    length = (options.total_iters - options.cooldown_iters) / cycles
    # A hair less, so that a cycle that begins on a whole update has begun there for timm too, however it rounds.
    return length if options.cycle_limit == 1 else length * (1 - 1e-9)


def _refuse_nonsense(options: ScheduleOptions, base_lr: float) -> None:
    sched, total, milestones = options.sched, options.total_iters, options.decay_milestones
    if sched not in SCHEDULES:
        raise ScheduleError(f"--sched {sched} is unknown; choose one of {', '.join(SCHEDULES)}")
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name, schedules in USED_BY.items():
        if sched not in schedules and getattr(options, name) != defaults[name]:
            flag = ("--lr-" if name.startswith("cycle") else "--") + name.replace("_", "-")
            raise ScheduleError(f"{flag} means nothing to --sched {sched}; it is for {', '.join(schedules)}")
    if options.warmup_iters + options.cooldown_iters >= total:
        raise ScheduleError(
            f"--warmup-iters {options.warmup_iters} and --cooldown-iters {options.cooldown_iters} leave nothing "
            f"of the {total} iterations between them; shorten them"
        )
    if not 0 <= options.min_lr <= base_lr:
        raise ScheduleError(f"--min-lr {options.min_lr:g} is not between 0 and the learning rate, {base_lr:g}")
    if sched == "step" and (options.decay_iters or 0) < 1:
        raise ScheduleError("--sched step needs --decay-iters, the iterations between two drops")
    if sched == "multistep":
        text = " ".join(map(str, milestones))
        if not milestones:
            raise ScheduleError("--sched multistep needs --decay-milestones, the iterations of the drops")
        if any(one >= other for one, other in zip((0, *milestones), milestones, strict=False)):
            raise ScheduleError(f"--decay-milestones {text} are not increasing from 1 on; sort them")
        if milestones[-1] > total:
            raise ScheduleError(f"--decay-milestones {text} go beyond the {total} iterations; leave those out")
    if options.decay_rate <= 0 or (sched == "plateau" and options.decay_rate >= 1):
        raise ScheduleError(f"--decay-rate {options.decay_rate:g} is not above 0" + " and below 1" * (sched == "plateau"))
    if sched == "plateau" and options.patience < 0:
        raise ScheduleError(f"--patience-iters: {options.patience} validations are less than none")
    if noise := options.lr_noise:
        text = " ".join(f"{share:g}" for share in noise)
        if len(noise) > 2 or not all(0 <= share <= 1 for share in noise) or noise[0] >= (*noise, 1.0)[1]:
            raise ScheduleError(f"--lr-noise {text} must be one or two shares of the run, from 0 to 1, the smaller one first")
        if not 0 < options.lr_noise_pct <= 1:
            raise ScheduleError(f"--lr-noise-pct {options.lr_noise_pct:g} is not above 0 and at most 1")
        if not 0 <= options.lr_noise_std <= 100 * options.lr_noise_pct:  # timm draws until it finds one below the limit
            raise ScheduleError(f"--lr-noise-std {options.lr_noise_std:g} is not between 0 and 100 times --lr-noise-pct")
    if options.cycle_limit < 1 or options.cycle_mul <= 0 or options.cycle_decay <= 0:
        raise ScheduleError("--lr-cycle-limit must be at least 1, --lr-cycle-mul and --lr-cycle-decay above 0")
    first = _first_cycle(options)
    if min(first, first * options.cycle_mul ** (options.cycle_limit - 1)) < 0.999:
        raise ScheduleError(f"--lr-cycle-limit {options.cycle_limit} makes cycles shorter than an iteration; have fewer")

"""Learning rates are the original's, timm's or a formula's, update by update, also after an interruption."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler, StepLRScheduler, TanhLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from shufflenetv2 import files
from shufflenetv2.config import ScheduleConfig
from shufflenetv2.errors import UserError
from shufflenetv2.recipe import (
    PlateauSchedule,
    Schedule,
    build_schedule,
    fast_forward,
    learning_rate,
    linear_decay,
)


def make_optimizer(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def walk(schedule: Schedule, updates: int) -> Iterator[Sequence[float | Tensor]]:
    """Yield the rates of the next updates, group by group."""
    for _ in range(updates):
        schedule.step()
        yield list(schedule.get_last_lr())


def rates(sched: Any, total_iters: int, base_lr: float = 0.5, seed: int = 0, **options: Any) -> list[float]:
    """Return the rates of the updates 1, 2, ..., total_iters, as the optimizer gets them."""
    optimizer = make_optimizer(base_lr)
    schedule = build_schedule(optimizer, ScheduleConfig(sched=sched, **options), total_iters, seed=seed)
    result = []
    for (rate,) in walk(schedule, total_iters):
        assert optimizer.param_groups[0]["lr"] == rate
        result.append(float(rate))
    return result


def timm_rates(scheduler_class: type[Any], total_iters: int, base_lr: float = 0.5, **arguments: Any) -> list[float]:
    """Return the rates of timm's scheduler at its times 0, 1, ..., total_iters - 1."""
    optimizer, result = make_optimizer(base_lr), []
    scheduler = scheduler_class(optimizer, t_in_epochs=False, **arguments)
    for t in range(total_iters):
        scheduler.step_update(t)
        result.append(optimizer.param_groups[0]["lr"])
    return result


# ---- curves


def test_update_k_uses_the_base_rate_times_one_minus_k_over_total() -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    schedule = linear_decay(optimizer, 7)
    before = 0.0
    for k in range(1, 8):
        parameter.grad = torch.ones_like(parameter)
        schedule.step()
        optimizer.step()
        used, before = before - parameter.item(), parameter.item()
        assert used == pytest.approx(0.5 * (1 - k / 7), abs=1e-12)
    schedule.step()
    assert schedule.get_last_lr() == [0.0]  # never below


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # by the plain LambdaLR
@pytest.mark.parametrize("total_iters", [37, 300_000])
def test_the_default_schedule_is_the_originals_bit_for_bit(total_iters: int) -> None:
    original = LambdaLR(make_optimizer(0.5, 0.3), lambda k: max(0.0, 1.0 - k / total_iters))
    expected = list(walk(original, 40))
    for schedule in (
        linear_decay(make_optimizer(0.5, 0.3), total_iters),
        build_schedule(make_optimizer(0.5, 0.3), ScheduleConfig(), total_iters, seed=3),
    ):
        assert isinstance(schedule, LambdaLR)
        assert schedule.state_dict().keys() == original.state_dict().keys()
        assert list(walk(schedule, 40)) == expected


def test_no_warning_about_the_order_of_schedule_and_update(recwarn: pytest.WarningsRecorder) -> None:
    list(walk(linear_decay(make_optimizer(0.5), 10), 3))
    assert not recwarn.list


def test_linear_after_a_warm_up_is_the_originals_bit_for_bit() -> None:
    used = rates("linear", 37, warmup_iters=5, warmup_lr=0.1)
    assert used[:5] == pytest.approx([0.1, 0.18, 0.26, 0.34, 0.42])
    assert used[5:] == [0.5 * (1 - k / 37) for k in range(6, 38)]


def test_linear_ends_at_the_lowest_rate_and_stays_there() -> None:
    used = rates("linear", 20, min_lr=0.1, cooldown_iters=4)
    assert used[:16] == pytest.approx([0.1 + 0.4 * (1 - k / 16) for k in range(1, 17)])
    assert used[15:] == [0.1] * 5


def test_cosine_is_timms_and_the_formula() -> None:
    used = rates("cosine", 100, min_lr=0.01)
    assert used == timm_rates(CosineLRScheduler, 100, t_initial=100, lr_min=0.01)
    assert used == pytest.approx([0.01 + 0.245 * (1 + math.cos(math.pi * (k - 1) / 100)) for k in range(1, 101)])


def test_tanh_is_timms() -> None:
    used = rates("tanh", 50, min_lr=0.01, warmup_iters=5)
    assert used == timm_rates(TanhLRScheduler, 50, t_initial=50, lr_min=0.01, warmup_t=5, warmup_lr_init=1e-6)


def test_poly_is_timms_with_decay_rate_as_the_exponent() -> None:
    assert rates("poly", 50, decay_rate=0.9) == timm_rates(PolyLRScheduler, 50, t_initial=50, power=0.9)
    assert rates("poly", 50) == pytest.approx([0.5 * (1 - (k - 1) / 50) for k in range(1, 51)])


def test_step_is_timms_and_does_not_fall_below_the_lowest_rate() -> None:
    used = rates("step", 35, decay_iters=10, decay_rate=0.2)
    assert used == timm_rates(StepLRScheduler, 35, decay_t=10, decay_rate=0.2)
    assert used == pytest.approx([0.5] * 10 + [0.1] * 10 + [0.02] * 10 + [0.004] * 5)
    floored = rates("step", 35, decay_iters=10, decay_rate=0.2, min_lr=0.01, cooldown_iters=7)
    assert floored == pytest.approx([0.5] * 10 + [0.1] * 10 + [0.02] * 8 + [0.01] * 7)


def test_multistep_is_timms_and_each_milestone_is_the_first_update_of_a_lower_rate() -> None:
    used = rates("multistep", 20, decay_milestones=(7, 15))
    assert used == timm_rates(MultiStepLRScheduler, 20, decay_t=[7, 15], decay_rate=0.1)
    assert used == pytest.approx([0.5] * 6 + [0.05] * 8 + [0.005] * 6)


def test_constant_is_constant_between_warm_up_and_cool_down() -> None:
    used = rates("constant", 10, warmup_iters=2, warmup_lr=0.3, cooldown_iters=3, min_lr=0.05)
    assert used == pytest.approx([0.3, 0.4, *[0.5] * 5, *[0.05] * 3])


ALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {"lr_cycle_limit": 3, "lr_cycle_mul": 2.0},
    "step": {"decay_iters": 9},
    "multistep": {"decay_milestones": (12, 25)},
    "tanh": {"lr_cycle_limit": 2},
    "poly": {"lr_cycle_limit": 2, "lr_cycle_decay": 0.7, "decay_rate": 0.5},
    "plateau": {"patience_iters": 1, "decay_rate": 0.5},
    "constant": {},
}


@pytest.mark.parametrize("sched", ALL)
def test_a_warm_up_rises_in_equal_steps_to_the_schedule(sched: str) -> None:
    used = rates(sched, 60, warmup_iters=10, warmup_lr=0.1, **ALL[sched])
    assert used[0] == 0.1
    steps = [after - before for before, after in pairwise(used[:10])]
    assert steps == pytest.approx([steps[0]] * 9)
    top = 0.5 if sched != "tanh" else used[10]  # timm's warm-up ends at the curve of tanh
    assert used[9] + steps[0] == pytest.approx(top)


@pytest.mark.parametrize("sched", ALL)
def test_a_cool_down_holds_the_lowest_rate_to_the_end(sched: str) -> None:
    used = rates(sched, 60, cooldown_iters=7, min_lr=0.003, lr_noise=(0.5,), **ALL[sched])
    assert used[-7:] == [0.003] * 7
    assert all(rate >= 0.003 for rate in used)


# ---- cycles


@pytest.mark.parametrize("sched", ["cosine", "tanh", "poly"])
def test_cycles_fill_the_iterations_before_the_cool_down(sched: str) -> None:
    """Lengths 10, 20 and 40, and a cool-down of 5: the first updates of the cycles are 1, 11 and 31."""
    exponent: dict[str, Any] = {"decay_rate": 0.9} if sched == "poly" else {}
    used = rates(sched, 75, lr_cycle_limit=3, lr_cycle_mul=2.0, lr_cycle_decay=0.4, cooldown_iters=5, **exponent)
    starts = [k for k in range(2, 76) if used[k - 1] > used[k - 2]]
    assert starts == [11, 31]
    assert [used[k - 1] for k in (1, 11, 31)] == pytest.approx([0.5, 0.2, 0.08], rel=1e-5)
    assert used[70:] == [0] * 5
    last_cycle = rates(sched, 40, base_lr=0.08, **exponent)
    assert used[30:70] == pytest.approx(last_cycle, rel=1e-6)


def test_cycles_are_timms() -> None:
    used = rates("cosine", 90, lr_cycle_limit=3, lr_cycle_decay=0.5, min_lr=0.01)
    expected = timm_rates(CosineLRScheduler, 90, t_initial=30, cycle_limit=3, cycle_decay=0.5, lr_min=0.01)
    assert used == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("total", "mul", "limit"),
    [(4669, 0.4, 4), (2222, 10.0, 4), (700, 2.0, 3), (100, 1.0, 3), (728, 3.0, 6)],
)
def test_cycles_meet_without_a_gap_however_their_lengths_round(total: int, mul: float, limit: int) -> None:
    """Rounding could put the first update of a cycle beyond the end of the cycle before, where poly is not a number."""
    used = rates("poly", total, lr_cycle_limit=limit, lr_cycle_mul=mul, lr_cycle_decay=1.0, decay_rate=0.3)
    assert all(0 < rate <= 0.5 for rate in used)
    assert sum(after > before for before, after in pairwise(used)) == limit - 1


# ---- noise


def test_noise_is_timms_and_only_within_its_part_of_the_run() -> None:
    options: dict[str, Any] = {"lr_noise": (0.4, 0.8), "lr_noise_pct": 0.3, "lr_noise_std": 0.5}
    used, plain = rates("cosine", 50, seed=9, **options), rates("cosine", 50)
    noise: dict[str, Any] = {"noise_range_t": [20, 40], "noise_pct": 0.3, "noise_std": 0.5, "noise_seed": 9}
    assert used == timm_rates(CosineLRScheduler, 50, t_initial=50, **noise)
    assert [k for k in range(1, 51) if used[k - 1] != plain[k - 1]] == list(range(21, 41))
    assert all(abs(noisy / rate - 1) < 0.3 for noisy, rate in zip(used, plain, strict=True))
    assert rates("cosine", 50, seed=10, **options) != used


@pytest.mark.parametrize("sched", ALL)
def test_noise_from_a_single_fraction_lasts_to_the_end(sched: str) -> None:
    used, plain = (rates(sched, 60, lr_noise=noise, **ALL[sched]) for noise in ((0.5,), None))
    assert used[:29] == plain[:29]
    assert all(noisy != rate for noisy, rate in zip(used[30:59], plain[30:59], strict=True))


# ---- groups


@pytest.mark.parametrize("sched", ALL)
def test_two_groups_keep_their_proportion(sched: Any) -> None:
    schedule = build_schedule(make_optimizer(0.5, 0.05), ScheduleConfig(sched=sched, lr_noise=(0.2, 0.7), **ALL[sched]), 60)
    for head, body in walk(schedule, 60):
        assert body == pytest.approx(head / 10)


def test_every_group_starts_at_the_warm_up_rate_and_ends_at_the_lowest() -> None:
    config = ScheduleConfig(sched="cosine", warmup_iters=5, warmup_lr=0.001, min_lr=0.01, cooldown_iters=2)
    used = list(walk(build_schedule(make_optimizer(0.5, 0.05), config, 30), 30))
    assert used[0] == [0.001, 0.001]
    assert used[-1] == [0.01, 0.01]
    assert used[10][0] > used[10][1] > 0.01


# ---- plateau


def plateau(**options: Any) -> tuple[PlateauSchedule, torch.optim.SGD]:
    optimizer = make_optimizer(0.5, 0.05)
    schedule = build_schedule(optimizer, ScheduleConfig(sched="plateau", **options), 200, val_interval=5)
    assert isinstance(schedule, PlateauSchedule)
    return schedule, optimizer


def test_plateau_drops_where_torchs_rule_does() -> None:
    errors = [0.9, 0.8, 0.8, 0.79999, 0.85, 0.7, 0.71, 0.72, 0.73, 0.74, float("nan"), 0.75, 0.6, 0.6, 0.6, 0.6]
    schedule, optimizer = plateau(patience_iters=10, decay_rate=0.3, min_lr=0.002)
    reference = make_optimizer(0.5, 0.05)
    rule = ReduceLROnPlateau(reference, factor=0.3, patience=2, min_lr=0.002)
    used_at_validations = []
    for error in errors:
        for used in walk(schedule, 5):
            assert used == [group["lr"] for group in reference.param_groups]
        schedule.observe(error)
        rule.step(error)
        used_at_validations.append(optimizer.param_groups[0]["lr"])
    assert used_at_validations == pytest.approx([0.5] * 5 + [0.15] * 4 + [0.045] * 3 + [0.0135] * 4)
    schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(0.00405), 0.002]  # and not below


def test_plateau_ignores_validations_during_the_warm_up() -> None:
    schedule, _ = plateau(patience_iters=1, warmup_iters=10)
    for _ in range(10):
        schedule.step()
        schedule.observe(0.9)
    assert list(walk(schedule, 1)) == [[0.5, 0.05]]
    schedule.observe(0.9)
    schedule.observe(0.9)
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.05, 0.005])


# ---- resuming


RESUMABLE: dict[str, Any] = {"cooldown_iters": 6, "min_lr": 0.001, "lr_noise": (0.1, 0.8)}


def build(sched: Any, warmup_iters: int = 10) -> tuple[torch.optim.SGD, Schedule]:
    optimizer = make_optimizer(0.5, 0.05)
    config = ScheduleConfig(sched=sched, warmup_iters=warmup_iters, **RESUMABLE, **ALL[sched])
    return optimizer, build_schedule(optimizer, config, 60, seed=4)


def run(schedule: Schedule, first: int, last: int) -> list[Sequence[float | Tensor]]:
    """Return the rates of some updates; every third is followed by a validation that is seldom better than the last."""
    used: list[Sequence[float | Tensor]] = []
    for k in range(first, last + 1):
        used += walk(schedule, 1)
        if isinstance(schedule, PlateauSchedule) and k % 3 == 0:
            schedule.observe(0.9 - 0.1 * (k // 20))
    return used


@pytest.mark.parametrize("warmup_iters", [0, 10])
@pytest.mark.parametrize("sched", ALL)
def test_a_schedule_read_from_a_file_continues_with_the_same_bits(tmp_path: Path, sched: str, warmup_iters: int) -> None:
    expected = run(build(sched, warmup_iters)[1], 1, 60)
    for saved in (0, 1, 10, 11, 30, 54):
        optimizer, schedule = build(sched, warmup_iters)
        run(schedule, 1, saved)
        files.write(tmp_path / f"{saved}", {"optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict()})
        state = files.read(tmp_path / f"{saved}")
        resumed_optimizer, resumed = build(sched, warmup_iters)
        resumed_optimizer.load_state_dict(state["optimizer"])
        resumed.load_state_dict(state["scheduler"])
        assert list(resumed.get_last_lr()) == list(schedule.get_last_lr())
        assert run(resumed, saved + 1, 60) == expected[saved:]


@pytest.mark.parametrize("sched", [sched for sched in ALL if sched != "plateau"])
def test_checkpoints_of_version_0_1_continue(sched: str) -> None:
    """Version 0.1 stored no more than the iteration, except for linear without extras (LambdaLR's state) and plateau."""
    expected = run(build(sched)[1], 1, 60)
    _, schedule = build(sched)
    schedule.load_state_dict({"iteration": 23})
    assert list(schedule.get_last_lr()) == expected[22]
    assert run(schedule, 24, 60) == expected[23:]


@pytest.mark.parametrize("sched", ALL)
def test_fast_forward_leads_where_the_steps_lead(sched: str) -> None:
    for iteration in (0, 1, 2, 9, 10, 33, 60):
        stepped_optimizer, stepped = build(sched)
        for _ in range(iteration):
            stepped.step()
        optimizer, schedule = build(sched)
        list(walk(schedule, 5))  # may also lead backwards
        fast_forward(schedule, iteration)
        assert schedule.state_dict() == stepped.state_dict()
        assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in stepped_optimizer.param_groups]
        assert next(walk(schedule, 1)) == next(walk(stepped, 1))


def test_a_learning_rate_is_a_function_of_the_iteration() -> None:
    config = ScheduleConfig(sched="cosine", warmup_iters=10, **RESUMABLE)
    expected = rates("cosine", 60, seed=4, warmup_iters=10, **RESUMABLE)
    assert [learning_rate(k, 0.5, config, 60, seed=4) for k in range(60, 0, -1)] == expected[::-1]


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"warmup_iters": 80, "cooldown_iters": 20},
            "`warmup_iters` 80 and `cooldown_iters` 20 leave none of the 100 iterations",
        ),
        ({"warmup_iters": 101}, "`warmup_iters` 101"),
        ({"min_lr": 0.06}, r"`min_lr` 0\.06 is higher than the learning rate, 0\.05"),
        ({"sched": "step"}, "`sched` step needs `decay_iters`"),
        ({"sched": "multistep"}, "`sched` multistep needs `decay_milestones`"),
        ({"sched": "multistep", "decay_milestones": (10, 10)}, "`decay_milestones` 10 10 must be in ascending order"),
        ({"sched": "multistep", "decay_milestones": (10, 101)}, "`decay_milestones` 10 101 exceed the 100 iterations"),
        ({"decay_milestones": (10,)}, "`decay_milestones` has no effect on `sched` linear; it is for multistep"),
        ({"sched": "cosine", "decay_iters": 10}, "`decay_iters` has no effect on `sched` cosine; it is for step"),
        ({"decay_rate": 0.5}, "`decay_rate` has no effect on `sched` linear; it is for step, multistep, poly, plateau"),
        ({"sched": "step", "decay_iters": 5, "lr_cycle_mul": 2.0}, "`lr_cycle_mul` has no effect on `sched` step"),
        ({"sched": "plateau", "lr_cycle_limit": 2}, "`lr_cycle_limit` has no effect on `sched` plateau"),
        ({"lr_cycle_decay": 0.1}, "`lr_cycle_decay` has no effect on `sched` linear; it is for cosine, tanh, poly"),
        ({"sched": "cosine", "lr_cycle_limit": 101}, "`lr_cycle_limit` 101 makes cycles shorter than an iteration"),
        ({"sched": "cosine", "lr_cycle_limit": 5, "lr_cycle_mul": 0.1}, "`lr_cycle_limit` 5 makes cycles shorter"),
        ({"sched": "plateau", "decay_rate": 1.0}, "`decay_rate` 1 of `sched` plateau must be below 1"),
        ({"lr_noise": (0.5, 0.2)}, "`lr_noise` 0.5 0.2 .* give the smaller fraction first"),
        ({"lr_noise": (0.1,), "lr_noise_std": 1e9}, r"`lr_noise_std` 1e\+09 must be at most 100 times `lr_noise_pct`"),
    ],
)
def test_contradictory_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        build_schedule(make_optimizer(0.5, 0.05), ScheduleConfig(**options), 100)
    assert "\n" not in str(refusal.value)

"""Rates are the original's, timm's or a formula's, update by update, also after an interruption."""

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
from shufflenetv2.recipe import linear_decay
from shufflenetv2.recipe.schedules import PlateauSchedule, Schedule, ScheduleError, ScheduleOptions, build_schedule

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


def optimizer_of(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def walk(schedule: Schedule, updates: int) -> Iterator[Sequence[float | Tensor]]:
    for _ in range(updates):
        schedule.step()
        yield list(schedule.get_last_lr())


def rates(sched: str, total_iters: int, base: float = 0.5, **others: Any) -> list[float]:
    """Of the updates 1, 2, ... total_iters."""
    optimizer = optimizer_of(base)
    schedule = build_schedule(optimizer, ScheduleOptions(sched, total_iters, **others))
    used = []
    for (rate,) in walk(schedule, total_iters):
        assert optimizer.param_groups[0]["lr"] == rate
        used.append(float(rate))
    return used


def timms(kind: type[Any], total_iters: int, base: float = 0.5, **arguments: Any) -> list[float]:
    """The same from timm alone, by its index 0, 1, ..., total_iters - 1."""
    optimizer, used = optimizer_of(base), []
    scheduler = kind(optimizer, t_in_epochs=False, **arguments)
    for t in range(total_iters):
        scheduler.step_update(t)
        used.append(optimizer.param_groups[0]["lr"])
    return used


# ---- the curves


def test_linear_without_extras_is_the_originals() -> None:
    optimizer = optimizer_of(0.5)
    schedule = build_schedule(optimizer, ScheduleOptions("linear", 300_000, warmup_lr=0.1, seed=3))
    reference = linear_decay(optimizer_of(0.5), 300_000)
    assert type(schedule) is LambdaLR
    assert schedule.state_dict().keys() == reference.state_dict().keys()
    assert list(walk(schedule, 50)) == list(walk(reference, 50))


def test_linear_after_a_warm_up_is_the_originals_bit_for_bit() -> None:
    used = rates("linear", 37, warmup_iters=5, warmup_lr=0.1)
    assert used[:5] == pytest.approx([0.1, 0.18, 0.26, 0.34, 0.42])
    assert used[5:] == [0.5 * (1 - k / 37) for k in range(6, 38)]
    assert used[-1] == 0


def test_linear_ends_at_the_lowest_rate_and_stays_there() -> None:
    used = rates("linear", 20, min_lr=0.1, cooldown_iters=4)
    assert used[:16] == pytest.approx([0.1 + 0.4 * (1 - k / 16) for k in range(1, 17)])
    assert used[15:] == [0.1] * 5


def test_cosine_is_timms_and_the_formula() -> None:
    used = rates("cosine", 100, min_lr=0.01)
    assert used == timms(CosineLRScheduler, 100, t_initial=100, lr_min=0.01)
    assert used == pytest.approx([0.01 + 0.245 * (1 + math.cos(math.pi * (k - 1) / 100)) for k in range(1, 101)])


def test_tanh_is_timms() -> None:
    used = rates("tanh", 50, min_lr=0.01, warmup_iters=5)
    assert used == timms(TanhLRScheduler, 50, t_initial=50, lr_min=0.01, warmup_t=5, warmup_lr_init=1e-6)
    assert used[30] == pytest.approx(0.01 + 0.245 * (1 - math.tanh(-7 * 0.4 + 3 * 0.6)))


def test_poly_has_the_decay_rate_as_its_power() -> None:
    used = rates("poly", 50, decay_rate=0.9)
    assert used == timms(PolyLRScheduler, 50, t_initial=50, power=0.9)
    assert used == pytest.approx([0.5 * (1 - (k - 1) / 50) ** 0.9 for k in range(1, 51)])


def test_step_drops_after_every_so_many_updates_down_to_the_lowest() -> None:
    used = rates("step", 35, decay_iters=10, decay_rate=0.2)
    assert used == timms(StepLRScheduler, 35, decay_t=10, decay_rate=0.2)
    assert used == pytest.approx([0.5] * 10 + [0.1] * 10 + [0.02] * 10 + [0.004] * 5)
    floored = rates("step", 35, decay_iters=10, decay_rate=0.2, min_lr=0.01, cooldown_iters=7)
    assert floored == pytest.approx([0.5] * 10 + [0.1] * 10 + [0.02] * 8 + [0.01] * 7)


def test_multistep_has_each_milestone_as_the_first_update_of_a_lower_rate() -> None:
    used = rates("multistep", 20, decay_milestones=(7, 15))
    assert used == timms(MultiStepLRScheduler, 20, decay_t=[7, 15], decay_rate=0.1)
    assert used == pytest.approx([0.5] * 6 + [0.05] * 8 + [0.005] * 6)


def test_constant_is_constant_between_warm_up_and_cool_down() -> None:
    used = rates("constant", 10, warmup_iters=2, warmup_lr=0.3, cooldown_iters=3, min_lr=0.05)
    assert used == pytest.approx([0.3, 0.4, *[0.5] * 5, *[0.05] * 3])


ALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {"cycle_limit": 3, "cycle_mul": 2.0},
    "step": {"decay_iters": 9},
    "multistep": {"decay_milestones": (12, 25)},
    "tanh": {"cycle_limit": 2},
    "poly": {"cycle_limit": 2, "cycle_decay": 0.7, "decay_rate": 0.5},
    "plateau": {"patience": 1, "decay_rate": 0.5},
    "constant": {},
}


@pytest.mark.parametrize("sched", ALL)
def test_a_warm_up_starts_at_its_rate_and_rises_in_equal_steps_to_the_schedule(sched: str) -> None:
    used = rates(sched, 60, warmup_iters=10, warmup_lr=0.1, **ALL[sched])
    assert used[0] == 0.1
    steps = [after - before for before, after in pairwise(used[:10])]
    assert steps == pytest.approx([steps[0]] * 9)
    top = 0.5 if sched != "tanh" else used[10]  # timm aims at tanh's curve
    assert used[9] + steps[0] == pytest.approx(top)


@pytest.mark.parametrize("sched", ALL)
def test_a_cool_down_holds_the_lowest_rate_within_the_total(sched: str) -> None:
    used = rates(sched, 60, cooldown_iters=7, min_lr=0.003, lr_noise=(0.5,), **ALL[sched])
    assert used[-7:] == [0.003] * 7
    assert all(rate >= 0.003 for rate in used)


# ---- cycles


@pytest.mark.parametrize("sched", ["cosine", "tanh", "poly"])
def test_cycles_fill_the_iterations_before_the_cool_down(sched: str) -> None:
    """Lengths 10, 20, 40, and then 5 at rest: the first updates are 1, 11 and 31."""
    power = {"decay_rate": 0.9} if sched == "poly" else {}
    used = rates(sched, 75, cycle_limit=3, cycle_mul=2.0, cycle_decay=0.4, cooldown_iters=5, **power)
    starts = [k for k in range(2, 76) if used[k - 1] > used[k - 2]]
    assert starts == [11, 31]
    assert [used[k - 1] for k in (1, 11, 31)] == pytest.approx([0.5, 0.2, 0.08], rel=1e-5)
    assert used[70:] == [0] * 5
    single = rates(sched, 40, base=0.08, **power)  # the last cycle, alone
    assert used[30:70] == pytest.approx(single, rel=1e-6)


def test_cycles_are_timms() -> None:
    used = rates("cosine", 90, cycle_limit=3, cycle_decay=0.5, min_lr=0.01)
    expected = timms(CosineLRScheduler, 90, t_initial=30, cycle_limit=3, cycle_decay=0.5, lr_min=0.01)
    assert used == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("total", "mul", "limit"),
    [(4669, 0.4, 4), (2222, 10.0, 4), (700, 2.0, 3), (100, 1.0, 3), (728, 3.0, 6)],
)
def test_cycles_meet_without_a_gap_however_their_lengths_round(total: int, mul: float, limit: int) -> None:
    """Where a cycle begins on a whole update, timm's own rounding can put it beyond the cycle before: no number for poly."""
    used = rates("poly", total, cycle_limit=limit, cycle_mul=mul, cycle_decay=1.0, decay_rate=0.3)
    assert all(isinstance(rate, float) and 0 < rate <= 0.5 for rate in used)
    assert sum(after > before for before, after in pairwise(used)) == limit - 1


# ---- noise


def test_noise_is_timms_and_only_within_its_shares() -> None:
    arguments: dict[str, Any] = {"lr_noise": (0.4, 0.8), "lr_noise_pct": 0.3, "lr_noise_std": 0.5, "seed": 9}
    used, plain = rates("cosine", 50, **arguments), rates("cosine", 50)
    noise: dict[str, Any] = {"noise_range_t": [20, 40], "noise_pct": 0.3, "noise_std": 0.5, "noise_seed": 9}
    assert used == timms(CosineLRScheduler, 50, t_initial=50, **noise)
    assert [k for k in range(1, 51) if used[k - 1] != plain[k - 1]] == list(range(21, 41))
    assert all(abs(noisy / rate - 1) < 0.3 for noisy, rate in zip(used, plain, strict=True))
    assert rates("cosine", 50, **{**arguments, "seed": 10}) != used


@pytest.mark.parametrize("sched", ALL)
def test_noise_with_one_share_lasts_to_the_end(sched: str) -> None:
    used, plain = (rates(sched, 60, lr_noise=noise, **ALL[sched]) for noise in ((0.5,), None))
    assert used[:29] == plain[:29]
    assert all(noisy != rate for noisy, rate in zip(used[30:59], plain[30:59], strict=True))


# ---- groups


@pytest.mark.parametrize("sched", ALL)
def test_two_groups_keep_their_proportion(sched: str) -> None:
    schedule = build_schedule(optimizer_of(0.5, 0.05), ScheduleOptions(sched, 60, lr_noise=(0.2, 0.7), **ALL[sched]))
    for head, body in walk(schedule, 60):
        assert body == pytest.approx(head / 10)


def test_every_group_starts_at_the_warm_up_rate_and_ends_at_the_lowest() -> None:
    options = ScheduleOptions("cosine", 30, warmup_iters=5, warmup_lr=0.001, min_lr=0.01, cooldown_iters=2)
    used = list(walk(build_schedule(optimizer_of(0.5, 0.05), options), 30))
    assert used[0] == [0.001, 0.001]
    assert used[-1] == [0.01, 0.01]
    assert used[10][0] > used[10][1] > 0.01


# ---- plateau


def plateau(**others: Any) -> tuple[PlateauSchedule, torch.optim.SGD]:
    optimizer = optimizer_of(0.5, 0.05)
    schedule = build_schedule(optimizer, ScheduleOptions("plateau", 200, **others))
    assert isinstance(schedule, PlateauSchedule)
    return schedule, optimizer


def test_plateau_drops_where_torchs_rule_does() -> None:
    errors = [0.9, 0.8, 0.8, 0.79999, 0.85, 0.7, 0.71, 0.72, 0.73, 0.74, float("nan"), 0.75, 0.6, 0.6, 0.6, 0.6]
    schedule, optimizer = plateau(patience=2, decay_rate=0.3, min_lr=0.002)
    alone = optimizer_of(0.5, 0.05)
    rule = ReduceLROnPlateau(alone, factor=0.3, patience=2, min_lr=0.002)
    seen = []
    for error in errors:
        for used in walk(schedule, 5):
            assert used == [group["lr"] for group in alone.param_groups]
        schedule.observe(error)
        rule.step(error)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.5] * 5 + [0.15] * 4 + [0.045] * 3 + [0.0135] * 4)
    schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(0.00405), 0.002]  # and not below


def test_plateau_does_not_count_what_it_sees_during_the_warm_up() -> None:
    schedule, _ = plateau(patience=0, warmup_iters=10)
    for _ in range(10):
        list(walk(schedule, 1))
        schedule.observe(0.9)
    assert list(walk(schedule, 1)) == [[0.5, 0.05]]
    schedule.observe(0.9)
    schedule.observe(0.9)
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.05, 0.005])


# ---- resuming


@pytest.mark.parametrize("warmup_iters", [0, 10])
@pytest.mark.parametrize("sched", ALL)
def test_a_schedule_read_from_a_file_goes_on_with_the_same_bits(tmp_path: Path, sched: str, warmup_iters: int) -> None:
    """At any update; with noise, and for plateau with validations that do and do not get better."""
    options = ScheduleOptions(
        sched, 60, warmup_iters=warmup_iters, cooldown_iters=6, min_lr=0.001, lr_noise=(0.1, 0.8), seed=4, **ALL[sched]
    )

    def build() -> tuple[torch.optim.SGD, Schedule]:
        optimizer = optimizer_of(0.5, 0.05)
        return optimizer, build_schedule(optimizer, options)

    def go(schedule: Schedule, first: int, last: int) -> list[Sequence[float | Tensor]]:
        used: list[Sequence[float | Tensor]] = []
        for k in range(first, last + 1):
            used += walk(schedule, 1)
            if isinstance(schedule, PlateauSchedule) and k % 3 == 0:
                schedule.observe(0.9 - 0.1 * (k // 20))
        return used

    expected = go(build()[1], 1, 60)
    if sched == "plateau":
        plain = rates(sched, 60, warmup_iters=warmup_iters, lr_noise=(0.1, 0.8), seed=4, **ALL[sched])
        assert float(expected[50][0]) < plain[50]  # it did drop
    for saved in (0, 1, 9, 10, 11, 22, 30, 41, 53, 54, 59):
        optimizer, schedule = build()
        go(schedule, 1, saved)
        path = tmp_path / f"{saved}"
        files.write(path, {"optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict()})
        state = files.read(path)
        other_optimizer, other = build()
        other_optimizer.load_state_dict(state["optimizer"])
        other.load_state_dict(state["scheduler"])
        assert list(other.get_last_lr()) == list(schedule.get_last_lr())
        assert go(other, saved + 1, 60) == expected[saved:]


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sched": "cosin"}, "--sched cosin is unknown; choose one of linear, cosine"),
        ({"warmup_iters": 80, "cooldown_iters": 20}, "--warmup-iters 80 and --cooldown-iters 20 leave nothing of the 100"),
        ({"warmup_iters": 101}, "--warmup-iters 101"),
        ({"min_lr": 0.06}, r"--min-lr 0\.06 is not between 0 and the learning rate, 0\.05"),
        ({"sched": "step"}, "--sched step needs --decay-iters"),
        ({"sched": "multistep"}, "--sched multistep needs --decay-milestones"),
        ({"sched": "multistep", "decay_milestones": (10, 10)}, "--decay-milestones 10 10 are not increasing"),
        ({"sched": "multistep", "decay_milestones": (0, 10)}, "--decay-milestones 0 10 are not increasing"),
        ({"sched": "multistep", "decay_milestones": (10, 101)}, "--decay-milestones 10 101 go beyond the 100 iterations"),
        ({"decay_milestones": (10,)}, "--decay-milestones means nothing to --sched linear; it is for multistep"),
        ({"sched": "cosine", "decay_iters": 10}, "--decay-iters means nothing to --sched cosine; it is for step"),
        ({"decay_rate": 0.5}, "--decay-rate means nothing to --sched linear; it is for step, multistep, poly, plateau"),
        ({"sched": "step", "decay_iters": 5, "cycle_mul": 2.0}, "--lr-cycle-mul means nothing to --sched step"),
        ({"sched": "plateau", "cycle_limit": 2}, "--lr-cycle-limit means nothing to --sched plateau"),
        ({"cycle_decay": 0.1}, "--lr-cycle-decay means nothing to --sched linear; it is for cosine, tanh, poly"),
        ({"sched": "cosine", "cycle_limit": 0}, "--lr-cycle-limit must be at least 1"),
        ({"sched": "cosine", "cycle_limit": 101}, "--lr-cycle-limit 101 makes cycles shorter than an iteration"),
        ({"sched": "cosine", "cycle_limit": 5, "cycle_mul": 0.1}, "--lr-cycle-limit 5 makes cycles shorter"),
        ({"sched": "plateau", "decay_rate": 1.0}, "--decay-rate 1 is not above 0 and below 1"),
        ({"sched": "plateau", "patience": -1}, "--patience-iters"),
        ({"lr_noise": (0.5, 1.5)}, r"--lr-noise 0\.5 1\.5 must be one or two shares of the run"),
        ({"lr_noise": (0.5, 0.2)}, "--lr-noise .* the smaller one first"),
        ({"lr_noise": (0.1, 0.2, 0.3)}, "--lr-noise .* one or two shares"),
        ({"lr_noise": (0.1,), "lr_noise_pct": 0.0}, "--lr-noise-pct 0 is not above 0"),
        ({"lr_noise": (0.1,), "lr_noise_std": 1e9}, r"--lr-noise-std 1e\+09 is not between"),
    ],
)
def test_nonsense_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError, match=message) as caught:
        build_schedule(optimizer_of(0.5, 0.05), ScheduleOptions(**{"sched": "linear", "total_iters": 100, **options}))
    assert "\n" not in str(caught.value)

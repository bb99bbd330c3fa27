"""Detect non-finite losses without waiting for the device, and recover from them by the policies of `on_nonfinite`.

stop: end the run with an error. skip: return to the newest checkpoint, and skip the iteration with the non-finite loss.
rollback: return to the newest checkpoint, and skip all iterations from there up to and including the iteration with the
non-finite loss.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import distributed

MAX_SAMPLES_LISTED = 8
MAX_RECOVERIES = 10  # after this many recoveries the run ends with an error


class NonFiniteLossError(UserError):
    """A loss, a weight or a batch-norm statistic is infinite or NaN.

    Attributes:
        iteration: the first iteration with a non-finite value.
    """

    def __init__(self, iteration: int, message: str) -> None:
        super().__init__(message, status=1)
        self.iteration = iteration

    def with_samples(self, names: list[str]) -> "NonFiniteLossError":
        """Return an error whose message also lists the samples of the iteration."""
        listed = ", ".join(names[:MAX_SAMPLES_LISTED]) + (", ..." if len(names) > MAX_SAMPLES_LISTED else "")
        return NonFiniteLossError(self.iteration, f"{self}; its {len(names)} samples were {listed}")


class Recoverable(Protocol):
    """The attributes of a TrainingState that recovery uses."""

    iteration: int
    skipped: list[tuple[int, int]]


class LossMonitor:
    """Detect non-finite losses on the device; only `check` waits for the device."""

    def __init__(self) -> None:
        self._first_bad: Tensor | None = None  # on the device: the first iteration with a non-finite loss, or 0
        self._learning_rates: dict[int, float] = {}  # iteration -> learning rate, since the last check

    def record(self, iteration: int, loss: Tensor, learning_rate: float) -> None:
        """Examine the loss of an iteration, without waiting for the device."""
        self._learning_rates[iteration] = learning_rate
        bad = torch.where(loss.isfinite(), 0, iteration)
        self._first_bad = bad if self._first_bad is None else torch.where(self._first_bad > 0, self._first_bad, bad)

    def check(self, network: nn.Module, iteration: int, learning_rate: float) -> None:
        """Check all losses since the last call, and the present weights and statistics, in all processes of the run.

        Args:
            iteration: number of the last completed iteration.
            learning_rate: learning rate of that iteration.

        Raises:
            NonFiniteLossError: in all processes, if a value is not finite in any of them.
        """
        bad, culprit = 0 if self._first_bad is None else int(self._first_bad), "the loss is"
        if not bad and not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
            bad, culprit = iteration, "weights or batch-norm statistics are"
        never = iteration + 1
        first_bad = -distributed.all_reduce_max(-(bad or never))  # the minimum over all processes
        if first_bad < never:
            learning_rate = self._learning_rates.get(first_bad, learning_rate)
            message = f"{culprit} not finite at iteration {first_bad}, where the learning rate was {learning_rate:g}"
            raise NonFiniteLossError(first_bad, message)
        self._learning_rates.clear()


def recover_from_nonfinite(error: NonFiniteLossError, policy: str, state: Recoverable, restore: Callable[[], str]) -> str:
    """Restore an earlier state, and record in the state which iterations are to be skipped.

    Args:
        policy: value of `on_nonfinite`: 'stop', 'skip' or 'rollback'.
        state: state of the run, changed in place.
        restore: function that loads an earlier state into `state`, and returns where it came from, for the log.

    Returns:
        A line for the log.

    Raises:
        NonFiniteLossError: the policy is 'stop', or the run has recovered too often.
    """
    if policy == "stop" or len(state.skipped) == MAX_RECOVERIES:
        repeated = f", after {MAX_RECOVERIES} recoveries" if state.skipped else ""
        advice = "The checkpoints written before are good; a lower `learning_rate` may help"
        raise NonFiniteLossError(error.iteration, f"{error}{repeated}. {advice}") from error
    skipped = state.skipped  # kept, because the restored state may be older than some of these recoveries
    origin = restore()
    first = state.iteration + 1 if policy == "rollback" else error.iteration
    state.skipped = [*skipped, (first, error.iteration)]
    return f"{error}; continuing from {origin} without iterations {first} to {error.iteration}"


def next_gap(skipped: list[tuple[int, int]], iteration: int, total_iters: int) -> tuple[int, int]:
    """Return (first, last) of the next range of iterations to skip after `iteration`.

    Returns:
        (total_iters + 1, total_iters), an empty range, if there is none.
    """
    return min(((first, last) for first, last in skipped if last > iteration), default=(total_iters + 1, total_iters))

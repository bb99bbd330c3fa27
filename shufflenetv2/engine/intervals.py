"""Intervals between checkpoints, in iterations or in time, on which all processes of a run agree."""

import time
from collections.abc import Callable

from ..config import split_interval
from . import distributed


def every(interval: int | str) -> Callable[[int], bool]:
    """Return a function (iteration) -> whether something is due after that iteration.

    Args:
        interval: number of iterations (int), time ('90s', '10m', '2h'), or both ('10000,10m'), of which the first to pass
            counts. With time, every process of the run must call the function after every iteration; all processes get the
            same answer.
    """
    iterations, seconds = split_interval(interval)

    def is_multiple(iteration: int) -> bool:
        return iterations is not None and iteration % iterations == 0

    if seconds is None:
        return is_multiple
    last_due, times_due, all_reduce = time.monotonic(), 0, distributed.DelayedAllReduceMax()

    def is_due(iteration: int) -> bool:
        nonlocal last_due, times_due
        # The result answers the previous call. Therefore the processes agree on how often it was due, and a call from before
        # the last time does not make it due again.
        agreed = all_reduce(times_due + (time.monotonic() - last_due >= seconds))
        if agreed <= times_due and not is_multiple(iteration):
            return False
        last_due, times_due = time.monotonic(), times_due + 1
        return True

    return is_due

"""Graceful shutdown: signals such as SIGTERM end the run between two iterations, so that a checkpoint can be saved."""

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from ..errors import UserError
from .distributed import DelayedAllReduceMax, rank, world_size

Item = TypeVar("Item")

# Cluster schedulers send SIGTERM or SIGUSR1 before they reclaim a machine. Ctrl-C sends SIGINT, a terminal that is
# closed sends SIGHUP. Windows has no SIGUSR1 and no SIGHUP.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]

STALL_SECONDS = 5.0  # after a signal, how long one of several processes waits for a batch before it ends without the others


class ShutdownRequested(Exception):  # noqa: N818 - a request, not an error
    """A signal asked the run to end.

    Attributes:
        status: exit status of the process: 130 after SIGINT, 143 after the other signals.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.status = exit_status(signum)


def exit_status(signum: int) -> int:
    """Return the exit status of a process that a signal ended."""
    return 130 if signum == signal.SIGINT else 143


class GracefulShutdown:
    """Context manager that records SIGNALS when they arrive, for `check` to raise ShutdownRequested.

    A second SIGINT raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self._received, self._received_at = 0, 0.0
        self._all_reduce = DelayedAllReduceMax()
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "GracefulShutdown":
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers in no other
            self._previous_handlers = {
                signum: signal.signal(signum, self._record)
                for signum in SIGNALS
                if signum == signal.SIGINT or signal.getsignal(signum) != signal.SIG_IGN  # nohup lets a program ignore SIGHUP
            }
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        if exception_type is None:
            self._all_reduce.close()
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received, self._received_at = signum, time.monotonic()

    def check(self) -> None:
        """Raise `ShutdownRequested` if any process of the run has received a signal.

        Every process must call this method equally often. All processes raise at the same call, which comes one call after the
        signal if there are several processes.
        """
        if signum := self._all_reduce(self._received):
            raise ShutdownRequested(signum)

    def check_while_waiting(self) -> None:
        """Raise an exception if this process has received a signal and waits for something that may never happen.

        Raises:
            ShutdownRequested: a signal arrived, and this is the only process of the run.
            UserError: a signal arrived STALL_SECONDS ago; the other processes cannot be asked, because they wait for this one.
        """
        if self._received and world_size() == 1:
            raise ShutdownRequested(self._received)
        if self._received and time.monotonic() >= self._received_at + STALL_SECONDS:
            raise UserError(
                f"stopped by {signal.Signals(self._received).name} while process {rank()} of {world_size()} waited for files; "
                "run the same command to continue from the newest checkpoint",
                status=exit_status(self._received),
            )

    def interruptible(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, calling `check` before each."""
        for item in items:
            self.check()
            yield item

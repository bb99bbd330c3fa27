"""Graceful shutdown: signals such as SIGTERM end the run between two iterations, so that a checkpoint can be saved."""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from .distributed import DelayedAllReduceMax

Item = TypeVar("Item")

# Cluster schedulers send SIGTERM or SIGUSR1 before they reclaim a machine. Ctrl-C sends SIGINT. Windows has no SIGUSR1.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class ShutdownRequested(Exception):  # noqa: N818 - a request, not an error
    """A signal asked the run to end.

    Attributes:
        status: exit status of the process: 130 after SIGINT, 143 after the other signals.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.status = 130 if signum == signal.SIGINT else 143


class GracefulShutdown:
    """Context manager that records SIGNALS when they arrive, for `check` to raise ShutdownRequested.

    A second SIGINT raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self._received = 0
        self._all_reduce = DelayedAllReduceMax()
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "GracefulShutdown":
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers in no other
            self._previous_handlers = {signum: signal.signal(signum, self._record) for signum in SIGNALS}
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        if exception_type is None:
            self._all_reduce.close()
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signum

    def check(self) -> None:
        """Raise `ShutdownRequested` if any process of the run has received a signal.

        Every process must call this method equally often. All processes raise at the same call, which comes one call after the
        signal if there are several processes.
        """
        if signum := self._all_reduce(self._received):
            raise ShutdownRequested(signum)

    def interruptible(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, calling `check` before each."""
        for item in items:
            self.check()
            yield item

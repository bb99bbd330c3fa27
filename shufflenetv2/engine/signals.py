"""Signals that ask a run to end, answered between two iterations."""

import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from .distributed import Agreement

Item = TypeVar("Item")

# What a scheduler sends before it takes a machine away, and what Ctrl-C sends. (Windows has no SIGUSR1.)
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class Preempted(Exception):  # noqa: N818 - not an error
    """The run was asked to end.

    Attributes:
        status: the exit status a shell expects, 130 for SIGINT and 143 for all others.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.status = 130 if signum == signal.SIGINT else 143


class Preemption:
    """A context in which the signals are noted rather than obeyed. A second SIGINT stops at once."""

    def __init__(self) -> None:
        self._requested = 0
        self._agreement = Agreement()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        self._previous = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._agreement.close()
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._requested == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = signum

    def check(self) -> None:
        """Raises Preempted where a signal has arrived, in all processes of a run at the same call."""
        if signum := self._agreement(self._requested):
            raise Preempted(signum)

    def checked(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, as long as no signal arrives."""
        for item in items:
            self.check()
            yield item

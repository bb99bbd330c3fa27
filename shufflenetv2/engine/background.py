"""Write files of tensors in the background, while training continues and changes the tensors."""

import atexit
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..errors import UserError

POLL_SECONDS = 0.1  # between two calls of `while_waiting`
EXIT_SECONDS = 20.0  # how long a process that ends waits for a file: less than schedulers wait before they send SIGKILL


class BackgroundWriter:
    """Write files in a thread, one at a time, while training continues.

    At the exit of the interpreter the last file is completed, but a file system that does not answer holds up the exit for
    EXIT_SECONDS at most.

    Attributes:
        while_waiting: called several times per second while a method waits for a file; an exception that it raises ends the
            wait, for instance after a signal.
    """

    def __init__(self, while_waiting: Callable[[], object] = lambda: None) -> None:
        self.while_waiting = while_waiting
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, path: Path, content: Mapping[str, Any], on_written: Callable[[], object] = lambda: None) -> None:
        """Wait until the previous file is complete, copy the tensors to host memory, and begin to write the file.

        Args:
            on_written: called in the writing thread when the file is complete.
        """
        self.wait()
        arguments = (path, copy_to_host(content), on_written)
        # A daemon thread, because the interpreter would wait without limit for any other.
        self._thread = threading.Thread(target=self._write, args=arguments, name="writer", daemon=True)
        self._thread.start()
        atexit.register(self._thread.join, EXIT_SECONDS)

    def _write(self, path: Path, content: dict[str, Any], on_written: Callable[[], object]) -> None:
        try:
            files.write(path, content)
            on_written()
        except BaseException as error:  # `check` raises this error in the training thread
            self._error = error

    def check(self) -> None:
        """Raise the error of a failed write; later calls do not raise it again."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait until the file is complete, and raise the error if writing failed."""
        if self._thread is not None:
            while self._thread.is_alive():
                self._thread.join(POLL_SECONDS)
                if self._thread.is_alive():
                    self.while_waiting()
            atexit.unregister(self._thread.join)
            self._thread = None
        self.check()


def time_limit(seconds: float = EXIT_SECONDS) -> Callable[[], None]:
    """Return a value of `while_waiting` that ends a wait after a time, which begins now."""
    deadline = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > deadline:
            message = (
                f"the last checkpoint could not be written within {seconds:g} seconds; the files written before are intact"
            )
            raise UserError(message, status=1)

    return check


def copy_to_host(value: Any) -> Any:
    """Return a copy of nested dicts and lists in which every tensor is a copy in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copy_to_host(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy_to_host(item) for item in value]
    return value

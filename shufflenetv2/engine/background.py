"""Write files of tensors in the background, while training continues and changes the tensors."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import files


class BackgroundWriter:
    """Write files in a thread, one at a time, while training continues."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, path: Path, content: Mapping[str, Any], on_written: Callable[[], object] = lambda: None) -> None:
        """Wait until the previous file is complete, copy the tensors to host memory, and begin to write the file.

        Args:
            on_written: called in the writing thread when the file is complete.
        """
        self.wait()
        # Not a daemon thread, so that the file is completed even if the run ends with an error.
        self._thread = threading.Thread(target=self._write, args=(path, copy_to_host(content), on_written), name="writer")
        self._thread.start()

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
            self._thread.join()
        self.check()


def copy_to_host(value: Any) -> Any:
    """Return a copy of nested dicts and lists in which every tensor is a copy in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copy_to_host(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy_to_host(item) for item in value]
    return value

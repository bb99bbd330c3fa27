"""Checkpoints: their names, and the newest good one."""

import logging
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import files

BEST = "best.pth.tar"
_NAME = re.compile(r"checkpoint-(\d+)\.pth\.tar")
logger = logging.getLogger(__name__)


class Writer:
    """Writes files in a thread, one at a time, while training goes on with a state that changes."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, path: Path, content: Mapping[str, Any], then: Callable[[], object] = lambda: None) -> None:
        """Copies the content to the host's memory and has it written; waits for the file before it.

        Args:
            then: called by the thread when the file is complete.
        """
        self.wait()
        # Not a daemon: should the run end with an error, the file is finished all the same.
        self._thread = threading.Thread(target=self._write, args=(path, on_host(content), then), name="writer")
        self._thread.start()

    def _write(self, path: Path, content: dict[str, Any], then: Callable[[], object]) -> None:
        try:
            files.write(path, content)
            then()
        except BaseException as error:  # raised where the run can see it
            self._error = error

    def check(self) -> None:
        """Raises the error of a write that failed."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Waits until everything is written, and raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
        self.check()


def on_host(value: Any) -> Any:
    """A copy of nested dicts and lists in which every tensor is a copy in the host's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_host(item) for key, item in value.items()}
    if isinstance(value, list):
        return [on_host(item) for item in value]
    return value


def name_of(iteration: int, tag: str = "") -> str:
    """What the checkpoint of an iteration is called; `tag` is 'bnps-' after recalibration."""
    return f"{tag}checkpoint-{iteration:06}.pth.tar"


def find(folder: Path, interval: int | None = None) -> list[Path]:
    """The checkpoints in a folder, newest first; those with a tag are no place to go on from."""
    found = [(int(match[1]), path) for path in folder.glob("*.pth.tar") if (match := _NAME.fullmatch(path.name))]
    return [path for iteration, path in sorted(found, reverse=True) if iteration % (interval or 1) == 0]


def prune(folder: Path, *, hist: int | None = None, interval: int | None = None) -> None:
    """Removes checkpoints that are not wanted any more; never the newest.

    Args:
        hist: how many of the newest to keep; None for all.
        interval: only those of every so many iterations count; None for all.
    """
    found = find(folder)
    for path in {*found[1:]} - {*find(folder, interval)[:hist]}:
        path.unlink(missing_ok=True)


def read_newest(folder: Path, interval: int | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, and its content; only of every so many iterations, if that is given.

    A damaged or foreign one is named in a warning and renamed to '*.damaged', lest it be overwritten.
    """
    for path in find(folder, interval):
        try:
            return path, read(path)
        except files.DamagedFileError as error:
            logger.warning("%s; it is renamed, and the checkpoint before it is used, if there is one", error)
            path.rename(path.with_name(path.name + ".damaged"))
        except OSError as error:
            logger.warning("%s cannot be read: %s; the checkpoint before it is used, if there is one", path, error.strerror)
    return None


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        DamagedFileError: where it is damaged, or another kind of file.
        OSError: where it cannot be read.
    """
    content: dict[str, Any] = files.read(path, require_checksum=True)
    if "optimizer" not in content:
        raise files.DamagedFileError(f"{path} holds no state to go on from; --initial-checkpoint takes weights alone")
    return content


def set_aside(folder: Path) -> Path | None:
    """Moves the results of an earlier run into a folder of their own, so that a new one cannot be mistaken for it.

    Returns:
        That folder, 'previous-1' or the next free number; None where there was nothing to move.
    """
    results = [*folder.glob("*checkpoint-*.pth.tar"), *folder.glob(BEST), *folder.glob("model*.pkl")]
    if not results:
        return None
    number = 1
    while (aside := folder / f"previous-{number}").exists():
        number += 1
    aside.mkdir()
    for path in results:
        path.rename(aside / path.name)
    return aside

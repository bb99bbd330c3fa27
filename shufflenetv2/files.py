"""How every file of tensors is written and read: complete or absent, checked, never executed.

A file is what `torch.save` makes, followed by a trailer of forty bytes: a mark and the SHA-256 of
everything before it. torch finds the zip's directory from the end and skips the trailer, so any
program opens the file with `torch.load`; but torch checks nothing, and here a file that was cut
short or changed in a single bit is refused.
"""

import contextlib
import hashlib
import io
import os
import pickle
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MARK = b"sha256->"
TRAILER_BYTES = len(MARK) + hashlib.sha256().digest_size


class DamagedFileError(UserError):
    """A file that cannot be what it was meant to be; the text names it and says why."""


class NotWrittenError(UserError):
    """A file that could not be written; the text names it and says why."""

    status = 1


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values to `path`, which afterwards is complete, or as it was before; see `write_bytes`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    # Not getbuffer(): after a failed write the exception keeps the memoryview alive until the BytesIO has been
    # finalized, which prints a BufferError in Python 3.13 and crashes the interpreter in Python 3.12.
    data = buffer.getvalue()
    write_bytes(path, data, MARK + hashlib.sha256(data).digest())


def write_bytes(path: Path, *parts: bytes, flush: bool = True) -> None:
    """Writes a file that afterwards is complete, or as it was before.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and then
    renamed; the folder is flushed as well, so that a power cut cannot undo the rename.

    Args:
        path: where to.
        parts: the content, one part after the other.
        flush: False for files that can be made again: complete whenever the program is killed, but
            perhaps empty after a power cut.

    Raises:
        NotWrittenError: where the disk is full, the folder read-only, ... What stood at `path` is untouched.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # not longer than a name may be, whatever the file's is
    try:
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise NotWrittenError(f"{path} cannot be written: {error.strerror}; what was saved before is untouched") from error
        raise
    if flush:
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Makes the names in a folder as durable as the files they name."""
    with contextlib.suppress(OSError):  # not every file system (nor Windows) opens folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: Path, *, must_be_ours: bool = False) -> Any:
    """Reads a file of tensors onto the CPU; code inside it is refused, not run.

    Args:
        path: a file written here, or by anyone's `torch.save`.
        must_be_ours: refuse a file without the trailer, as a file of ours that lost its end is one.

    Raises:
        FileNotFoundError: where there is no such file.
        DamagedFileError: for anything that is not a readable, undamaged file of tensors.
    """
    data = path.read_bytes()
    if not data:
        raise DamagedFileError(f"{path} is empty")
    body, trailer = data[:-TRAILER_BYTES], data[-TRAILER_BYTES:]
    if trailer.startswith(MARK):
        if hashlib.sha256(body).digest() != trailer[len(MARK) :]:
            raise DamagedFileError(f"{path} is damaged: its bytes do not match its checksum")
    elif must_be_ours:
        raise DamagedFileError(f"{path} is cut short, or no checkpoint of this trainer: its checksum is missing")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # so torch names what a pickle would have called
            raise DamagedFileError(f"{path} holds more than tensors and plain values, and is not loaded") from error
        raise DamagedFileError(f"{path} is not a file of weights") from error
    except Exception as error:  # torch's reader raises nearly anything on bytes that are not its own
        raise DamagedFileError(f"{path} is not a file of weights") from error


class FolderInUseError(UserError):
    """Another run writes to the folder."""


@contextlib.contextmanager
def locked(folder: Path, remedy: str = "give this run a --save folder of its own") -> Iterator[None]:
    """Keeps other runs out of a folder, and clears away what a killed one left half written.

    The lock is the kernel's and ends with the process, however that ends.

    Raises:
        FolderInUseError: where another run lives there.
    """
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise FolderInUseError(f"{folder} is in use by {file.read().strip() or 'another run'}; {remedy}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        yield

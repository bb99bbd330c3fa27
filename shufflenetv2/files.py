"""Atomic, checksummed files.

Every file that must survive a kill is written by `write_bytes`: to a temporary file in the same folder, flushed with fsync,
then renamed. A reader therefore finds either the complete new file or the previous file.

A file of tensors (`write`, `read`) is the output of `torch.save` followed by a 40-byte trailer: a marker and the SHA-256 of
everything before it. PyTorch locates the zip directory from the end of the file and ignores the trailer, so any program opens
the file with `torch.load`; `read` detects truncation and any changed bit, which `torch.load` does not.
"""

import contextlib
import hashlib
import io
import os
import pickle
import secrets
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MARKER = b"sha256->"
ALLOCATION = b"builtin__\nbytearray\n"  # in a pickle: a bytearray, of whatever size the pickle wants
TRAILER_BYTES = len(MARKER) + hashlib.sha256().digest_size


class DamagedFileError(UserError):
    """A file is truncated, altered, or not a file of tensors."""


# ---- files of tensors


def write(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values to a checksummed file, atomically; see `write_bytes`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    # Not getbuffer(): if writing fails, the exception keeps the memoryview alive until the BytesIO has been finalized, which
    # prints a BufferError in Python 3.13 and crashes the interpreter in Python 3.12.
    data = buffer.getvalue()
    write_bytes(path, data, MARKER + hashlib.sha256(data).digest())


def read(path: Path, *, require_checksum: bool = False) -> Any:
    """Read a file of tensors onto the CPU without executing anything in it.

    Args:
        path: a file written by `write`, or by `torch.save`.
        require_checksum: refuse a file without the trailer of `write`; a truncated file has lost its trailer.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedFileError: the checksum does not match, or the file holds anything but tensors and plain values.
    """
    data = path.read_bytes()
    if not data:
        raise DamagedFileError(f"{path} is empty")
    body, trailer = data[:-TRAILER_BYTES], data[-TRAILER_BYTES:]
    if trailer.startswith(MARKER):
        if hashlib.sha256(body).digest() != trailer[len(MARKER) :]:
            raise DamagedFileError(f"{path} is damaged: its content does not match its checksum")
    elif require_checksum:
        raise DamagedFileError(f"{path} is truncated, or was not written by this program: its checksum is missing")
    _require_uncompressed(path, data)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # torch's message contains the name of the object that the pickle would have imported
            raise DamagedFileError(f"{path} holds more than tensors and plain values, and is not loaded") from error
        raise DamagedFileError(f"{path} is not a file of weights") from error
    except Exception as error:  # for files of other formats torch.load raises errors of many types
        raise DamagedFileError(f"{path} is not a file of weights") from error


def zip_members(path: Path) -> list[str]:
    """Return the names of the members of a zip archive; [] for anything else, or if the archive is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # for damaged archives zipfile raises errors of many types
        return []


def _require_uncompressed(path: Path, data: bytes) -> None:
    """Refuse content that would take much more memory than it has bytes; `torch.save` compresses nothing."""
    pickles = [data]
    if data.startswith(b"PK"):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = archive.infolist()
                size = sum(member.file_size for member in members)
                if size > len(data) or any(member.compress_type != zipfile.ZIP_STORED for member in members):
                    raise DamagedFileError(f"{path} is not a file of weights: it is a compressed archive of {size:,} bytes")
                pickles = [archive.read(member) for member in members if member.filename.endswith("data.pkl")]
        except DamagedFileError:
            raise
        except Exception as error:  # for damaged archives zipfile raises errors of many types
            raise DamagedFileError(f"{path} is not a file of weights") from error
    if any(ALLOCATION in pickle for pickle in pickles):
        raise DamagedFileError(f"{path} holds more than tensors and plain values, and is not loaded")


# ---- any file


def write_bytes(path: Path, *chunks: bytes, durable: bool = True) -> None:
    """Write a file atomically: afterwards `path` is the complete new file, or unchanged.

    Args:
        path: destination; its folder must exist.
        chunks: parts of the content, which are concatenated.
        durable: call fsync for the file and its folder, so that the file survives a power failure as well. False is faster, for
            files that can be regenerated; a killed program still leaves no partial file.

    Raises:
        UserError: the disk is full, the folder is read-only, ...
    """
    # Not path.name plus a suffix, which could be longer than the file system allows
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            message = f"{path} cannot be written: {error.strerror}; the files written before are intact"
            raise UserError(message, status=1) from error
        raise
    if durable:
        _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems, and Windows, cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def lock_folder(folder: Path, remedy: str = "choose another `save` folder for this run") -> Iterator[None]:
    """Lock a folder against other processes, and delete temporary files that a killed process left in the folder.

    The operating system releases the lock when the process ends, even if it is killed.

    Raises:
        UserError: another process holds the lock; the message ends with `remedy`.
    """
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(f"{folder} is in use by {file.read().strip() or 'another run'}; {remedy}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        yield

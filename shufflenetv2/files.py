"""Atomic, checksummed files, and reading nothing but regular files.

Every file that must survive a kill is written by `write_bytes`: to a temporary file in the same folder, flushed with fsync,
then renamed. A reader therefore finds either the complete new file or the previous file.

A file of tensors (`write`, `read`) is the output of `torch.save` followed by a 40-byte trailer: a marker and the SHA-256 of
everything before it. PyTorch locates the zip directory from the end of the file and ignores the trailer, so any program opens
the file with `torch.load`; `read` detects truncation and any changed bit, which `torch.load` does not.

Every file that a user names, or that lies in a user's folder, is opened by `open_regular` or `read_regular_file`. They refuse
what is not a regular file: opening a FIFO would wait for a process at its other end, and /dev/zero has no end.
"""

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import pickle
import secrets
import socket
import stat
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError, nearest

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MARKER = b"sha256->"
ALLOCATION = b"builtin__\nbytearray\n"  # in a pickle: a bytearray, whose size the pickle chooses
TRAILER_BYTES = len(MARKER) + hashlib.sha256().digest_size

# The largest files that are read into memory, in bytes
MAX_TEXT_BYTES = 16 * 2**20  # options, class names, class weights: the names of ImageNet-21k take less than 1 MiB
MAX_TENSOR_BYTES = 8 * 2**30  # weights and checkpoints: the largest image classifiers in timm take 4 GiB
MAX_RECORD_BYTES = 2**30  # what this program wrote itself: lists of images, metrics

# What to do about errors of the machine
MORE_FILES = "raise the number of files that a process may open (ulimit -n)"
MORE_SPACE = "make room, then run the same command again"
REMEDIES = {
    errno.EMFILE: MORE_FILES,
    errno.ENFILE: MORE_FILES,
    errno.ENOSPC: MORE_SPACE,
    errno.EDQUOT: MORE_SPACE,
    errno.EROFS: "name another folder, or make this one writable",
}
MAX_NAMES = 2_000  # of a folder, that are compared with a mistyped name

KINDS = {
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class DamagedFileError(UserError):
    """A file is truncated, altered, or not a file of tensors."""


class NotRegularFileError(OSError):
    """A path leads to a FIFO, a socket or a device."""


class TooLargeFileError(OSError):
    """A file has more bytes than are read into memory."""


# ---- reading


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Open a regular file, without waiting, and return its descriptor; an `opener` for the built-in `open`.

    Args:
        flags: for `os.open`.

    Raises:
        NotRegularFileError: the path leads to a FIFO, a socket or a device.
        OSError: the file cannot be opened; IsADirectoryError for a folder.

    Example:
        >>> with open("train.log", "a", opener=open_regular) as file: ...
    """
    # With O_NONBLOCK opening a FIFO returns at once; for regular files the flag has no effect. Windows does not have it.
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, a device without a driver, or a FIFO that nobody reads, opened for writing
            _require_regular(path, os.stat(path).st_mode)
        raise
    except ValueError as error:  # a null character, or one that no encoding of names has
        raise OSError(errno.EINVAL, "it is not the name of a file", os.fspath(path)) from error
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular_file(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Read a regular file of at most `max_bytes` bytes.

    Raises:
        NotRegularFileError: the path leads to a FIFO, a socket or a device.
        TooLargeFileError: the file has more bytes.
        OSError: the file cannot be read; IsADirectoryError for a folder.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > max_bytes:
            raise _too_large(path, max_bytes)
        content = os.read(descriptor, size + 1)
        if len(content) == size:
            return content
        # The file has grown or shrunk, is in /proc, where sizes are 0, or is larger than the system reads at once.
        chunks, length = [content], len(content)
        while content and length <= max_bytes:
            content = os.read(descriptor, min(max_bytes + 1 - length, 2**26))
            chunks.append(content)
            length += len(content)
    finally:
        os.close(descriptor)
    if length > max_bytes:
        raise _too_large(path, max_bytes)
    return b"".join(chunks)


def read_text_file(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """Read a text file of at most MAX_TEXT_BYTES bytes, with the lines ending in "\\n".

    Raises:
        UnicodeDecodeError: the file has another encoding.
        OSError: see `read_regular_file`.
    """
    return io.TextIOWrapper(io.BytesIO(read_regular_file(path)), encoding).read()


def nearest_path(path: str | os.PathLike[str], *, is_folder: bool = False) -> str:
    """Return the existing path that is meant by a path that does not exist, or '' if there is none.

    It is that of the most similar spelling, or else that of the same name in a subfolder.

    Args:
        path: in which the names of files and of folders may be mistyped.
        is_folder: whether the path should lead to a folder.
    """
    here = Path(Path(path).anchor)
    parts = Path(path).parts[bool(here.anchor) :]
    for number, part in enumerate(parts, 1):
        accepts = os.path.isdir if is_folder or number < len(parts) else os.path.exists
        if not accepts(here / part):
            try:
                with os.scandir(here) as entries:
                    names = sorted(entry.name for entry in itertools.islice(entries, MAX_NAMES))
            except OSError:
                return ""
            names = [name for name in names if name.startswith(".") is part.startswith(".")]
            below = (os.path.join(name, part) for name in names if accepts(here / name / part))
            part = nearest(part, (name for name in names if accepts(here / name))) or next(below, "")
            if not part:
                return ""
        here /= part
    return str(here)


def describe_error(error: OSError) -> str:
    """Return why a file that a user named cannot be opened, and the remedy: the file that may be meant if it does not exist."""
    if remedy := REMEDIES.get(error.errno or 0):
        return f"{error.strerror}; {remedy}"
    near = nearest_path(error.filename) if isinstance(error, FileNotFoundError) and error.filename else ""
    return f"{error.strerror}; did you mean {near}?" if near else f"{error.strerror}"


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, or is nested deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _require_regular(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise NotRegularFileError(errno.EINVAL, f"it is {kind}, not a file", os.fspath(path))


def _too_large(path: str | os.PathLike[str], limit: int) -> TooLargeFileError:
    reason = f"it has more than {limit / 2**20:,.0f} MiB, the limit for such a file"
    return TooLargeFileError(errno.EFBIG, reason, os.fspath(path))


# ---- files of tensors


def write(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values to a checksummed file, atomically; see `write_bytes`."""
    import torch  # imported here: reading YAML files does not need it, and its import takes seconds

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
    import torch

    try:
        data = read_regular_file(path, MAX_TENSOR_BYTES)
    except (NotRegularFileError, TooLargeFileError) as error:
        raise DamagedFileError(f"{path} is not a file of weights: {error.strerror}") from error
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
        with warnings.catch_warnings():
            # torch warns about TorchScript programs and other unusual files, for which an error is raised where it matters.
            warnings.simplefilter("ignore")
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
        with open(path, "rb", opener=open_regular) as file, zipfile.ZipFile(file) as archive:
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
        UserError: the disk is full, the folder is read-only, `path` is a folder, a FIFO or a device, ...
    """
    # Not path.name plus a suffix, which could be longer than the file system allows
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            _require_regular(path, os.stat(path).st_mode)  # os.replace would put a file in the place of a device
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
            remedy = REMEDIES.get(error.errno or 0)
            intact = "the files written before are intact" + (f"; {remedy}" if remedy else "")
            message = f"{path} cannot be written: {error.strerror}; {intact}"
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
    with open(folder / ".lock", "a+", encoding="utf-8", opener=open_regular) as file:
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

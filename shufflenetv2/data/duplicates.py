"""Validation images that are also training images, found by the content of their files.

Only files whose size occurs on both sides are read, so that a comparison costs little more than one `stat` per file.
"""

import hashlib
import os
import stat
import time
from collections import defaultdict
from dataclasses import dataclass

from .datasets import Dataset, FolderDataset, Subset


@dataclass(frozen=True)
class Limit:
    """What a comparison may cost; it ends unfinished at whichever comes first.

    Args:
        files: number of files on both sides together; where there are more, none is compared.
        bytes: number of bytes to read.
        seconds: time, for slow file systems.
    """

    files: int
    bytes: int
    seconds: float


# Comparing 20,000 files takes 0.1 s, and reading 256 MiB 0.3 s, where the file system has them in memory.
LIMIT_AT_START = Limit(files=20_000, bytes=256 * 2**20, seconds=1.0)


@dataclass(frozen=True)
class SharedFiles:
    """Files with the same content in a training and a validation set.

    Attributes:
        pairs: for each shared validation image: an index into the training set, and its index in the validation set.
        complete: no limit was reached, so that there are no other pairs.
    """

    pairs: list[tuple[int, int]]
    complete: bool


def shared_files(train_set: Dataset, val_set: Dataset, limit: Limit | None = None) -> SharedFiles:
    """Find the validation images whose file has the same bytes as that of a training image, or is the same file.

    Two held-out parts of one folder are compared as well: the folder may hold copies of an image. Data sets that are not one
    file per image have nothing to compare. Files that cannot be read are passed over.

    Args:
        limit: None compares everything.
    """
    if limit and len(train_set) + len(val_set) > limit.files:
        return SharedFiles([], complete=False)
    train_paths, val_paths = file_paths(train_set), file_paths(val_set)
    if not train_paths or not val_paths:
        return SharedFiles([], complete=True)
    comparison = _Comparison(limit)
    try:
        comparison.compare(train_paths, val_paths)
    except _LimitReachedError:
        return SharedFiles(sorted(comparison.pairs, key=lambda pair: pair[1]), complete=False)
    return SharedFiles(sorted(comparison.pairs, key=lambda pair: pair[1]), complete=True)


def file_paths(dataset: Dataset) -> list[str]:
    """Return the path of each image's file; an empty list if the data set is not one file per image."""
    if isinstance(dataset, FolderDataset):
        return [os.path.join(dataset.folder, path) for path in dataset.paths]
    if isinstance(dataset, Subset):
        paths = file_paths(dataset.dataset)
        return [paths[index] for index in dataset.indices] if paths else []
    return []


class _LimitReachedError(Exception):
    pass


class _Comparison:
    """A comparison of two lists of files.

    Attributes:
        pairs: indices of files with the same content, found so far.
    """

    def __init__(self, limit: Limit | None) -> None:
        self.pairs: list[tuple[int, int]] = []
        self._bytes_left = limit.bytes if limit else None
        self._deadline = time.monotonic() + limit.seconds if limit else None

    def compare(self, train_paths: list[str], val_paths: list[str]) -> None:
        train_files = [self._status(path) for path in train_paths]
        by_identity = {(file.st_dev, file.st_ino): index for index, file in reversed(list(enumerate(train_files))) if file}
        by_size: dict[int, list[int]] = defaultdict(list)
        for index, file in enumerate(train_files):
            if file:
                by_size[file.st_size].append(index)
        candidates: dict[int, list[int]] = defaultdict(list)  # by size: validation files to read
        for index, path in enumerate(val_paths):
            if not (file := self._status(path)):
                continue
            if (same := by_identity.get((file.st_dev, file.st_ino))) is not None:
                self.pairs.append((same, index))
            elif file.st_size in by_size:
                candidates[file.st_size].append(index)
        for size in sorted(candidates):  # small files first: most files for the bytes that may be read
            digests = {self._digest(train_paths[index], size): index for index in reversed(by_size[size])}
            for index in candidates[size]:
                digest = self._digest(val_paths[index], size)
                if digest and (same := digests.get(digest)) is not None:
                    self.pairs.append((same, index))

    def _status(self, path: str) -> os.stat_result | None:
        """Return the status of a regular file that is not empty; None for anything else."""
        self._check_time()
        try:
            status = os.stat(path)
        except OSError:
            return None
        return status if stat.S_ISREG(status.st_mode) and status.st_size else None

    def _digest(self, path: str, size: int) -> bytes:
        self._check_time()
        if self._bytes_left is not None:
            self._bytes_left -= size
            if self._bytes_left < 0:
                raise _LimitReachedError
        try:
            with open(path, "rb") as file:
                return hashlib.blake2b(file.read(size), digest_size=16).digest()
        except OSError:
            return b""

    def _check_time(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise _LimitReachedError

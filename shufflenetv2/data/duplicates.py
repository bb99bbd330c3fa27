"""Find validation images that are also training images, by the content of their files.

Only files whose size occurs in both sets are read, so that a comparison costs little more than one `stat` per file.
"""

import hashlib
import os
import stat
import time
from collections import defaultdict
from dataclasses import dataclass

from ..files import open_regular
from .datasets import Dataset, FolderDataset, Subset


@dataclass(frozen=True)
class Limit:
    """Limits of a comparison, which ends unfinished at the first limit that it reaches.

    Args:
        files: number of files in both sets together; if there are more, nothing is compared.
        bytes: number of bytes to read.
        seconds: time, for slow file systems.
    """

    files: int
    bytes: int
    seconds: float


# If the operating system has the files in memory, comparing 20,000 files takes 0.1 s, and reading 256 MiB takes 0.3 s.
LIMIT_AT_START = Limit(files=20_000, bytes=256 * 2**20, seconds=1.0)


@dataclass(frozen=True)
class SharedFiles:
    """Files with the same content in a training and a validation set.

    Attributes:
        pairs: (index in the training set, index in the validation set), one pair for each shared validation image.
        complete: whether the comparison reached its end, so that `pairs` has every shared image.
    """

    pairs: list[tuple[int, int]]
    complete: bool


def shared_files(train_set: Dataset, val_set: Dataset, limit: Limit | None = None) -> SharedFiles:
    """Find the validation images whose file is also the file of a training image, or has the same bytes.

    Two parts of one folder (`val_fraction`) are compared as well, because the folder may hold copies of an image. Data sets
    without one file per image are not compared. Files that cannot be read are skipped.

    Args:
        limit: limits of the comparison; None compares everything.
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
    """Return the path of each image's file, or an empty list if the data set does not have one file per image."""
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
        pairs: (training index, validation index) of the files with equal content among those compared so far.
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
        candidates: dict[int, list[int]] = defaultdict(list)  # size -> validation files that have to be read
        for index, path in enumerate(val_paths):
            if not (file := self._status(path)):
                continue
            if (same := by_identity.get((file.st_dev, file.st_ino))) is not None:
                self.pairs.append((same, index))
            elif file.st_size in by_size:
                candidates[file.st_size].append(index)
        for size in sorted(candidates):  # small files first, so that the limit on bytes allows as many files as possible
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
            with open(path, "rb", opener=open_regular) as file:
                return hashlib.blake2b(file.read(size), digest_size=16).digest()
        except OSError:
            return b""

    def _check_time(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise _LimitReachedError

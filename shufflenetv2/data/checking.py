"""Check folders of images before a training: find files that cannot be decoded, copies, and classes that do not fit.

`check_folders` reads every file once, in threads, and gathers its findings by kind.
"""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import UserError, one_line
from ..terminal import Progress
from .formats import BYTES_READ, SUFFIXES_OF, content_format, has_image_suffix
from .images import ImageError, open_encoded, read_file
from .index import images_by_class
from .overview import UNEQUAL_RATIO
from .similarity import Signature, signature, similar_pairs
from .threads import map_in_threads, usable_cores

TRAINING, VALIDATION = "training", "validation"
PROBLEM_OF = {"unreadable": "unreadable", "not a file": "unreadable", "too large": "huge", "damaged": "damaged"}

KINDS = {
    "unreadable": "cannot be read",
    "damaged": "cannot be decoded",
    "huge": "too large to be decoded",
    "tiny": "tiny images",
    "wrong_suffix": "the content has another format than the suffix says; the image can be decoded",
    "ignored": "images that training does not see",
    "copies": "files with the same content",
    "shared": "files with the same content in training and validation",
    "near_copies": "images that look alike",
    "near_shared": "images that look alike in training and validation",
    "classes": "classes",
}


@dataclass(frozen=True, order=True)
class ImagePath:
    """An image file: its split, 'training' or 'validation', and its path relative to the folder of the split."""

    split: str
    path: str

    @property
    def class_name(self) -> str:
        return self.path.partition(os.sep)[0]


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        images: the files; none for a finding about classes.
        detail: what is wrong.
    """

    images: tuple[ImagePath, ...]
    detail: str


@dataclass(frozen=True)
class ScannedFile:
    """What the content of a file says.

    Attributes:
        image: the file.
        problems: by kind, the detail.
        digest: of the content; empty if the file cannot be read.
        signature: for comparison with other images; None if the image cannot be decoded.
    """

    image: ImagePath
    problems: dict[str, str]
    digest: bytes = b""
    signature: Signature | None = None


@dataclass
class CheckResult:
    """The findings about a training set, and a validation set if there is one.

    Attributes:
        folders: by split.
        counts: by split and class name, the number of images.
        findings: by kind, a key of KINDS.
    """

    folders: dict[str, Path]
    counts: dict[str, dict[str, int]]
    findings: dict[str, list[Finding]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    @property
    def is_clean(self) -> bool:
        return not any(self.findings.values())

    def path(self, image: ImagePath) -> Path:
        """Return the path of an image."""
        return self.folders[image.split] / image.path

    def describe_sizes(self) -> str:
        """Return the numbers of images and classes of each split."""
        sizes = []
        for split, by_class in self.counts.items():
            images, classes = sum(by_class.values()), len(by_class)
            sizes.append(f"{images:,} {split} image{'s' * (images != 1)} in {classes:,} class{'es' * (classes != 1)}")
        return "; ".join(sizes)

    def files_to_move(self) -> Iterator[tuple[ImagePath, str]]:
        """Yield the files without which the other findings about their images would be gone, each with the reason.

        These are files that cannot be decoded, and copies: one file of each content stays, in validation if it is there. Copies
        in different classes stay, because it is not known which class is right, and images that only look alike stay.
        """
        for kind in ("unreadable", "damaged", "huge"):
            for finding in self.findings[kind]:
                for image in finding.images:
                    yield image, finding.detail
        for kind in ("copies", "shared"):
            for finding in self.findings[kind]:
                if len({image.class_name for image in finding.images}) == 1:
                    kept = max(finding.images, key=lambda image: image.split == VALIDATION)  # the first of equals
                    for image in finding.images:
                        if image != kept:
                            yield image, f"copy of {self.path(kept)}"


def check_folders(
    train_dir: Path, val_dir: Path | None = None, *, min_side: int, max_distance: int, workers: int | None = None
) -> CheckResult:
    """Check a training set, and a validation set if there is one.

    Args:
        train_dir, val_dir: folders of class folders.
        min_side: images with a shorter side are tiny, in pixels.
        max_distance: see `similar_pairs`.
        workers: number of threads; default: the usable cores.

    Raises:
        UserError: a folder is missing or has no class folders, or both are the same folder.
    """
    folders = {TRAINING: train_dir} | ({VALIDATION: val_dir} if val_dir is not None else {})
    if val_dir is not None and os.path.realpath(val_dir) == os.path.realpath(train_dir):
        raise UserError(f"`val_dir` {val_dir} is the training folder; every image would be in both")
    classes = {split: images_by_class(folder) for split, folder in folders.items()}
    counts = {split: {name: len(paths) for name, paths in images.items()} for split, images in classes.items()}
    result = CheckResult(folders, counts)
    images = [ImagePath(split, path) for split, by_class in classes.items() for paths in by_class.values() for path in paths]
    if not images:
        raise UserError(f"{train_dir} holds no images below its class folders")
    scan = partial(scan_file, folders, min_side)
    files = []
    bar = Progress("checking", len(images), "images")
    with bar, closing(map_in_threads(scan, images, workers or usable_cores())) as scanned:
        for file in scanned:
            files.append(file)
            bar.advance()
    for file in files:
        for kind, detail in file.problems.items():
            result.findings[kind].append(Finding((file.image,), detail))
    for split, folder in folders.items():
        ignored = find_ignored(folder)
        result.findings["ignored"] += [Finding((ImagePath(split, path),), reason) for path, reason in ignored]
    _compare(files, max_distance, result)
    result.findings["classes"] = [Finding((), line) for line in describe_classes(counts)]
    return result


def scan_file(folders: dict[str, Path], min_side: int, image: ImagePath) -> ScannedFile:
    """Read and decode a file."""
    path = folders[image.split] / image.path
    problems: dict[str, str] = {}
    digest = b""
    try:
        encoded = read_file(path)
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        opened = open_encoded(str(path), encoded)
        side = min(opened.height, opened.width)
        pixels = opened.crop(0, 0, opened.height, opened.width, min_size=(min(side, 64), min(side, 64)))
    except ImageError as error:
        reason = one_line(error).removeprefix(f"{path} ")
        return ScannedFile(image, {PROBLEM_OF[error.kind]: reason}, digest)
    if side < min_side:
        problems["tiny"] = f"{opened.width} x {opened.height} pixels, less than {min_side} on the short side"
    format = content_format(encoded)
    if format and path.suffix.lower() not in SUFFIXES_OF[format]:
        problems["wrong_suffix"] = f"the content is {format}"
    return ScannedFile(image, problems, digest, signature(pixels))


def find_ignored(folder: Path) -> list[tuple[str, str]]:
    """Return the images that a data set of class folders does not contain, as path relative to the folder, and reason."""
    ignored = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        is_top = os.path.samefile(parent, folder)
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if is_top and has_image_suffix(name):
                ignored.append((name, "lies outside of the class folders"))
            elif not has_image_suffix(name) and (format := _format_of_file(path)):
                suffix = SUFFIXES_OF[format][0]
                ignored.append((os.path.relpath(path, folder), f"the content is {format}; rename the file to {suffix}"))
    return ignored


def _format_of_file(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return ""
        with open(path, "rb") as file:
            return content_format(file.read(BYTES_READ))
    except OSError:
        return ""


def _compare(files: list[ScannedFile], max_distance: int, result: CheckResult) -> None:
    """Add the files with the same content, and the images that look alike, to the findings."""
    by_digest: dict[bytes, list[ScannedFile]] = defaultdict(list)
    for file in files:
        if file.digest and file.signature:
            by_digest[file.digest].append(file)
    contents = list(by_digest.values())
    for copies in contents:
        if len(copies) > 1:
            _add_group(result, "copies", "shared", [file.image for file in copies], "the same content")
    # Each content is compared once.
    pairs = similar_pairs([copies[0].signature for copies in contents if copies[0].signature], max_distance)
    for group in connected(pairs, len(contents)):
        images = [contents[number][0].image for number in group]
        _add_group(result, "near_copies", "near_shared", images, "they look alike")


def _add_group(result: CheckResult, kind: str, shared_kind: str, images: list[ImagePath], detail: str) -> None:
    classes = sorted({image.class_name for image in images})
    if len(classes) > 1:
        detail += f", in different classes: {', '.join(classes)}"
    is_shared = len({image.split for image in images}) > 1
    result.findings[shared_kind if is_shared else kind].append(Finding(tuple(images), detail))


def connected(pairs: Iterable[tuple[int, int]], count: int) -> list[list[int]]:
    """Return the groups of numbers from 0 to `count` - 1 that pairs connect, directly or over others; sorted."""
    parents = list(range(count))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    for a, b in pairs:
        first, second = sorted((root(a), root(b)))
        parents[second] = first
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(count):
        groups[root(number)].append(number)
    return [group for group in groups.values() if len(group) > 1]


def describe_classes(counts: dict[str, dict[str, int]]) -> list[str]:
    """Return lines about classes that are empty, in one of the two sets only, or far larger than others."""
    training, validation = counts[TRAINING], counts.get(VALIDATION)
    lines = [f"{name} has no {split} images" for split, by_name in counts.items() for name, n in by_name.items() if not n]
    if validation is not None:
        lines += [f"{name} is only in training" for name in training if name not in validation]
        lines += [f"{name} is only in validation" for name in validation if name not in training]
    filled = {name: n for name, n in training.items() if n}
    if filled:
        largest, smallest = max(filled, key=lambda name: filled[name]), min(filled, key=lambda name: filled[name])
        ratio = filled[largest] / filled[smallest]
        if ratio >= UNEQUAL_RATIO:
            lines.append(
                f"{largest} has {ratio:.0f} times as many training images as {smallest}: {filled[largest]:,} and "
                f"{filled[smallest]:,}"
            )
    return lines

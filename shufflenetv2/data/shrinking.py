"""A data set made smaller: which file becomes which, and how.

JPEGs are written at quality 95 with colour at half the resolution (4:2:0), as most photographs are. On
the 512 photographs of benchmarks/photographs.py, 68 kB on average, shrunk to a short side of 256 (224 central
pixels against those of the shrunk image before it is encoded, mean PSNR; OpenCV 5.0.0, one run):

    quality 90, 4:4:4   30.3 kB   40.6 dB
    quality 95, 4:2:0   33.5 kB   40.7 dB    the default: decoded in 0.37 ms
    quality 95, 4:4:4   43.3 kB   43.6 dB    0.53 ms
    quality 97, 4:2:0   42.1 kB   42.2 dB
    quality 98, 4:4:4   62.6 kB   47.5 dB

Shrinking alone, without JPEG, is 45.2 dB from the pixels that validation makes of the originals, and 35.1 dB for
random crops resized to 224; the default encoding lowers the first to 39.0: for training, shrinking matters more than
encoding. Trained from such images on a small task of fine detail (benchmarks/prepared.py), the network knew 0.8 points
less than from the originals, with a standard error of 0.9 over eight seeds. ImageNet was not measured.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
from tqdm import tqdm

from ..errors import UserError
from ..files import lock_folder, write_bytes
from . import DatasetError, ImageError, usable_cores
from .images import Image, open_encoded, read_file
from .index import images_by_class
from .transforms import OpencvResize

Item = TypeVar("Item")
Result = TypeVar("Result")

RECORD = ".prepared"  # says what a folder was made of; hidden, so that it is no part of the data set
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
LONGEST_JPEG = 65_500  # pixels, libjpeg's limit
JPEG_OPTIONS = [
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
    # Restart markers after every 4 x 16 pixels: the loader skips what a crop does not need. 1 % larger.
    *(cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
]
AHEAD = 4  # images per thread that wait to be done, or to be counted


class PrepareError(UserError):
    """Two folders that do not go together; the text names the remedy."""


@dataclass
class Outcome:
    """What became of the images: how many were encoded, copied, or there before, and why the others were not."""

    encoded: int = 0
    copied: int = 0
    there: int = 0
    unreadable: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        return self.encoded + self.copied + self.there + len(self.unreadable)


def shrink(source: Path, destination: Path, *, short_side: int, quality: int, workers: int | None = None) -> Outcome:
    """Makes `destination` a class folder of JPEGs, with the images of `source` at no more than the size asked for.

    A file that is there is finished, since each is written under another name first; so a call that
    was interrupted can be repeated. Class folders without images are made as well: what training
    says of them it says of both.

    Args:
        source: a folder of class folders, read as `FolderDataset` reads it.
        destination: a folder that is new or empty, or comes from the same call.
        short_side: of the images in pixels; shorter ones keep their size.
        quality: of the JPEGs that are encoded, 1 to 100.
        workers: threads, the usable cores if None.

    Raises:
        DatasetError: where the source has no class folders or no images.
        PrepareError: where the destination holds anything else, or lies in the source. Nothing is written then.
        UserError: where another process prepares the same folder.
        UserError: where the disk is full, the folder read-only, ...
    """
    classes = images_by_class(source)
    paths = [path for images in classes.values() for path in images]
    if not paths:
        raise DatasetError(f"{source} holds no images below its class folders")
    record = f"{os.path.realpath(source)} with --short-side {short_side} --quality {quality}"
    _require_a_place(source, destination, record)
    destination.mkdir(parents=True, exist_ok=True)
    with lock_folder(destination, "wait for its end, or name another folder"):
        write_bytes(destination / RECORD, os.fsencode(record))
        there = finished(destination)
        targets = target_names(paths)
        for folder in {*classes, *map(os.path.dirname, targets)}:
            (destination / folder).mkdir(parents=True, exist_ok=True)
        outcome = Outcome(there=sum(target in there for target in targets))
        left = (
            (source / path, destination / target) for path, target in zip(paths, targets, strict=True) if target not in there
        )
        work = partial(shrink_file, short_side=short_side, quality=quality)
        workers = workers or usable_cores()
        bar = tqdm(total=len(paths), initial=outcome.there, unit="image", dynamic_ncols=True, disable=None)  # on a terminal
        with bar, closing(in_threads(work, left, workers)) as results:
            for result in results:
                if isinstance(result, str):
                    outcome.unreadable.append(result)
                elif result:
                    outcome.copied += 1
                else:
                    outcome.encoded += 1
                bar.update()
    return outcome


def _require_a_place(source: Path, destination: Path, record: str) -> None:
    """Refuses a destination that would mix data sets, or sizes."""
    outer, inner = Path(os.path.realpath(source)), Path(os.path.realpath(destination))
    if inner == outer:
        raise PrepareError(f"{source} and {destination} are the same folder; name another one for the small images")
    if outer in inner.parents:
        raise PrepareError(f"{destination} lies in {source}, and its images would be part of both; name a folder outside")
    if not destination.exists():
        return
    if (destination / RECORD).exists():
        before = os.fsdecode((destination / RECORD).read_bytes()).strip()
        if before != record:
            raise PrepareError(
                f"{destination} was made from {before}; name another folder, or correct {destination / RECORD} "
                "if those images have only moved"
            )
    elif any(not name.startswith(".") for name in os.listdir(destination)):
        raise PrepareError(f"{destination} holds files that do not come from this command; name a new or an empty folder")


def target_names(paths: list[str]) -> list[str]:
    """Where each image goes: its own path, ending in .jpg if its suffix is no JPEG's.

    Where several would meet, those that are renamed keep their suffix too: a.png becomes a.png.jpg
    beside a.jpg. Capitals do not tell names apart, as on some file systems.
    """
    split = [os.path.splitext(path) for path in paths]
    wanted = [stem + (suffix if suffix.lower() in JPEG_SUFFIXES else ".jpg") for stem, suffix in split]
    counts = Counter(name.lower() for name in wanted)
    taken = {path.lower() for path, name in zip(paths, wanted, strict=True) if path == name}
    names = []
    for path, name in zip(paths, wanted, strict=True):
        if name != path:
            if counts[name.lower()] > 1:
                name = path + ".jpg"
            while name.lower() in taken:
                name += ".jpg"
            taken.add(name.lower())
        names.append(name)
    return names


def finished(destination: Path) -> set[str]:
    """The relative paths of the files that are there; clears away what a killed run left half written."""
    found = set()
    for where, _, names in os.walk(destination):
        for name in names:
            path = Path(where, name)
            if name.startswith(".") and name.endswith(".tmp"):
                path.unlink()
            elif path.stat().st_size:  # a power cut can leave a file without its content
                found.add(os.path.relpath(path, destination))
    return found


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result, None, None]:
    """What becomes of each item, in order, with few items on their way. Close it to end the threads."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def shrink_file(paths: tuple[Path, Path], short_side: int, quality: int) -> bool | str:
    """Makes the second of the files from the first. Returns whether it is a copy, or why there is none."""
    source, target = paths
    try:
        encoded = read_file(source)
        image = open_encoded(str(source), encoded)
        copied = min(image.height, image.width) <= short_side and encoded.startswith(b"\xff\xd8")
        if copied:
            image.crop(0, 0, image.height, image.width)  # what cannot be decoded is not passed on
        else:
            encoded = encode(str(source), image, short_side, quality)
    except ImageError as error:
        return str(error)
    # Flushing each of a million files to the disk would take longer than making them.
    write_bytes(target, encoded, durable=False)
    return copied


def encode(name: str, image: Image, short_side: int, quality: int) -> bytes:
    """The image as a sequential JPEG, with its short side at most `short_side`.

    Pixels are what training sees: orientation tags are not obeyed, transparency is dropped. The
    size is what validation's resizing would give, which then has nothing left to do.

    Raises:
        ImageError: for an image that cannot be decoded, or is too long for a JPEG.
    """
    width, height = image.width, image.height
    if min(width, height) > short_side:
        width, height = OpencvResize(short_side).target(height, width)
    if max(width, height) > LONGEST_JPEG:
        raise ImageError(f"{name} is too long for a JPEG, which has at most {LONGEST_JPEG:,} pixels")
    # A decoder that scales down needs half the time and a fraction of the memory. Twice the size asked
    # for is left to the filter, which is the better one.
    pixels = image.crop(0, 0, image.height, image.width, min_side=2 * short_side)
    if pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality, *JPEG_OPTIONS])[1].tobytes()

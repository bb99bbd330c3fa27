"""Make a copy of a data set with smaller images, so that every epoch reads and decodes less.

JPEGs are written at quality 95 with 4:2:0 chroma subsampling, as most photographs are. The table has file sizes, the PSNR that
encoding leaves, and decoding times. Measured on the 512 photographs of benchmarks/photographs.py (68 kB on average), shrunk to
a short side of 256 pixels. The PSNR compares the central 224 x 224 pixels with those of the shrunk image before encoding,
averaged over the images; OpenCV 5.0.0, one run:

    quality 90, 4:4:4   30.3 kB   40.6 dB
    quality 95, 4:2:0   33.5 kB   40.7 dB   0.37 ms   (the default)
    quality 95, 4:4:4   43.3 kB   43.6 dB   0.53 ms
    quality 97, 4:2:0   42.1 kB   42.2 dB
    quality 98, 4:4:4   62.6 kB   47.5 dB

Compared with original images, for the pixels that validation computes, shrunk images have a PSNR of 45.2 dB without JPEG
encoding and 39.0 dB with the default encoding. For random crops resized to 224 pixels, as in training, they have 35.1 dB
already without encoding: there, shrinking loses more than encoding.

On a small task with fine detail (benchmarks/prepared.py) a network trained on shrunk images had an accuracy 0.8 percentage
points below that of a network trained on the originals, with a standard error of 0.9 over eight seeds. ImageNet was not
measured.
"""

import os
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2

from ..errors import UserError
from ..files import lock_folder, read_regular_file, write_bytes
from ..terminal import Progress
from .images import Image, ImageError, open_encoded, read_file
from .index import images_by_class
from .threads import map_in_threads, usable_cores
from .transforms import OpencvResize

RECORD = ".prepared"  # file that records the source and the settings of a folder; hidden, so not part of the data set
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
MAX_JPEG_SIDE = 65_500  # pixels, the limit of libjpeg
JPEG_OPTIONS = [
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
    # A restart marker after every 4 blocks of 16 pixels: the loader skips blocks that a crop does not need. Files are 1 %
    # larger.
    *(cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
]


@dataclass
class Outcome:
    """Count the images of a call of `shrink` by what was done with them.

    Attributes:
        encoded: number of images resized, or encoded as JPEG at their own size.
        copied: number of JPEG files copied unchanged.
        existing: number of images that an earlier call wrote.
        unreadable: an error message for each image that could not be read or encoded.
    """

    encoded: int = 0
    copied: int = 0
    existing: int = 0
    unreadable: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        return self.encoded + self.copied + self.existing + len(self.unreadable)


def shrink(source: Path, destination: Path, *, short_side: int, quality: int, workers: int | None = None) -> Outcome:
    """Write the images of one data set folder to another as JPEGs, with a short side of at most `short_side` pixels.

    After an interruption, the same call continues: every file is written under a temporary name first, so an existing file is
    complete. Class folders without images are created too, so that both folders have the same classes.

    Args:
        source: a folder of class folders, read as `FolderDataset` reads it.
        destination: a folder that is new or empty, or was written by a call with the same source and settings.
        short_side: in pixels; smaller images keep their size.
        quality: of the JPEGs that are encoded, 1 to 100.
        workers: threads; by default as many as there are usable cores.

    Raises:
        UserError: before anything is written, if the source has no class folders or no images, or if the destination lies in
            the source, holds other files, or is in use by another process. Later, if writing fails, for example because the
            disk is full.
    """
    classes = images_by_class(source)
    paths = [path for images in classes.values() for path in images]
    if not paths:
        raise UserError(f"{source} holds no images below its class folders")
    record = f"{os.path.realpath(source)} with --short-side {short_side} --quality {quality}"  # the format of version 0.1
    _check_destination(source, destination, record)
    destination.mkdir(parents=True, exist_ok=True)
    with lock_folder(destination, "wait until that process ends, or name another folder"):
        write_bytes(destination / RECORD, os.fsencode(record))
        existing = finished_files(destination)
        targets = target_names(paths)
        for folder in {*classes, *map(os.path.dirname, targets)}:
            (destination / folder).mkdir(parents=True, exist_ok=True)
        outcome = Outcome(existing=sum(target in existing for target in targets))
        remaining = (
            (source / path, destination / target) for path, target in zip(paths, targets, strict=True) if target not in existing
        )
        shrink_one = partial(shrink_file, short_side=short_side, quality=quality)
        bar = Progress("shrinking", len(paths), "images", initial=outcome.existing)
        with bar, closing(map_in_threads(shrink_one, remaining, workers or usable_cores())) as results:
            for result in results:
                if isinstance(result, str):
                    outcome.unreadable.append(result)
                elif result:
                    outcome.copied += 1
                else:
                    outcome.encoded += 1
                bar.advance()
    return outcome


def _check_destination(source: Path, destination: Path, record: str) -> None:
    """Raise a UserError if images of different data sets or sizes would be mixed in the destination."""
    source_path, destination_path = Path(os.path.realpath(source)), Path(os.path.realpath(destination))
    if destination_path == source_path:
        raise UserError(f"{source} and {destination} are the same folder; name another folder for the small images")
    if source_path in destination_path.parents:
        raise UserError(f"{destination} lies in {source}, and its images would be part of both; name a folder outside")
    if not destination.exists():
        return
    if (destination / RECORD).exists():
        earlier_record = os.fsdecode(read_regular_file(destination / RECORD)).strip()
        if earlier_record != record:
            raise UserError(
                f"{destination} was made from {earlier_record}; name another folder, or correct {destination / RECORD} "
                "if those images have only moved"
            )
    elif any(not name.startswith(".") for name in os.listdir(destination)):
        raise UserError(f"{destination} holds files that this command did not write; name a new or an empty folder")


def target_names(paths: list[str]) -> list[str]:
    """Return the relative path of each image in the destination: its path in the source, with a JPEG suffix.

    JPEG suffixes stay; others are replaced by .jpg. If several images would get the same path, .jpg is appended instead: beside
    a.jpg, a.png becomes a.png.jpg. Paths that differ only in upper and lower case count as the same, as on some file systems.
    """
    stems_and_suffixes = [os.path.splitext(path) for path in paths]
    names = [stem + (suffix if suffix.lower() in JPEG_SUFFIXES else ".jpg") for stem, suffix in stems_and_suffixes]
    counts = Counter(name.lower() for name in names)
    taken = {path.lower() for path, name in zip(paths, names, strict=True) if path == name}
    unique_names = []
    for path, name in zip(paths, names, strict=True):
        if name != path:
            if counts[name.lower()] > 1:
                name = path + ".jpg"
            while name.lower() in taken:
                name += ".jpg"
            taken.add(name.lower())
        unique_names.append(name)
    return unique_names


def finished_files(destination: Path) -> set[str]:
    """Return the relative paths of the complete files in a folder, and remove temporary files that a killed process left."""
    paths = set()
    for folder, _, names in os.walk(destination):
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") and name.endswith(".tmp"):
                path.unlink()
            elif path.stat().st_size:  # a power failure can leave an empty file
                paths.add(os.path.relpath(path, destination))
    return paths


def shrink_file(paths: tuple[Path, Path], short_side: int, quality: int) -> bool | str:
    """Write one image to the destination.

    Args:
        paths: source and target file.

    Returns:
        True if the target is an unchanged copy, False if it was encoded; an error message if the source cannot be read.
    """
    source, target = paths
    try:
        encoded = read_file(source)
        image = open_encoded(str(source), encoded)
        is_copy = min(image.height, image.width) <= short_side and encoded.startswith(b"\xff\xd8")
        if is_copy:
            image.crop(0, 0, image.height, image.width)  # raises an error if the image cannot be decoded
        else:
            encoded = encode(str(source), image, short_side, quality)
    except ImageError as error:
        return str(error)
    # Not durable: an fsync for each of a million files would take longer than encoding them.
    write_bytes(target, encoded, durable=False)
    return is_copy


def encode(name: str, image: Image, short_side: int, quality: int) -> bytes:
    """Encode an image as a sequential JPEG, with a short side of at most `short_side` pixels.

    The pixels are those that training reads: orientation tags are ignored and transparency is dropped. The long side is rounded
    as in validation, so that validation with `resize_size` equal to `short_side` does not resize again.

    Args:
        name: path of the image, for error messages.

    Raises:
        ImageError: if the image cannot be decoded, or is too long for a JPEG.
    """
    width, height = image.width, image.height
    if min(width, height) > short_side:
        width, height = OpencvResize(short_side).target(height, width)
    if max(width, height) > MAX_JPEG_SIDE:
        raise ImageError(f"{name} is too long for a JPEG: {max(width, height):,} pixels; the limit is {MAX_JPEG_SIDE:,}")
    # Let the decoder reduce the image, which takes half the time and a fraction of the memory, but to no less than twice the
    # final size, because the filter of INTER_AREA is better than that of the decoder.
    pixels = image.crop(0, 0, image.height, image.width, min_size=(2 * short_side, 2 * short_side))
    if pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality, *JPEG_OPTIONS])[1].tobytes()

"""Report the images that cannot be decoded: each once, in the log and in bad_images.csv."""

import csv
import io
from collections.abc import Iterable

from ..data import BadImage, BadImages
from ..files import MAX_RECORD_BYTES, open_regular, read_regular_file
from ..report import RunLog, protect, unprotect
from . import distributed

FILE = "bad_images.csv"  # columns: split, image, reason
Row = tuple[str, str]  # split, image


class BadImageReport:
    """Write each bad image of a run to the log and to bad_images.csv, once, also if the run is continued.

    Args:
        log: receives the lines; its folder receives the file.
        collections: by split, those of this process.
        is_new: the run does not continue; the list of an earlier run is deleted.
    """

    def __init__(self, log: RunLog, collections: dict[str, BadImages | None], *, is_new: bool) -> None:
        self._log, self._collections = log, {split: images for split, images in collections.items() if images is not None}
        self._path = log.folder and log.folder / FILE
        if self._path and is_new:
            self._path.unlink(missing_ok=True)
        self._reported = self._read()

    def __call__(self) -> None:
        """Report the images since the last call; all processes of a run must call this equally often.

        Raises:
            TooManyBadImagesError: all processes together have met more than accepted; raised in all of them.
        """
        self.write(distributed.gather_lists(self.take_new()))
        for images in self._collections.values():
            images.check()

    def take_new(self) -> list[BadImage]:
        """Return the images that this process has met since the last call."""
        return [image for images in self._collections.values() for image in images.take_new()]

    def write(self, images: Iterable[BadImage]) -> None:
        """Write images that were not reported before."""
        table = io.StringIO()
        for image in images:
            self._collections[image.split].merge(image)
            if (image.split, image.name) not in self._reported:
                self._reported.add((image.split, image.name))
                self._log.info(f"left out: {image.reason}")
                csv.writer(table, lineterminator="\n").writerow((image.split, protect(image.name), protect(image.reason)))
        if self._path and table.tell():
            with open(self._path, "ab", opener=open_regular) as file:
                file.write(table.getvalue().encode(errors="backslashreplace"))

    def summary(self) -> str:
        """Return a line about the numbers of bad images; '' if there are none."""
        counts = [f"{len(images):,} {split} images" for split, images in self._collections.items() if len(images)]
        return f"{' and '.join(counts)} cannot be decoded and were left out; {self._path} lists them" if counts else ""

    def _read(self) -> set[Row]:
        """Return the split and name of the images in the file."""
        if self._path is None or not self._path.exists():
            return set()
        rows = csv.reader(io.StringIO(read_regular_file(self._path, MAX_RECORD_BYTES).decode(errors="replace")))
        return {(row[0], unprotect(row[1])) for row in rows if len(row) >= 2}

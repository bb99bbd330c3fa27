"""Report the images that cannot be decoded: each once, in the log and in bad_images.csv."""

from collections.abc import Iterable

from ..data import BadImage, BadImages
from ..report import BAD_IMAGES_FILE, RunLog, append_bad_images, read_bad_images
from . import distributed

SHOWN = 10  # on the terminal; all are in the log


class BadImageReport:
    """Write each bad image of a run to the log and to bad_images.csv, once, also if the run is continued.

    Args:
        log: receives the lines; its folder receives the file.
        collections: by split, those of this process.
        is_new: the run does not continue; the list of an earlier run is deleted.
    """

    def __init__(self, log: RunLog, collections: dict[str, BadImages | None], *, is_new: bool) -> None:
        self._log, self._collections = log, {split: images for split, images in collections.items() if images is not None}
        self._reported: set[tuple[str, str]] = set()  # split, image
        if log.folder and is_new:
            (log.folder / BAD_IMAGES_FILE).unlink(missing_ok=True)
        elif log.folder:
            self._reported = {(split, image) for split, image, _ in read_bad_images(log.folder)}

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
        rows = []
        for image in images:
            self._collections[image.split].merge(image)
            if (image.split, image.name) in self._reported:
                continue
            self._reported.add((image.split, image.name))
            rows.append((image.split, image.name, image.reason))
            write = self._log.warning if len(self._reported) <= SHOWN else self._log.detail
            write(f"left out: {image.reason}")
        if rows and self._log.folder:
            with self._log.optional():
                append_bad_images(self._log.folder, rows)

    def summary(self) -> str:
        """Return a line about the numbers of bad images; '' if there are none."""
        counts = [f"{len(images):,} {split} images" for split, images in self._collections.items() if len(images)]
        where = f"; {self._log.folder / BAD_IMAGES_FILE} lists them" if self._log.folder else ""
        return f"{' and '.join(counts)} cannot be decoded and were left out{where}" if counts else ""

"""Choose the images that a report shows, and encode them as small JPEG files."""

import base64
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent import futures
from contextlib import closing

import cv2
import numpy as np

from ..data import Dataset, map_in_threads
from ..errors import UserError
from .runfiles import Prediction

SHOWN = 24  # worst mistakes, and least certain images
FIRST_PER_CELL = 4  # images of a cell of the confusion matrix that come before those of any diagonal cell
PER_CELL = 8  # images of a cell that are named
MAX_NAMED = 2_000
MAX_THUMBNAILS = 150
MAX_MISSING = 1_000  # images that could not be decoded, before one that is shown
SIDE = 112  # pixels of the longer side
QUALITY = 75
WAIT_SECONDS = 2.0  # for an image; a file system that does not answer must not hold up a run, least of all after a signal
PAUSE_SECONDS = 60.0  # after an image that did not arrive in time, during which no image is read

_paused_until = 0.0


def select_mistakes(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the worst mistakes, which may be wrong labels: first the images whose label has the lowest probability."""
    wrong = [row for row in predictions if row.prediction != row.label]
    return sorted(wrong, key=lambda row: (row.label_probability, -row.probability))[:SHOWN]


def select_uncertain(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the images with the least probable predictions, right or wrong, the least probable first."""
    return sorted(predictions, key=lambda row: row.probability)[:SHOWN]


def select_by_cell(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return images for the cells of the confusion matrix: confident mistakes, and the least certain correct images.

    The first image of every cell comes before the second of any. Cells with mistakes come before the diagonal, with their
    first four images.
    """
    cells: dict[tuple[str, str], list[Prediction]] = defaultdict(list)
    for row in predictions:
        cells[row.label, row.prediction].append(row)
    ranked = []
    for (label, prediction), rows in cells.items():
        is_mistake = label != prediction
        rows.sort(key=lambda row: row.probability, reverse=is_mistake)
        for rank, row in enumerate(rows[:PER_CELL]):
            ranked.append(((rank >= FIRST_PER_CELL, not is_mistake, rank, -len(rows)), row))
    ranked.sort(key=lambda entry: entry[0])
    return [row for _, row in ranked[:MAX_NAMED]]


def with_thumbnails(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the images to show as pictures, the most important first, each once."""
    shown = (*select_mistakes(predictions), *select_uncertain(predictions), *select_by_cell(predictions))
    return list({row.position: row for row in shown}.values())[:MAX_THUMBNAILS]


def encode_thumbnails(
    predictions: Sequence[Prediction], dataset: Dataset | None, cache: dict[str, str] | None = None
) -> dict[str, str]:
    """Return a data URI for each image that can be read, by its name.

    Args:
        predictions: of the data set, in its order.
        dataset: the validation set; without it only the cache is used.
        cache: data URIs of earlier calls by name, which is extended.
    """
    cache = {} if cache is None else cache
    thumbnails = {}
    for row in with_thumbnails(predictions):
        if row.image not in cache and dataset is not None and (pixels := read_pixels(dataset, row, SIDE)) is not None:
            cache[row.image] = _encode(pixels)
        if row.image in cache:
            thumbnails[row.image] = cache[row.image]
    return thumbnails


def find_sample(dataset: Dataset, row: Prediction) -> int | None:
    """Return the index of an image; None if it is not in the data set."""
    # The rows before it may lack images that could not be decoded.
    candidates = range(row.position, min(len(dataset), row.position + MAX_MISSING))
    return next((index for index in candidates if as_written(dataset.name(index)) == row.image), None)


def read_pixels(dataset: Dataset, row: Prediction, side: int) -> np.ndarray | None:
    """Read an image: uint8 (H, W, 3), BGR, shrunk until its longer side has at most `side` pixels.

    Returns:
        None if the image cannot be read, does not arrive in time, or the data set is not that of the prediction.
    """
    global _paused_until
    index = find_sample(dataset, row)
    if index is None or time.monotonic() < _paused_until:
        return None

    def read(index: int) -> np.ndarray:
        image = dataset.image(index)
        return image.crop(0, 0, image.height, image.width, min_size=(min(side, image.height), min(side, image.width))).copy()

    try:
        with closing(map_in_threads(read, [index], 1, timeout=WAIT_SECONDS)) as results:
            pixels = next(results)
    except futures.TimeoutError:
        _paused_until = time.monotonic() + PAUSE_SECONDS
        return None
    except (UserError, cv2.error):
        return None
    scale = side / max(pixels.shape[:2])
    if scale < 1:
        height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(pixels)


def read_tile(dataset: Dataset, row: Prediction, side: int) -> np.ndarray | None:
    """Read an image into a square with a light border: uint8 (side, side, 3), BGR; None as in `read_pixels`."""
    pixels = read_pixels(dataset, row, side)
    if pixels is None:
        return None
    magnification = side // max(pixels.shape[:2])
    pixels = pixels.repeat(magnification, 0).repeat(magnification, 1)
    tile = np.full((side, side, 3), 244, np.uint8)
    top, left = ((side - length) // 2 for length in pixels.shape[:2])
    tile[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return tile


def as_written(name: str) -> str:
    """Return a name as the files of a run have it: a name of a file need not be valid Unicode."""
    return name.encode(errors="backslashreplace").decode()


def _encode(pixels: np.ndarray) -> str:
    is_small = max(pixels.shape[:2]) < SIDE / 2  # lossless, and enlarged by the browser
    suffix, kind = (".png", "png") if is_small else (".jpg", "jpeg")
    _, encoded = cv2.imencode(suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"

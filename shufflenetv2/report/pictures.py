"""Pictures for TensorBoard and the like: images of a batch, and the most confident mistakes of a validation."""

from collections.abc import Container, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..data import Dataset
from .predictions import Predictions
from .runfiles import Prediction
from .thumbnails import as_written, read_tile

Picture = NDArray[np.uint8]  # RGB (H, W, 3)

COLUMNS, SHOWN = 4, 16
SIDE = 112  # pixels of a mistake
LINE = 14  # pixels
INK = (34, 34, 34)


def batch_picture(images: NDArray[np.uint8]) -> Picture:
    """Show the first 16 images of a batch (N, C, H, W), BGR or grey, side by side."""
    tiles = images[:SHOWN, ::-1].transpose(0, 2, 3, 1)
    return _side_by_side(tiles.repeat(3, 3) if tiles.shape[3] == 1 else tiles)


def mistakes_picture(dataset: Dataset, predictions: Predictions, left_out: Container[int] = ()) -> Picture | None:
    """Show the 16 most confident mistakes with the predicted class, its probability, and the label.

    Args:
        left_out: indices of the images for which there is no prediction.

    Returns:
        None if there are no mistakes.
    """
    wrong = np.flatnonzero(predictions.guesses[:, 0] != predictions.targets)
    chosen = wrong[np.argsort(-predictions.probabilities[wrong, 0], kind="stable")][:SHOWN]
    indices = [index for index in range(len(dataset)) if index not in left_out]
    tiles = []
    for position in chosen.tolist():
        label, guess = (
            dataset.class_names[number] for number in (predictions.targets[position], predictions.guesses[position, 0])
        )
        probability = float(predictions.probabilities[position, 0])
        row = Prediction(indices[position], as_written(dataset.name(indices[position])), label, guess, probability, 0.0)
        if (tile := read_tile(dataset, row, SIDE)) is not None:
            tiles.append(_with_caption(tile[:, :, ::-1], f"{guess} {probability:.0%}", f"is {label}"))
    return _side_by_side(np.stack(tiles)) if tiles else None


def _with_caption(tile: NDArray[np.uint8], *lines: str) -> NDArray[np.uint8]:
    canvas = Image.new("RGB", (tile.shape[1], tile.shape[0] + LINE * len(lines)), "white")
    canvas.paste(Image.fromarray(np.ascontiguousarray(tile)))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(LINE - 3)
    for number, line in enumerate(lines):
        draw.text((2, tile.shape[0] + LINE * number), as_written(line).replace("\n", " "), INK, font)
    return np.asarray(canvas)


def _side_by_side(tiles: NDArray[np.uint8]) -> Picture:
    """Arrange tiles (N, H, W, 3) in rows of four."""
    count, height, width, _ = tiles.shape
    columns = min(COLUMNS, count)
    canvas = np.full((-(-count // columns) * height, columns * width, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        y, x = number // columns * height, number % columns * width
        canvas[y : y + height, x : x + width] = tile
    return canvas


def class_accuracy(class_names: Sequence[str], recall: NDArray[np.float64], reserved: Container[str]) -> dict[str, float]:
    """Return the accuracy of each class that has images, by name.

    Args:
        reserved: names that cannot be those of values, and are left out.
    """
    pairs = zip(map(as_written, class_names), recall.tolist(), strict=True)
    return {name: value for name, value in pairs if value == value and name not in reserved}

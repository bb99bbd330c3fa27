"""Images side by side, each with a caption."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .style import BAD, DPI, new_figure, shorten

MAX_IMAGES = 64
MIN_TILE_WIDTH = 112  # pixels; smaller images are magnified
GAP = 8  # pixels
LINE_HEIGHT = 17  # pixels
FONT_SIZE = 9  # points
CHARACTER_WIDTH = 0.62  # mean width of a character, of the height of the letters
TITLE_HEIGHT = 34  # pixels
BLACK = "#222222"  # neutral, so that a grid of grey images is grey


def write_grid(
    path: Path,
    images: NDArray[np.uint8],
    captions: Sequence[str],
    *,
    columns: int = 8,
    title: str = "",
    is_wrong: Sequence[bool] = (),
) -> None:
    """Write a PNG file of images side by side, pixel by pixel; small images are magnified by a whole number.

    Args:
        path: destination; its folder is created if missing.
        images: (N, C, H, W) uint8, BGR or grey, at least one; the first 64 are shown.
        captions: N texts, one below each image, in at most two lines; further words are left out.
        columns: number of images in a row.
        title: above the images.
        is_wrong: N booleans; the captions of these images are red.

    Raises:
        UserError: the file cannot be written.
    """
    if not len(images) == len(captions) > 0:
        raise ValueError(f"{len(images)} images and {len(captions)} captions")
    tiles = images[:MAX_IMAGES, ::-1].transpose(0, 2, 3, 1)  # RGB or grey
    if tiles.shape[3] == 1:
        tiles = tiles.repeat(3, 3)
    magnification = -(-MIN_TILE_WIDTH // tiles.shape[2])
    tiles = tiles.repeat(magnification, 1).repeat(magnification, 2)
    count, height, width = tiles.shape[:3]
    columns = min(columns, count)

    texts = [wrap(caption, width) for caption in captions[:MAX_IMAGES]]
    step_x, step_y = width + GAP, height + GAP + LINE_HEIGHT * max(map(len, texts))
    top = GAP + TITLE_HEIGHT * bool(title)
    canvas = np.full((top + -(-count // columns) * step_y, GAP + columns * step_x, 3), 255, np.uint8)
    inches = ((pixels + 0.01) / DPI for pixels in canvas.shape[1::-1])  # matplotlib rounds the number of pixels down
    with new_figure(path, *inches) as figure:
        figure.set_layout_engine("none")

        def write(x: float, y: float, text: str, **style: Any) -> None:
            figure.text(x / canvas.shape[1], 1 - y / canvas.shape[0], text, va="center", **style)

        if title:
            write(GAP, top - TITLE_HEIGHT / 2, title, ha="left", fontsize=12, fontweight="bold")
        for number, (tile, lines) in enumerate(zip(tiles, texts, strict=True)):
            x, y = GAP + number % columns * step_x, top + number // columns * step_y
            canvas[y : y + height, x : x + width] = tile
            colour = BAD if number < len(is_wrong) and is_wrong[number] else BLACK
            for line, text in enumerate(lines):
                centre = y + height + 10 + LINE_HEIGHT * line
                write(x + width / 2, centre, text, ha="center", fontsize=FONT_SIZE, color=colour)
        figure.figimage(canvas, zorder=-1)


def write_batch(path: Path, images: Tensor, targets: Tensor, class_names: Sequence[str], title: str = "") -> None:
    """Write a PNG file of a batch as the network receives it, each image with its class.

    Args:
        path: destination; its folder is created if missing.
        images: (N, C, H, W), BGR or grey, 0..255; the first 64 are shown.
        targets: (N,) labels, or (N, classes) target probabilities, of which the two largest are named.
        title: above the images.

    Raises:
        UserError: the file cannot be written.
    """
    images, targets = images[:MAX_IMAGES], targets[:MAX_IMAGES]
    if targets.ndim == 1:
        captions = [class_names[label] for label in targets.tolist()]
    else:
        captions = [_mixed_caption(probabilities, class_names) for probabilities in targets]
    pixels = images.clamp(0, 255).to("cpu", dtype=torch.uint8).contiguous().numpy()
    write_grid(path, pixels, captions, title=title)


def _mixed_caption(probabilities: Tensor, class_names: Sequence[str]) -> str:
    """Name the two classes of a mixed image, with their target probabilities."""
    values, labels = probabilities.topk(min(2, len(probabilities)))
    pairs = zip(values.tolist(), labels.tolist(), strict=True)
    return " / ".join(f"{class_names[label]} {value:.2f}" for value, label in pairs if value)


def wrap(text: str, width: float) -> list[str]:
    """Break a text between words into one or two lines that fit a width in pixels."""
    limit = max(4, int(width / (FONT_SIZE / 72 * DPI * CHARACTER_WIDTH)))
    words = shorten(text, 1000).split(" ")
    first = words.pop(0)
    while words and len(first) + 1 + len(words[0]) <= limit:
        first += " " + words.pop(0)
    return [shorten(line, limit) for line in (first, " ".join(words)) if line]

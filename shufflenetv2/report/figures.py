"""Figures and tables of a run: the confusion matrix, and the images that the network sees."""

import io
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .classes import ClassCounts
from .records import write_file
from .tables import write_csv

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# The first font that the system has is used. Without any of them Pillow's own font is used, which has only Latin letters.
FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
INK, FAINT = (34, 34, 34), (190, 190, 190)

# Confusion matrix
MAX_COLUMNS = 200  # largest number of classes for which confusion.csv is a matrix
MAX_COUNTS = 20  # largest number of classes for which the counts fit into the cells
MAX_NAMES = 70  # largest number of classes for which the names fit beside the cells
MAX_CELLS = 500  # cells in a row; more classes are combined, since cells of one pixel would be invisible
MATRIX_SIDE = 1000  # approximate side of the matrix in pixels
MAX_NAME_WIDTH = 180  # pixels
# RGB, from white for 0 to dark blue for 1: ColorBrewer's Blues
BLUES = np.array([(255, 255, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107)])

# Grid of images
MAX_IMAGES = 64
MIN_TILE_WIDTH = 112  # pixels; smaller images are magnified
GAP = 8  # pixels
LINE_HEIGHT = 17  # pixels


def write_per_class(
    folder: Path, classes: ClassCounts, class_names: Sequence[str], confusion: NDArray[np.int64] | None = None
) -> None:
    """Write per_class.csv, with a row for each class: numbers of images, and the columns of scikit-learn's report.

    Args:
        folder: destination; created if missing.
        class_names: C names.
        confusion: (C, C), see `write_confusion`; without it the class most often confused with each class is left out.

    Raises:
        UserError: the file cannot be written.
    """
    mistakes = np.zeros((len(class_names), 1), np.int64)
    if confusion is not None:
        mistakes = confusion.copy()
        np.fill_diagonal(mistakes, 0)
    most_confused = mistakes.argmax(1)
    fractions = np.stack((classes.recall, classes.precision, classes.f1), 1).tolist()
    rows: list[list[Any]] = []
    for label, name in enumerate(class_names):
        images, times = classes.support[label], mistakes[label, most_confused[label]]
        confused_with = [class_names[most_confused[label]], times] if times else ["", ""]
        recall, precision, f1 = ("" if math.isnan(value) else value for value in fractions[label])
        rows.append([name, images, classes.correct[label], recall, *confused_with, precision, recall, f1, images])
    header = ["class", "images", "correct", "accuracy", "most_confused_with", "times", "precision", "recall", "f1", "support"]
    write_csv(folder / "per_class.csv", [header, *rows])


def write_confusion(folder: Path, counts: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """Write which classes are confused with which.

    per_class.csv has one row per class. confusion.csv holds the counts: as a matrix, or, for more than 200 classes, as a list
    of those above 0. confusion_matrix.png shows them.

    Args:
        folder: destination; created if missing.
        counts: (C, C) int64, number of images of a class (row) that were classified as another (column).
        class_names: C names.

    Raises:
        UserError: the files cannot be written.
    """
    write_per_class(folder, ClassCounts.from_confusion(counts), class_names, counts)
    if len(counts) <= MAX_COLUMNS:
        matrix = ([name, *row] for name, row in zip(class_names, counts.tolist(), strict=True))
        write_csv(folder / "confusion.csv", [["true class", *class_names], *matrix])
    else:
        pairs = ([class_names[true], class_names[guess], counts[true, guess]] for true, guess in np.argwhere(counts))
        write_csv(folder / "confusion.csv", [["true", "guess", "count"], *pairs])
    _write_png(folder / "confusion_matrix.png", _confusion_matrix(counts, class_names))


def write_grid(path: Path, images: NDArray[np.uint8], captions: Sequence[str], columns: int = 8) -> None:
    """Write a PNG file of images side by side.

    Args:
        path: destination; its folder is created if missing.
        images: (N, C, H, W) uint8, BGR or grey, at least one; the first 64 are shown.
        captions: N texts, one below each image, shortened to two lines.
        columns: number of images in a row.

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

    font = load_font(13)
    texts = [wrap(caption, font, width) for caption in captions[:MAX_IMAGES]]
    step_x, step_y = width + GAP, height + GAP + LINE_HEIGHT * max(map(len, texts))
    canvas = Image.new("RGB", (GAP + columns * step_x, GAP + -(-count // columns) * step_y), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (tile, lines) in enumerate(zip(tiles, texts, strict=True)):
        x, y = GAP + number % columns * step_x, GAP + number // columns * step_y
        canvas.paste(Image.fromarray(tile), (x, y))
        for line, text in enumerate(lines):
            draw.text((x + width / 2, y + height + 10 + LINE_HEIGHT * line), text, INK, font, anchor="mm")
    _write_png(path, canvas)


def _write_png(path: Path, image: Image.Image) -> None:
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=2)  # takes a third of the default's time, for a file 10 % larger
    write_file(path, content.getvalue())


# ---- confusion matrix


def _confusion_matrix(counts: NDArray[np.int64], class_names: Sequence[str]) -> Image.Image:
    classes = len(counts)
    fractions = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).astype(np.float32)  # of the images of the true class
    if classes > MAX_CELLS:
        starts = np.arange(MAX_CELLS) * classes // MAX_CELLS
        fractions = np.maximum.reduceat(np.maximum.reduceat(fractions, starts, 0), starts, 1)
    cells = len(fractions)
    cell = min(max(480 // cells, 52), 240) if classes <= MAX_COUNTS else MATRIX_SIDE // cells  # pixels
    side = cells * cell

    small, font, large = load_font(12), load_font(14), load_font(20)
    if classes <= MAX_NAMES:
        labels = [(label, shorten(name, small, MAX_NAME_WIDTH)) for label, name in enumerate(class_names)]
    else:
        labels = [(label, str(label)) for label in range(0, classes, 10 ** (len(str(classes - 1)) - 1) // 2)]
    margin = 44 + round(max(small.getlength(text) for _, text in labels))
    images = int(counts.sum())
    subtitle = f"{images:,} images of {classes:,} classes, {counts.trace() / max(images, 1):.2%} correct"
    if cells < classes:
        subtitle += "; each square shows the maximum over several classes"
    top = 72
    width = max(margin + side + 120, 40 + round(font.getlength(subtitle)))
    canvas = Image.new("RGB", (width, top + side + margin + 8), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((20, 28), "Confusion matrix", INK, large, anchor="lm")
    draw.text((20, 52), subtitle, INK, font, anchor="lm")

    heat = _blues(fractions).repeat(cell, 0).repeat(cell, 1)
    if classes <= MAX_NAMES:
        heat[::cell] = heat[:, ::cell] = (230, 230, 230)
    canvas.paste(Image.fromarray(heat), (margin, top))
    draw.rectangle((margin - 1, top - 1, margin + side, top + side), outline=INK)
    if classes <= MAX_COUNTS:
        for (true, guess), count in np.ndenumerate(counts):
            centre = (margin + (guess + 0.5) * cell, top + (true + 0.5) * cell)
            colour = "white" if fractions[true, guess] > 0.3 else INK if count else FAINT
            draw.text(centre, _abbreviate(int(count)), colour, font, anchor="mm")

    for label, text in labels:
        offset = round((label + 0.5) * side / classes)
        draw.text((margin - 8, top + offset), text, INK, small, anchor="rm")
        _draw_upwards(canvas, (margin + offset, top + side + 8), text, small, "top")
    numbering = "" if classes <= MAX_NAMES else " (numbered like the rows of per_class.csv, from 0)"
    _draw_upwards(canvas, (22, top + side // 2), f"true class{numbering}", font, "middle")
    draw.text((margin + side / 2, top + side + margin - 14), f"guess{numbering}", INK, font, anchor="mm")
    _draw_scale(canvas, margin + side + 24, top, side, small, font)
    return canvas


def _draw_scale(canvas: Image.Image, left: int, top: int, height: int, small: Font, font: Font) -> None:
    draw = ImageDraw.Draw(canvas)
    scale = _blues(np.linspace(1, 0, height)[:, None] ** 2).repeat(16, 1)
    canvas.paste(Image.fromarray(scale), (left, top))
    draw.rectangle((left - 1, top - 1, left + 16, top + height), outline=INK)
    for percent in (0, 1, 5, 10, 25, 50, 75, 100):
        y = top + height * (1 - (percent / 100) ** 0.5)
        draw.text((left + 22, y), f"{percent}%", INK, small, anchor="lm")
    _draw_upwards(canvas, (left + 72, top + height // 2), "fraction of the true class", font, "middle")


def _blues(fractions: NDArray[Any]) -> NDArray[np.uint8]:
    """Map fractions (H, W) to RGB colours (H, W, 3). The scale is that of the square root, so that 1 % is visible."""
    levels = np.linspace(0, 1, 256)
    table = np.stack([np.interp(levels, np.linspace(0, 1, len(BLUES)), channel) for channel in BLUES.T], 1)
    colours: NDArray[np.uint8] = table.round().astype(np.uint8)[(np.sqrt(fractions) * 255).round().astype(np.uint8)]
    return colours


def _abbreviate(count: int) -> str:
    return f"{count:,}" if count < 100_000 else f"{count / 1000:,.0f}k" if count < 1e7 else f"{count / 1e6:,.0f}M"


# ---- text


def _draw_upwards(canvas: Image.Image, position: tuple[int, int], text: str, font: Font, anchor: str) -> None:
    """Draw text that reads upwards.

    Args:
        position: (x, y). The text is centred at x, and ends at y (anchor 'top') or is centred at y ('middle').
    """
    mask = Image.new("L", (round(font.getlength(text)) + 2, 24))
    ImageDraw.Draw(mask).text((0, 12), text, 255, font, anchor="lm")
    mask = mask.rotate(90, expand=True)
    x, y = position
    canvas.paste(INK, (x - mask.width // 2, y if anchor == "top" else y - mask.height // 2), mask)


def load_font(size: int) -> Font:
    """Load the first of FONTS that the system has, or else Pillow's own font."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)  # searches the font folders of the system
        except OSError:
            continue
    return ImageFont.load_default(size)


def drawable(text: str, font: Font) -> str:
    """Make a text a single line that Pillow can draw: escape invalid characters; for Pillow's own font, remove accents."""
    text = " ".join(text.encode(errors="backslashreplace").decode().split())
    if isinstance(font, ImageFont.FreeTypeFont) and font.getname()[0] == "Aileron":  # Pillow's own font
        text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return text


def shorten(text: str, font: Font, width: float) -> str:
    """Cut a text that is wider than `width` pixels, and end it with '...'."""
    text = drawable(text, font)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def wrap(text: str, font: Font, width: float) -> list[str]:
    """Break a text between words into one or two lines of at most `width` pixels."""
    words = drawable(text, font).split(" ")
    first = words.pop(0)
    while words and font.getlength(f"{first} {words[0]}") <= width:
        first += " " + words.pop(0)
    return [shorten(line, font, width) for line in (first, " ".join(words)) if line]

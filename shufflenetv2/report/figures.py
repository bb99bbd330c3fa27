"""Pictures and tables of a run: what it confuses with what, and what the network sees."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .records import write_whole

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# The font that Pillow brings along knows English alone.
FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")

MOST_COLUMNS = 200  # of a table that a person can look at
MOST_COUNTS = 20  # classes whose counts fit into their cells
MOST_NAMES = 70  # classes whose names fit beside their cells
MOST_CELLS = 500  # beside each other: a single pixel could not be seen
MATRIX = 1000  # pixels, about
LABEL = 180  # pixels that a name may take
INK, FAINT = (34, 34, 34), (190, 190, 190)
# From white, for nothing, to dark blue: ColorBrewer's Blues.
BLUES = np.array([(255, 255, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107)])

MOST_IMAGES = 64
NARROWEST = 112  # pixels: smaller images are magnified
GAP = 8


def write_confusion(folder: Path, counts: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """Writes what is taken for what.

    per_class.csv has a row for each class; confusion.csv the counts, as a matrix, or for more than
    200 classes as a list of those that are not 0; confusion_matrix.png shows them.

    Args:
        folder: created if missing.
        counts: (C, C) int64, how many images of a class (row) were taken for which one (column).
        class_names: C of them.

    Raises:
        ReportError: where the files cannot be written.
    """
    images, correct = counts.sum(1), counts.diagonal()
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    worst = mistakes.argmax(1)
    rows: list[list[Any]] = []
    for label, name in enumerate(class_names):
        accuracy = correct[label] / images[label] if images[label] else ""
        times = mistakes[label, worst[label]]
        other = [class_names[worst[label]], times] if times else ["", ""]
        rows.append([name, images[label], correct[label], accuracy, *other])
    header = ["class", "images", "correct", "accuracy", "most_confused_with", "times"]
    _write_csv(folder / "per_class.csv", [header, *rows])

    if len(counts) <= MOST_COLUMNS:
        matrix = ([name, *row] for name, row in zip(class_names, counts.tolist(), strict=True))
        _write_csv(folder / "confusion.csv", [["true class", *class_names], *matrix])
    else:
        pairs = ([class_names[true], class_names[guess], counts[true, guess]] for true, guess in np.argwhere(counts))
        _write_csv(folder / "confusion.csv", [["true", "guess", "count"], *pairs])
    _write_png(folder / "confusion_matrix.png", _confusion_matrix(counts, class_names))


def write_grid(path: Path, images: NDArray[np.uint8], captions: Sequence[str], columns: int = 8) -> None:
    """Writes a PNG of what the network sees.

    Args:
        path: its folder is created if missing.
        images: (N, 3, H, W) uint8, BGR, at least one; 64 are shown at most.
        captions: N, one for underneath each image; they take two lines at most.
        columns: images beside each other.

    Raises:
        ReportError: where the file cannot be written.
    """
    if not len(images) == len(captions) > 0:
        raise ValueError(f"{len(images)} images and {len(captions)} captions")
    tiles = images[:MOST_IMAGES, ::-1].transpose(0, 2, 3, 1)
    magnified = -(-NARROWEST // tiles.shape[2])
    tiles = tiles.repeat(magnified, 1).repeat(magnified, 2)
    count, height, width = tiles.shape[:3]
    columns = min(columns, count)

    font = _font(13)
    texts = [_wrapped(caption, font, width) for caption in captions[:MOST_IMAGES]]
    step_x, step_y = width + GAP, height + GAP + 17 * max(map(len, texts))
    canvas = Image.new("RGB", (GAP + columns * step_x, GAP + -(-count // columns) * step_y), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (tile, lines) in enumerate(zip(tiles, texts, strict=True)):
        x, y = GAP + number % columns * step_x, GAP + number // columns * step_y
        canvas.paste(Image.fromarray(tile), (x, y))
        for line, text in enumerate(lines):
            draw.text((x + width / 2, y + height + 10 + 17 * line), text, INK, font, anchor="mm")
    _write_png(path, canvas)


def _write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_whole(path, table.getvalue().encode(errors="backslashreplace"))  # names of folders may be no UTF-8


def _write_png(path: Path, image: Image.Image) -> None:
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=2)  # a tenth larger than by default, in a third of the time
    write_whole(path, content.getvalue())


def _confusion_matrix(counts: NDArray[np.int64], class_names: Sequence[str]) -> Image.Image:
    classes = len(counts)
    shares = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).astype(np.float32)
    if classes > MOST_CELLS:
        first = np.arange(MOST_CELLS) * classes // MOST_CELLS
        shares = np.maximum.reduceat(np.maximum.reduceat(shares, first, 0), first, 1)
    cells = len(shares)
    cell = min(max(480 // cells, 52), 240) if classes <= MOST_COUNTS else MATRIX // cells
    side = cells * cell

    small, font, large = _font(12), _font(14), _font(20)
    if classes <= MOST_NAMES:
        labels = [(label, _shortened(name, small, LABEL)) for label, name in enumerate(class_names)]
    else:
        labels = [(label, str(label)) for label in range(0, classes, 10 ** (len(str(classes - 1)) - 1) // 2)]
    margin = 44 + round(max(small.getlength(text) for _, text in labels))
    images = int(counts.sum())
    told = f"{images:,} images of {classes:,} classes, {counts.trace() / max(images, 1):.2%} correct"
    if cells < classes:
        told += "; a square shows the largest of its shares"
    top = 72
    canvas = Image.new("RGB", (max(margin + side + 120, 40 + round(font.getlength(told))), top + side + margin + 8), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((20, 28), "Confusion matrix", INK, large, anchor="lm")
    draw.text((20, 52), told, INK, font, anchor="lm")

    # The square root, since a mistake made once in a hundred times should show.
    heat = _blues(shares).repeat(cell, 0).repeat(cell, 1)
    if classes <= MOST_NAMES:
        heat[::cell] = heat[:, ::cell] = (230, 230, 230)
    canvas.paste(Image.fromarray(heat), (margin, top))
    draw.rectangle((margin - 1, top - 1, margin + side, top + side), outline=INK)
    if classes <= MOST_COUNTS:
        for (true, guess), count in np.ndenumerate(counts):
            place = (margin + (guess + 0.5) * cell, top + (true + 0.5) * cell)
            dark = shares[true, guess] > 0.3
            draw.text(place, _abbreviated(int(count)), "white" if dark else INK if count else FAINT, font, anchor="mm")

    for label, text in labels:
        at = round((label + 0.5) * side / classes)
        draw.text((margin - 8, top + at), text, INK, small, anchor="rm")
        _draw_upwards(canvas, (margin + at, top + side + 8), text, small, "top")
    axis = "" if classes <= MOST_NAMES else " (numbered as the rows of per_class.csv, from 0)"
    _draw_upwards(canvas, (22, top + side // 2), f"true class{axis}", font, "middle")
    draw.text((margin + side / 2, top + side + margin - 14), f"guess{axis}", INK, font, anchor="mm")

    bar = margin + side + 24
    scale = _blues(np.linspace(1, 0, side)[:, None] ** 2).repeat(16, 1)
    canvas.paste(Image.fromarray(scale), (bar, top))
    draw.rectangle((bar - 1, top - 1, bar + 16, top + side), outline=INK)
    for percent in (0, 1, 5, 10, 25, 50, 75, 100):
        at = top + side * (1 - (percent / 100) ** 0.5)
        draw.text((bar + 22, at), f"{percent}%", INK, small, anchor="lm")
    _draw_upwards(canvas, (bar + 72, top + side // 2), "share of the true class", font, "middle")
    return canvas


def _blues(shares: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W), 0..1, to RGB (H, W, 3)."""
    levels = np.linspace(0, 1, 256)
    table = np.stack([np.interp(levels, np.linspace(0, 1, len(BLUES)), channel) for channel in BLUES.T], 1)
    colours: NDArray[np.uint8] = table.round().astype(np.uint8)[(np.sqrt(shares) * 255).round().astype(np.uint8)]
    return colours


def _abbreviated(count: int) -> str:
    return f"{count:,}" if count < 100_000 else f"{count / 1000:,.0f}k" if count < 1e7 else f"{count / 1e6:,.0f}M"


def _draw_upwards(canvas: Image.Image, place: tuple[int, int], text: str, font: Font, anchor: str) -> None:
    """Text that reads upwards, around x, and ending at y ('top') or around it ('middle')."""
    mask = Image.new("L", (round(font.getlength(text)) + 2, 24))
    ImageDraw.Draw(mask).text((0, 12), text, 255, font, anchor="lm")
    mask = mask.rotate(90, expand=True)
    x, y = place
    canvas.paste(INK, (x - mask.width // 2, y if anchor == "top" else y - mask.height // 2), mask)


def _font(size: int) -> Font:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)  # looks where the system keeps its fonts
        except OSError:
            continue
    return ImageFont.load_default(size)


def _drawable(text: str, font: Font) -> str:
    """The text in one line, without what would stop Pillow, and as well as the font knows it."""
    text = " ".join(text.encode(errors="backslashreplace").decode().split())
    if isinstance(font, ImageFont.FreeTypeFont) and font.getname()[0] == "Aileron":  # Pillow's own
        text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return text


def _shortened(text: str, font: Font, width: float) -> str:
    """As much of the text as fits into a width in pixels."""
    text = _drawable(text, font)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _wrapped(text: str, font: Font, width: float) -> list[str]:
    """One line or two, broken between words."""
    words = _drawable(text, font).split(" ")
    first = words.pop(0)
    while words and font.getlength(f"{first} {words[0]}") <= width:
        first += " " + words.pop(0)
    return [_shortened(part, font, width) for part in (first, " ".join(words)) if part]

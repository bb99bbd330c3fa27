"""Decoding: any image file to three channels of bytes, blue first.

Decoding is most of what a training image costs, so it is done no further than needed. A crop that
ends at row 300 of 500 needs no later rows: a sequential JPEG is told to be shorter than it is, and
the decoder stops there, with the very same pixels above. A crop that is to be shrunk anyway may be
decoded at a half, a quarter or an eighth, which a JPEG's frequencies give away. And pixels are decoded
into memory that the thread has used before, since fresh pages cost a quarter of the decoding itself.
"""

import os
import threading
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

# What OpenCV cannot read Pillow tries, and what neither reads is reported by name: its own complaints are noise.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

import cv2
import numpy as np
import PIL.Image
import simplejpeg

from .. import UserError

# The loader brings its own threads; OpenCV's would only fight them for the cores.
cv2.setNumThreads(0)

# Orientation tags are ignored, as Pillow and so the original trainer ignore them.
READ_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION

# Colour is interpolated between rows, so the last rows asked for are right only if a few more are decoded.
ROWS_BELOW = 16

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".ico", ".pcx", ".sgi",
})
# fmt: on


class ImageError(UserError):
    """A file that is no readable image; the text names it and the remedy."""

    status = 1


class Image(Protocol):
    """An image whose size is known before its pixels are needed."""

    height: int
    width: int

    def crop(self, top: int, left: int, height: int, width: int, at_least: int | None = None) -> np.ndarray:
        """The pixels of a part, as uint8 (height, width, 3), BGR. Valid until this thread's next call.

        Args:
            at_least: the part may come smaller where that is cheaper, by a factor of 2, 4 or 8, with
                its edges rounded to whole pixels, as long as neither side gets shorter than this.
        """


class DecodedImage:
    """An image that is pixels already, uint8 (H, W, 3), BGR."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def crop(self, top: int, left: int, height: int, width: int, at_least: int | None = None) -> np.ndarray:
        return self.pixels[top : top + height, left : left + width]


class SequentialJpeg:
    """A JPEG that is decoded from the top down, as far as needed."""

    def __init__(self, name: str, encoded: bytes, header: "JpegHeader") -> None:
        self.name, self.encoded, self._header = name, encoded, header
        self.height, self.width = header.height, header.width

    def crop(self, top: int, left: int, height: int, width: int, at_least: int | None = None) -> np.ndarray:
        factor = 1 if at_least is None else max(f for f in (1, 2, 4, 8) if f == 1 or min(height, width) >= f * at_least)
        pixels = self._decode(top + height, factor)
        edges = (top, top + height, left, left + width)
        top, bottom, left, right = ((edge + factor // 2) // factor for edge in edges)
        return pixels[top:bottom, left:right]

    def _decode(self, end: int, factor: int) -> np.ndarray:
        """The rows before `end`, and some more, at 1 / factor."""
        height = min(end + ROWS_BELOW, self.height)
        shortened = bytearray(self.encoded)
        at = self._header.height_offset
        shortened[at : at + 2] = height.to_bytes(2, "big")
        rows, columns = -(-height // factor), -(-self.width // factor)
        try:
            # Not strict: what is left over after the last row is the point, not an error. The scale is
            # asked for by the size that it has.
            pixels: np.ndarray = simplejpeg.decode_jpeg(
                shortened,
                "BGR",
                strict=False,
                min_height=rows if factor > 1 else 0,
                min_width=columns if factor > 1 else 0,
                buffer=_scratch.of_size(rows * columns * 3),
            )
        except ValueError as error:
            raise unreadable(self.name) from error
        return pixels


def open_image(path: str | Path) -> Image:
    """The image in a file. Grey, palette, transparent, CMYK and 16-bit images come out as three channels alike.

    Transparency is dropped, and sixteen bits keep their upper eight. On grey and
    three-coloured JPEG the pixels are Pillow's, bit for bit.

    Raises:
        ImageError: for a file that cannot be read or decoded, now or when its rows are asked for.
    """
    return open_encoded(str(path), read_file(path))


def read_file(path: str | Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: for a file that cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error


def open_encoded(name: str, encoded: bytes) -> Image:
    """The image in the bytes of a file of that name; see `open_image`."""
    header = parse_jpeg_header(encoded)
    # The check at the end is for files that were cut short; OpenCV knows those that only look so.
    if header is not None and encoded.endswith(b"\xff\xd9"):
        return SequentialJpeg(name, encoded, header)
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), READ_FLAGS) if encoded else None
    except cv2.error:  # a size beyond what OpenCV allows
        pixels = None
    # Some contents (PFM, whatever its suffix) come back without channels.
    return DecodedImage(pixels if pixels is not None and pixels.ndim == 3 else decode_with_pillow(name, encoded))


def read_image(path: str | Path) -> np.ndarray:
    """The whole image in a file as uint8 (H, W, 3), BGR; see `open_image`."""
    image = open_image(path)
    return image.crop(0, 0, image.height, image.width).copy()


def decode_with_pillow(name: str, encoded: bytes) -> np.ndarray:
    """What OpenCV does not read, as uint8 (H, W, 3), BGR."""
    try:
        with PIL.Image.open(BytesIO(encoded)) as image:
            if image.mode.startswith("I"):  # sixteen bits, which convert() would clip at 255
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            rgb = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise whatever their formats make them raise
        raise unreadable(name) from error
    return np.ascontiguousarray(rgb[:, :, ::-1])


def unreadable(name: str) -> ImageError:
    return ImageError(f"{name} is not a readable image; remove it or replace it")


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG says of its size, and the offset of the two bytes that say its height."""

    height: int
    width: int
    height_offset: int


def parse_jpeg_header(encoded: bytes) -> JpegHeader | None:
    """The header of a sequential JPEG, grey or in three colours, of eight bits; None for anything else.

    (Segments: ITU-T T.81, B.1 and B.2. A progressive file refines the whole image scan by scan.)
    """
    if encoded[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 < len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker in (0xC0, 0xC1):
            precision, components = encoded[at + 4], encoded[at + 9]
            height, width = (int.from_bytes(encoded[at + i : at + i + 2], "big") for i in (5, 7))
            if precision == 8 and components in (1, 3) and height and width:
                return JpegHeader(height, width, at + 5)
            return None
        elif marker in _OTHER_FRAMES or marker in (0xD9, 0xDA):
            return None
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


_OTHER_FRAMES = set(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}


class _Scratch(threading.local):
    """Memory of a thread that every image is decoded into."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def of_size(self, size: int) -> np.ndarray:
        if size > self._buffer.size:
            self._buffer = np.empty(size, np.uint8)
        return self._buffer


_scratch = _Scratch()

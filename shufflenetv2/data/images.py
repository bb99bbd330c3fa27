"""Decoding: any image file to three channels of bytes, blue first.

Decoding is most of what a training image costs, so it is done no further than needed: of a sequential
JPEG only the crop becomes pixels (`jpeg.py`), and a crop that is to be shrunk anyway may be decoded at a
half, a quarter or an eighth, which a JPEG's frequencies give away.
"""

import os
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

# What OpenCV cannot read Pillow tries, and what neither reads is reported by name: its own complaints are noise.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

import cv2
import numpy as np
import PIL.Image

from ..errors import UserError
from ..kernels import jpeg
from .jitter import UNCHANGED, Jitter
from .resize import resize

# The loader brings its own threads; OpenCV's would only fight them for the cores.
cv2.setNumThreads(0)

REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".ico", ".pcx", ".sgi",
})
# fmt: on


class ImageError(UserError):
    """A file that is no readable image; the text names it and the remedy."""

    status = 1


class Cut(NamedTuple):
    """What becomes of a training image: a part of it, at another size, flipped and jittered."""

    top: int
    left: int
    height: int
    width: int
    size: int  # of both sides of the result
    interpolation: str = "bilinear"  # one of resize.INTERPOLATIONS
    mirrored: bool = False
    upside_down: bool = False
    jitter: Jitter = UNCHANGED


class Image:
    """An image whose size is known before its pixels are needed."""

    height: int
    width: int

    def crop(self, top: int, left: int, height: int, width: int, at_least: int | None = None) -> np.ndarray:
        """The pixels of a part, as uint8 (height, width, 3), BGR. Valid until this thread's next call.

        Args:
            at_least: the part may come smaller where that is cheaper, by a factor of 2, 4 or 8, with
                its edges rounded to whole pixels, as long as neither side gets shorter than this.
        """
        raise NotImplementedError

    def cut(self, cut: Cut, out: np.ndarray | None = None) -> np.ndarray:
        """What a cut gives, uint8 (size, size, 3), BGR; in `out`, contiguous, if there is one."""
        pixels = self.crop(cut.top, cut.left, cut.height, cut.width, at_least=cut.size)
        is_last = cut.jitter == UNCHANGED
        pixels = resize(
            pixels,
            cut.size,
            cut.size,
            cut.interpolation,
            mirrored=cut.mirrored,
            upside_down=cut.upside_down,
            out=out if is_last else None,
        )
        return pixels if is_last else cut.jitter(pixels, out)


class DecodedImage(Image):
    """An image that is pixels already, uint8 (H, W, 3), BGR."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def crop(self, top: int, left: int, height: int, width: int, at_least: int | None = None) -> np.ndarray:
        return self.pixels[top : top + height, left : left + width]


class SequentialJpeg(Image):
    """A JPEG of which parts are decoded, and at less than their size."""

    def __init__(self, name: str, encoded: bytes, height: int, width: int) -> None:
        self.name, self.encoded, self.height, self.width = name, encoded, height, width

    def crop(self, top: int, left: int, height: int, width: int, at_least: int | None = None) -> np.ndarray:
        scale, part = reduced(top, left, height, width, at_least)
        pixels = jpeg.decode(self.encoded, scale, *part)
        if pixels is None:
            whole = decode_with_opencv(self.encoded, REDUCED[scale])
            if whole is None:
                raise unreadable(self.name)
            top, left, height, width = part
            pixels = whole[top : top + height, left : left + width]
        return pixels

    def cut(self, cut: Cut, out: np.ndarray | None = None) -> np.ndarray:
        if cut.interpolation != "bilinear":
            return super().cut(cut, out)
        if out is None:
            out = np.empty((cut.size, cut.size, 3), np.uint8)
        scale, part = reduced(cut.top, cut.left, cut.height, cut.width, cut.size)
        done = jpeg.cut(self.encoded, scale, part, cut.jitter, cut.mirrored, cut.upside_down, out)
        return out if done else super().cut(cut, out)


def reduced(top: int, left: int, height: int, width: int, at_least: int | None) -> tuple[int, tuple[int, int, int, int]]:
    """By what a part may be reduced, for it to have sides `at_least` so long; and its top, left, height and width then."""
    scale = 1
    while at_least is not None and scale < jpeg.SCALES[-1] and min(height, width) >= 2 * scale * at_least:
        scale *= 2
    top, bottom, left, right = ((edge + scale // 2) // scale for edge in (top, top + height, left, left + width))
    return scale, (top, left, bottom - top, right - left)


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
    size = jpeg_size(encoded)
    # The check at the end is for files that were cut short; OpenCV knows those that only look so.
    if size is not None and encoded.endswith(b"\xff\xd9"):
        return SequentialJpeg(name, encoded, *size)
    pixels = decode_with_opencv(encoded)
    return DecodedImage(decode_with_pillow(name, encoded) if pixels is None else pixels)


def read_image(path: str | Path) -> np.ndarray:
    """The whole image in a file as uint8 (H, W, 3), BGR; see `open_image`."""
    image = open_image(path)
    return image.crop(0, 0, image.height, image.width).copy()


def decode_with_opencv(encoded: bytes, reduced: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    """The whole image as uint8 (H, W, 3), BGR, `reduced` by one of REDUCED; None for what OpenCV does not read."""
    try:
        # Orientation tags are ignored, as Pillow and so the original trainer ignore them.
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), reduced | cv2.IMREAD_IGNORE_ORIENTATION) if encoded else None
    except cv2.error:  # a size beyond what OpenCV allows
        return None
    # Some contents (PFM, whatever its suffix) come back without channels.
    return pixels if pixels is not None and pixels.ndim == 3 else None


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


def jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) of a sequential JPEG, grey or in three colours, of eight bits; None for anything else.

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
                return height, width
            return None
        elif marker in _OTHER_FRAMES or marker in (0xD9, 0xDA):
            return None
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


_OTHER_FRAMES = set(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}

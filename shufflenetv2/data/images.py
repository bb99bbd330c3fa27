"""Decoding: any image file to three channels of bytes, blue first."""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .. import UserError

# The loader brings its own threads; OpenCV's would only fight them for the cores.
cv2.setNumThreads(0)
# What OpenCV cannot read Pillow tries, and what neither reads is reported by name: its own complaints are noise.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Orientation tags are ignored, as Pillow and so the original trainer ignore them.
READ_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".ico", ".pcx", ".sgi",
})
# fmt: on


class ImageError(UserError):
    """A file that is no readable image; the text names it and the remedy."""

    status = 1


def read_image(path: str | Path) -> np.ndarray:
    """The image in a file as uint8 (H, W, 3), BGR.

    Grey, palette, transparent, CMYK and 16-bit images come out alike; transparency is dropped,
    sixteen bits keep their upper eight. On JPEG the pixels are Pillow's, bit for bit.

    Raises:
        ImageError: for a file that cannot be read, or that neither OpenCV nor Pillow can decode.
    """
    try:
        encoded = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error
    image = cv2.imdecode(encoded, READ_FLAGS) if encoded.size else None
    # A few formats (PFM) come back without channels.
    return image if image is not None and image.ndim == 3 else _read_with_pillow(path, encoded)


def _read_with_pillow(path: str | Path, encoded: np.ndarray) -> np.ndarray:
    try:
        with Image.open(BytesIO(encoded.tobytes())) as image:
            if image.mode.startswith("I"):  # sixteen bits, which convert() would clip at 255
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            rgb = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise whatever their formats make them raise
        raise ImageError(f"{path} is not a readable image; remove it or replace it") from error
    return np.ascontiguousarray(rgb[:, :, ::-1])

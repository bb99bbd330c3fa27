"""A part of a JPEG, decoded by `jpeg.c`, which installing the package compiles where there is a compiler.

Where there is none, or the processor or the file is not one it knows, OpenCV decodes the whole
image: the same pixels, in about twice the time.
"""

import ctypes
import functools
import logging
import platform
import sysconfig
import threading
from pathlib import Path

import numpy as np

LIBRARY = Path(__file__).with_name("_jpeg" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so"))
SCALES = (1, 2, 4, 8)

logger = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """What `jpeg.c` was compiled to; None where it was not, or where the processor cannot run it."""
    try:
        compiled = ctypes.CDLL(str(LIBRARY))
    except OSError:
        if platform.machine() in ("x86_64", "AMD64"):
            logger.warning("JPEGs are decoded whole, in twice the time: `pip install -e .`, with a C compiler, mends it")
        return None
    size = ctypes.c_size_t
    compiled.jpeg_decode.argtypes = [ctypes.c_char_p, size, *[ctypes.c_int] * 5, ctypes.c_void_p, ctypes.c_void_p, size]
    return compiled if compiled.jpeg_is_supported() else None


def decode(encoded: bytes, scale: int, top: int, left: int, height: int, width: int) -> np.ndarray | None:
    """Some rows and columns of the image at 1 / scale of its size, rounded up.

    Args:
        encoded: a JPEG file.
        scale: one of SCALES.

    Returns:
        uint8 (height, width, 3), BGR, valid until this thread's next call, the same as libjpeg-turbo's; or None
        for what is left to a library: damaged files, parts outside of the image, and all but sequential JPEGs in
        grey, or in three colours of which two may have half the width and half the height.
    """
    compiled = library()
    if compiled is None:
        return None
    pixels = _memory.pixels(height * width * 3 + 64)
    scratch = _memory.scratch(3 * (height + 64) * (width + 64) + len(encoded) + 200_000)
    # ctypes lets other threads run meanwhile.
    declined = compiled.jpeg_decode(
        encoded, len(encoded), scale, top, left, height, width, pixels.ctypes.data, scratch.ctypes.data, scratch.size
    )
    return None if declined else pixels[: height * width * 3].reshape(height, width, 3)


class _Memory(threading.local):
    """Memory that a thread decodes every image into: fresh pages would cost a quarter of the decoding itself."""

    def __init__(self) -> None:
        self._pixels = self._scratch = np.empty(0, np.uint8)

    def pixels(self, size: int) -> np.ndarray:
        if size > self._pixels.size:
            self._pixels = np.empty(size, np.uint8)
        return self._pixels

    def scratch(self, size: int) -> np.ndarray:
        if size > self._scratch.size:
            self._scratch = np.empty(size, np.uint8)
        return self._scratch


_memory = _Memory()

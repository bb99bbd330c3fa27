"""The compiled part of the data path (`jpeg.c`, `resize.c`, `jitter.c` and `cut.c`), and the memory its callers work in.

Without it, or on a processor that it was not written for, OpenCV does the same: the same pixels, in more than twice
the time.
"""

import ctypes
import functools
import platform
import threading
from pathlib import Path

import numpy as np

from .library import open_library

LIBRARY = Path(__file__).with_name("_pixels")
ARGUMENTS = {  # as in pixels.h
    "jpeg_decode": "bniiiiippn",
    "resize_bilinear": "pniipiiiipn",
    "jitter": "pidddp",
    "jpeg_cut": "bniiiiipiiiidddpn",
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The functions of `pixels.h`; None where they were not compiled, or where the processor cannot run them."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    return open_library(LIBRARY, ARGUMENTS, "JPEGs are decoded whole, in twice the time")


class Memory(threading.local):
    """Memory that a thread uses again and again: fresh pages would cost a quarter of the decoding itself."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self.address = 0

    def at_least(self, size: int) -> np.ndarray:
        """uint8, of that size or larger, at `address`; what was in it may be gone."""
        if size > self._bytes.size:
            self._bytes = np.empty(size, np.uint8)
            self.address = self._bytes.ctypes.data
        return self._bytes


scratch = Memory()


def scratch_size(width: int, new_width: int) -> int:
    """The bytes that `resize.c` works in."""
    return 40 * (new_width + 8) + 3 * width + 16

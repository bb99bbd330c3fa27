"""The compiled part of the data path (`jpeg.c`, `resize.c`, `jitter.c` and `cut.c`), and the memory its callers work in.

Installing the package compiles it where there is a compiler. Without it, or on a processor that it was not
written for, OpenCV does the same: the same pixels, in more than twice the time.
"""

import ctypes
import functools
import logging
import platform
import sysconfig
import threading
from pathlib import Path

import numpy as np

LIBRARY = Path(__file__).with_name("_pixels" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so"))
ARGUMENTS = {  # as in pixels.h: p pointer, n size, i int, d double, b bytes
    "jpeg_decode": "bniiiiippn",
    "resize_bilinear": "pniipiiiipn",
    "jitter": "pidddp",
    "jpeg_cut": "bniiiiipiiiidddpn",
}

logger = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The functions, which let other threads run meanwhile; None where there are none that this processor can run."""
    try:
        compiled = ctypes.CDLL(str(LIBRARY))
    except OSError:
        if platform.machine() in ("x86_64", "AMD64"):
            logger.warning("JPEGs are decoded whole, in twice the time: `pip install -e .`, with a C compiler, mends it")
        return None
    if not compiled.is_supported():
        return None
    types = {"p": ctypes.c_void_p, "n": ctypes.c_ssize_t, "i": ctypes.c_int, "d": ctypes.c_double, "b": ctypes.c_char_p}
    for name, arguments in ARGUMENTS.items():
        getattr(compiled, name).argtypes = [types[letter] for letter in arguments]
    return compiled


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

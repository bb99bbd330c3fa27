"""Compiled JPEG decoding, resizing and colour jitter, in half the time of OpenCV and with bit-identical pixels.

Every function either writes its result, or reports that it does not support the call; the caller then uses OpenCV. The C code
(`jpeg.c`, `crop_resize.c`, `jitter.c`) needs an x86-64 processor with AVX2.
"""

import ctypes
import functools
import platform
import threading
from pathlib import Path

import numpy as np

from .bindings import load_library

LIBRARY = Path(__file__).with_name("_pixels")
HEADER = Path(__file__).with_name("pixels.h")
MAX_SIDE = (1 << 31) - 1  # of an image before and after resizing
MAX_PIXELS = 1 << 28  # in a resized image, because the C code computes offsets as 32-bit integers


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the functions of `pixels.h`; None if they are not compiled or this processor cannot run them."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    return load_library(LIBRARY, HEADER, "JPEG files are decoded in full, in twice the time")


class ThreadBuffer(threading.local):
    """Memory that a thread reuses for every image; newly allocated pages would make decoding a quarter slower."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self.address = 0

    def reserve(self, size: int) -> np.ndarray:
        """Return an array of at least `size` bytes and set `address` to its address; earlier content may be lost."""
        if size > self._bytes.size:
            self._bytes = np.empty(size, np.uint8)
            self.address = self._bytes.ctypes.data
        return self._bytes


_scratch = ThreadBuffer()
_decoded = ThreadBuffer()


def decode_jpeg(encoded: bytes, scale: int, box: tuple[int, int, int, int]) -> np.ndarray | None:
    """Decode a rectangle of a JPEG at 1 / `scale` of its size (rounded up).

    Args:
        encoded: a JPEG file.
        scale: 1, 2, 4 or 8.
        box: (top, left, height, width) in pixels of the scaled image.

    Returns:
        uint8 (height, width, 3), BGR, valid until this thread's next call. None if the file is damaged, the box exceeds the
        image, or the library is not available. Also None for an unsupported JPEG: supported are sequential JPEGs with 8 bits
        per sample, grey or YCbCr with full or half chroma resolution.
    """
    functions = library()
    if functions is None:
        return None
    height, width = box[2:]
    pixels = _decoded.reserve(height * width * 3 + 64)
    size = _scratch.reserve(_decode_scratch_size(encoded, height, width)).size
    declined = functions.jpeg_decode(encoded, len(encoded), scale, *box, _decoded.address, _scratch.address, size)
    return None if declined else pixels[: height * width * 3].reshape(height, width, 3)


def is_intact_jpeg(encoded: bytes, height: int, width: int) -> bool | None:
    """Return whether all data of a JPEG is there and can be decoded.

    Args:
        encoded: a JPEG file.
        height, width: in pixels.

    Returns:
        False if the file is damaged. None if that is not known: the library is not available, the headers are invalid, or the
        file is of a rare kind (arithmetic coding, lossless, hierarchical, more than eight bits).
    """
    functions = library()
    if functions is None:
        return None
    size = _scratch.reserve(30_000 + 4 * 8 * (height // 8 + 8) * (width // 8 + 8)).size
    return {0: True, 2: False}.get(functions.jpeg_verify(encoded, len(encoded), _scratch.address, size))


def jpeg_crop_resize(
    encoded: bytes,
    scale: int,
    box: tuple[int, int, int, int],
    jitter: tuple[float, float, float],
    flips: tuple[bool, bool],
    out: np.ndarray,
) -> bool:
    """Decode, resize, flip and jitter in one call, with the same pixels as the separate functions.

    Args:
        encoded, scale, box: as for `decode_jpeg`.
        jitter: weights of the pixel, its grey value and the image's mean grey value; see `apply_jitter`.
        flips: whether to flip (horizontally, vertically).
        out: uint8 (H, W, 3), contiguous, receives the image.

    Returns:
        Whether `out` was written; False in the cases where `decode_jpeg` returns None. `out` is undefined then.
    """
    functions = library()
    if functions is None:
        return False
    height, width = box[2:]
    steps = max(_decode_scratch_size(encoded, height, width), _resize_scratch_size(width, out.shape[1]))
    size = _scratch.reserve(3 * height * width + 128 + steps).size
    target = (out.ctypes.data, *out.shape[:2], *flips)
    declined = functions.jpeg_crop_resize(encoded, len(encoded), scale, *box, *target, *jitter, _scratch.address, size)
    return not declined


def resize_bilinear(pixels: np.ndarray, flips: tuple[bool, bool], out: np.ndarray) -> bool:
    """Resize an image to the size of `out`, then flip it.

    Args:
        pixels: uint8 (H, W, 3), whose rows are contiguous but may lie apart.
        flips: whether to flip (horizontally, vertically).
        out: uint8 (H', W', 3), contiguous, receives the image.

    Returns:
        Whether `out` was written.
    """
    functions = library()
    if functions is None or pixels.strides[1:] != (3, 1) or out.size > 3 * MAX_PIXELS:
        return False
    size = _scratch.reserve(_resize_scratch_size(pixels.shape[1], out.shape[1])).size
    source, target = (pixels.ctypes.data, pixels.strides[0], *pixels.shape[:2]), (out.ctypes.data, *out.shape[:2])
    return not functions.resize_bilinear(*source, *target, *flips, _scratch.address, size)


def resize_bilinear_part(
    pixels: np.ndarray,
    given: tuple[int, int],
    source_size: tuple[int, int],
    size: tuple[int, int],
    part: tuple[int, int],
    out: np.ndarray,
) -> bool:
    """Resize an image, and compute only a part of the result.

    Args:
        pixels: uint8 (H, W, 3), a rectangle of the image, which includes all pixels that the part depends on.
        given: (top, left) of this rectangle in the image.
        source_size: (height, width) of the image.
        size: (height, width) of the whole result.
        part: (top, left) of the part in the result.
        out: uint8 (H', W', 3), contiguous, receives the part.

    Returns:
        Whether `out` was written.
    """
    functions = library()
    if functions is None or pixels.strides[1:] != (3, 1) or pixels.shape[1] > MAX_PIXELS or max(*source_size, *size) > MAX_SIDE:
        return False
    scratch_size = _scratch.reserve(_resize_scratch_size(pixels.shape[1], out.shape[1])).size
    source = (pixels.ctypes.data, pixels.strides[0], *source_size, *given, *pixels.shape[:2])
    target = (out.ctypes.data, *size, *part, *out.shape[:2])
    return not functions.resize_bilinear_part(*source, *target, _scratch.address, scratch_size)


def apply_jitter(pixels: np.ndarray, jitter: tuple[float, float, float], out: np.ndarray) -> bool:
    """Map each pixel to jitter[0] * pixel + jitter[1] * its grey value + jitter[2] * the image's mean grey value.

    Args:
        pixels, out: uint8 (H, W, 3), BGR, `out` contiguous; may be the same.

    Returns:
        Whether `out` was written.
    """
    functions = library()
    if functions is None or not pixels.flags.c_contiguous:
        return False
    return not functions.jitter(pixels.ctypes.data, pixels.size // 3, *jitter, out.ctypes.data)


def _decode_scratch_size(encoded: bytes, height: int, width: int) -> int:
    """Return the number of bytes that `jpeg_decode` needs (see pixels.h)."""
    return 3 * (height + 64) * (width + 64) + len(encoded) + 200_000


def _resize_scratch_size(width: int, new_width: int) -> int:
    """Return the number of bytes that `resize_bilinear` needs (see pixels.h)."""
    return 40 * (new_width + 8) + 3 * width + 16

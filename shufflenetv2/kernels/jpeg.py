"""A part of a JPEG, decoded by `jpeg.c`; and made a training image of by `cut.c`."""

import numpy as np

from .pixels import Memory, library, scratch, scratch_size

SCALES = (1, 2, 4, 8)

_pixels = Memory()


def decode(encoded: bytes, scale: int, top: int, left: int, height: int, width: int) -> np.ndarray | None:
    """Some rows and columns of the image at 1 / scale of its size, rounded up.

    Args:
        encoded: a JPEG file.
        scale: one of SCALES.

    Returns:
        uint8 (height, width, 3), BGR, valid until this thread's next call, the same as libjpeg-turbo's; or None
        for what is left to a library: damaged files, parts outside of the image, and all but sequential JPEGs in
        grey, or in three colours of which two may have half the width and half the height. None, too, where
        nothing is compiled.
    """
    compiled = library()
    if compiled is None:
        return None
    pixels = _pixels.at_least(height * width * 3 + 64)
    size = scratch.at_least(_scratch_size(encoded, height, width)).size
    declined = compiled.jpeg_decode(
        encoded, len(encoded), scale, top, left, height, width, _pixels.address, scratch.address, size
    )
    return None if declined else pixels[: height * width * 3].reshape(height, width, 3)


def cut(
    encoded: bytes,
    scale: int,
    part: tuple[int, int, int, int],
    jitter: tuple[float, float, float],
    mirrored: bool,
    upside_down: bool,
    out: np.ndarray,
) -> bool:
    """`decode`, `resize` and `jitter` in one, the same pixels; `part` is (top, left, height, width).

    Args:
        out: uint8 (H, W, 3), contiguous, where to write.

    Returns:
        False for what `decode` leaves to a library; what is in `out` means nothing then.
    """
    compiled = library()
    if compiled is None:
        return False
    height, width = part[2:]
    steps = max(_scratch_size(encoded, height, width), scratch_size(width, out.shape[1]))
    size = scratch.at_least(3 * height * width + 128 + steps).size
    to = (out.ctypes.data, *out.shape[:2], mirrored, upside_down)
    return not compiled.jpeg_cut(encoded, len(encoded), scale, *part, *to, *jitter, scratch.address, size)


def _scratch_size(encoded: bytes, height: int, width: int) -> int:
    """The bytes that `jpeg.c` works in."""
    return 3 * (height + 64) * (width + 64) + len(encoded) + 200_000

"""A PNG file with incomplete data is refused by name, whichever library decodes it, and gets no memory that it claims."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest

from shufflenetv2.data import ImageError
from shufflenetv2.data.headers import ADAM7
from shufflenetv2.data.images import open_encoded
from tests.mutation import repair_png
from tests.support import photograph

WIDTH, HEIGHT = 61, 47
MODES = ("RGB", "RGBA", "L", "LA", "P", "1")


def png(mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    photograph(WIDTH, HEIGHT, seed=0).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def with_size(encoded: bytes, width: int, height: int) -> bytes:
    """Return the file with another size in its header, and right checksums."""
    return repair_png(encoded[:16] + struct.pack(">II", width, height) + encoded[24:])


def interlaced(grey: np.ndarray) -> bytes:
    """Return an interlaced PNG file, without the chunk of its end, so that Pillow decodes it and not OpenCV."""
    rows = b""
    for left, top, across, down in ADAM7:
        part = grey[top::down, left::across]
        rows += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    header = struct.pack(">IIBBBBB", *grey.shape[::-1], 8, 0, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)))
    return repair_png(
        b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(data)) + kind + data + bytes(4) for kind, data in chunks)
    )


def decode(encoded: bytes) -> np.ndarray:
    image = open_encoded("image.png", encoded)
    return image.crop(0, 0, image.height, image.width)


@pytest.mark.parametrize("mode", MODES)
def test_a_header_that_claims_more_than_the_data_is_refused(mode: str) -> None:
    for width, height in ((WIDTH, HEIGHT + 1), (WIDTH, 2 * HEIGHT), (2 * WIDTH, HEIGHT), (HEIGHT, WIDTH + 30)):
        with pytest.raises(ImageError, match=r"^image\.png is (damaged|not a readable image)"):
            decode(with_size(png(mode), width, height))


@pytest.mark.parametrize("mode", MODES)
def test_a_header_that_claims_fewer_rows_gives_those_rows(mode: str) -> None:
    assert np.array_equal(decode(with_size(png(mode), WIDTH, 20)), decode(png(mode))[:20])


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (4, 4), (13, 9)])
def test_a_file_without_its_end_has_its_pixels_if_all_are_there(size: tuple[int, int]) -> None:
    grey = np.asarray(photograph(*size, seed=0).convert("L"))
    assert np.array_equal(decode(interlaced(grey))[:, :, 0], grey)
    with pytest.raises(ImageError, match=r"image\.png is damaged"):
        decode(with_size(interlaced(grey), size[0], size[1] + 3))
    for mode in MODES:
        assert np.array_equal(decode(png(mode)[:-5]), decode(png(mode)))
        with pytest.raises(ImageError, match=r"image\.png is damaged"):
            decode(png(mode)[:-40])


def test_a_chunk_that_claims_more_than_the_file_is_not_allocated() -> None:
    """OpenCV would allocate 4 GiB for it."""
    encoded = png()
    at = encoded.index(b"IDAT")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decode(encoded[: at - 4] + struct.pack(">I", 2**32 - 20) + encoded[at:])
    for cut in (20, 30, at - 4, at + 1):
        with pytest.raises(ImageError, match=r"image\.png is damaged"):
            decode(encoded[:cut])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024

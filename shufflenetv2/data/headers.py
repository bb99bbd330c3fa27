"""Read the size of an image from the header of its file, before its pixels are decoded.

A file of a few kB can claim, or hold, so many pixels that they would fill the memory.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

import PIL.Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# (first column, first row, distance of columns, distance of rows) of the pixels of each pass of an interlaced PNG
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
SUN_RASTER = b"\x59\xa6\x6a\x95"
# Formats that OpenCV reads and Pillow does not: portable arbitrary map and Radiance HDR
PAM = re.compile(rb"P7\n(?=[^\0]*?^WIDTH (?P<width>\d+))(?=[^\0]*?^HEIGHT (?P<height>\d+))", re.MULTILINE)
HDR = re.compile(rb"#\?.*?\n\n[-+]Y (?P<height>\d+) [-+]X (?P<width>\d+)", re.DOTALL)

ISPE = re.compile(rb"ispe....(.{8})", re.DOTALL)  # a box with the size of an image in an AVIF file

# JPEG markers (ITU-T T.81, table B.1)
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL_FRAMES = frozenset({0xC0, 0xC1})
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = 0xD8, 0xD9, 0xDA


class JpegFrame(NamedTuple):
    """The frame header of a JPEG file.

    Attributes:
        height, width: in pixels.
        is_supported: whether the frame is sequential, with 8 bits per sample, and one or three components.
        has_end: whether the marker of the end of the image follows. A truncated file lacks it.
    """

    height: int
    width: int
    is_supported: bool
    has_end: bool


def image_size(encoded: bytes) -> tuple[int, int] | None:
    """Return (height, width) that the header of an image file states; None if the format is not known."""
    if encoded.startswith(b"\xff\xd8"):
        frame = jpeg_frame(encoded)
        return frame and (frame.height, frame.width)
    if encoded.startswith(PNG_SIGNATURE) and encoded[12:16] == b"IHDR":
        return int.from_bytes(encoded[20:24], "big"), int.from_bytes(encoded[16:20], "big")
    if encoded.startswith(SUN_RASTER):
        return int.from_bytes(encoded[8:12], "big"), int.from_bytes(encoded[4:8], "big")
    if match := PAM.match(encoded[:4096]) or HDR.match(encoded[:4096]):
        return int(match["height"]), int(match["width"])
    try:
        with PIL.Image.open(BytesIO(encoded)) as image:
            return image.height, image.width
    except PIL.Image.DecompressionBombError:
        raise
    except Exception:  # Pillow's decoders raise errors of many types for files of other formats
        return avif_size(encoded)


def avif_size(encoded: bytes) -> tuple[int, int] | None:
    """Return (height, width) of an AVIF file, which Pillow reads since version 11.3; None for any other file."""
    if encoded[4:12] not in (b"ftypavif", b"ftypavis"):
        return None
    sizes = [struct.unpack(">II", match[1])[::-1] for match in ISPE.finditer(encoded[:4096])]
    return max(sizes, key=lambda size: int(size[0] * size[1]), default=None)  # of the image and its tiles


def png_chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each chunk of a PNG file up to the last one, where its data begins, and where it should end."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(encoded):
        kind, start = encoded[at + 4 : at + 8], at + 8
        at = start + int.from_bytes(encoded[at : at + 4], "big") + 4
        yield kind, start, at - 4
        if kind == b"IEND":
            break


def has_whole_chunks(encoded: bytes) -> bool:
    """Return whether each chunk of a PNG file, up to the last one, ends within the file.

    OpenCV allocates the memory for a chunk, up to 4 GiB, before it reads the chunk.
    """
    return all(end + 4 <= len(encoded) for _, _, end in png_chunks(encoded))


def has_all_rows(encoded: bytes) -> bool:
    """Return whether the data of a PNG file is enough for the size in its header; Pillow fills missing rows with black."""
    if len(encoded) < 29 or encoded[12:16] != b"IHDR":
        return False
    width, height, bits, color, interlace = map(int, struct.unpack_from(">IIBBxxB", encoded, 16))
    bits *= {2: 3, 4: 2, 6: 4}.get(color, 1)
    passes = ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = [(-(-(width - left) // across), -(-(height - top) // down)) for left, top, across, down in passes]
    # Each row begins with a byte for its filter.
    missing = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)
    stream = zlib.decompressobj()
    try:
        for kind, start, end in png_chunks(encoded):
            data = encoded[start:end] if kind == b"IDAT" else b""
            while data and missing > 0:
                missing -= len(stream.decompress(data, 2**20))
                data = stream.unconsumed_tail
    except zlib.error:
        return False
    return missing <= 0


def jpeg_frame(encoded: bytes) -> JpegFrame | None:
    """Return the frame header of a JPEG file; None if there is none before the first scan.

    The marker segments are described in ITU-T T.81, B.1 and B.2. Like libjpeg, skip bytes between them.
    """
    at = 2
    while (at := encoded.find(b"\xff", at)) >= 0 and at + 10 < len(encoded):
        marker = encoded[at + 1]
        if marker == 0xFF:  # fill byte before a marker
            at += 1
        elif marker in START_OF_FRAME:
            precision, components = encoded[at + 4], encoded[at + 9]
            height, width = (int.from_bytes(encoded[at + i : at + i + 2], "big") for i in (5, 7))
            is_supported = marker in SEQUENTIAL_FRAMES and precision == 8 and components in (1, 3) and bool(height and width)
            # Thumbnails, which have their own end, precede the frame header.
            return JpegFrame(height, width, is_supported, has_end=encoded.rfind(b"\xff\xd9", at) >= 0)
        elif marker in WITHOUT_LENGTH or marker == 0:
            at += 2
        elif marker in (START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN):
            return None
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None

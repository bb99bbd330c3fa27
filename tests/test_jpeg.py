"""The compiled JPEG decoder gives libjpeg-turbo's pixels bit for bit, and declines the files that it does not support."""

import io
import platform
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from shufflenetv2.data import images
from shufflenetv2.data.images import SequentialJpeg, open_encoded, open_image
from shufflenetv2.kernels import pixels as kernel_pixels
from shufflenetv2.kernels.pixels import decode_jpeg, library
from tests.support import photograph

SAMPLINGS = {"4:4:4": 0x111111, "4:2:2": 0x211111, "4:2:0": 0x221111, "4:4:0": 0x121111, "grey": None}
EXTRAS = {
    "plain": [],
    "optimized codes": [cv2.IMWRITE_JPEG_OPTIMIZE, 1],
    "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 3],
    "coarse quantization": [cv2.IMWRITE_JPEG_QUALITY, 8],
    "fine quantization": [cv2.IMWRITE_JPEG_QUALITY, 100],
}

compiled = pytest.mark.skipif(library() is None, reason="the C code is not compiled")


def encode(pixels: np.ndarray, *options: int, sampling: int | None = 0x221111) -> bytes:
    """Encode an image as JPEG; in grey if `sampling` is None."""
    if sampling is not None:
        options = (*options, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling)
    return cv2.imencode(".jpg", pixels if sampling else pixels[:, :, 0], options)[1].tobytes()


def whole(encoded: bytes, scale: int = 1) -> np.ndarray:
    pixels = images.decode_with_opencv(encoded, images.REDUCED[scale])
    assert pixels is not None
    return pixels


def test_the_decoder_is_compiled_on_a_machine_with_a_compiler() -> None:
    has_compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    if platform.machine() == "x86_64" and has_compiler and "avx2" in Path("/proc/cpuinfo").read_text():
        assert library() is not None, "pip install -e . compiles it"


@compiled
@pytest.mark.parametrize("scale", images.REDUCED)
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_crop_has_the_pixels_of_the_whole_image(sampling: str, extra: str, scale: int) -> None:
    rng = np.random.default_rng(scale)
    for width, height in ((203, 131), (64, 96), (17, 40), (99, 7)):
        pixels = np.asarray(photograph(width, height, seed=width))
        if extra == "fine quantization":  # noise needs the longest codes
            pixels = rng.integers(0, 256, pixels.shape, dtype=np.uint8)
        encoded = encode(pixels, *EXTRAS[extra], sampling=SAMPLINGS[sampling])
        expected = whole(encoded, scale)
        rows, columns = expected.shape[:2]
        parts = [(0, 0, rows, columns), (rows - 1, columns - 1, 1, 1), (0, columns // 2, rows, 1), (rows // 2, 0, 1, columns)]
        for _ in range(12):
            part_height, part_width = (int(n) for n in rng.integers(1, (rows + 1, columns + 1)))
            top, left = (int(n) for n in rng.integers(0, (rows - part_height + 1, columns - part_width + 1)))
            parts.append((top, left, part_height, part_width))
        for top, left, part_height, part_width in parts:
            part = decode_jpeg(encoded, scale, (top, left, part_height, part_width))
            if part is None:  # chroma of two samples per row is not interpolated: declined
                assert sampling != "grey"
                assert columns <= 4
                continue
            assert np.array_equal(part, expected[top : top + part_height, left : left + part_width])


@compiled
@pytest.mark.parametrize("interval", [1, 4, 7])
def test_restart_intervals_outside_the_crop_are_not_read(interval: int) -> None:
    encoded = encode(np.asarray(photograph(160, 128, seed=1)), cv2.IMWRITE_JPEG_RST_INTERVAL, interval)
    expected = whole(encoded)[64:96, 48:80].copy()
    damaged = bytearray(encoded)
    start = encoded.index(b"\xff\xda") + 14
    first_restart = encoded.index(b"\xff\xd0", start)
    damaged[start:first_restart] = b"\xfe" * (first_restart - start)  # no code begins with this many ones
    assert decode_jpeg(bytes(damaged), 1, (0, 0, 16, 16)) is None
    part = decode_jpeg(bytes(damaged), 1, (64, 48, 32, 32))
    assert part is not None
    assert np.array_equal(part, expected)


def with_pillow(**options: object) -> bytes:
    buffer = io.BytesIO()
    mode = options.pop("mode", "RGB")
    photograph(90, 70, seed=2).convert(str(mode)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@compiled
@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(with_pillow(progressive=True), id="progressive"),
        pytest.param(with_pillow(mode="CMYK"), id="CMYK"),
        pytest.param(with_pillow(keep_rgb=True), id="RGB"),
        pytest.param(encode(np.asarray(photograph(90, 70, seed=2)), sampling=0x411111), id="4:1:1"),
        pytest.param(encode(np.asarray(photograph(4, 70, seed=2))), id="too narrow to interpolate"),
        pytest.param(with_pillow()[:-400], id="truncated"),
        pytest.param(with_pillow().replace(b"\xff\xc4", b"\xff\xfe"), id="no Huffman tables"),
        pytest.param(with_pillow().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), id="twelve bits"),
        pytest.param(with_pillow(restart_marker_blocks=4).replace(b"\xff\xd1", b"\xff\xd2"), id="wrong restart marker"),
        pytest.param(b"", id="empty"),
        pytest.param(b"no image at all", id="text"),
        pytest.param(b"\xff\xd8\xff\xda\x00\x02", id="headers only"),
    ],
)
def test_unsupported_and_damaged_files_are_declined(encoded: bytes) -> None:
    assert decode_jpeg(encoded, 1, (0, 0, 70, 4)) is None


@compiled
@pytest.mark.parametrize(
    "part", [(0, 0, 71, 90), (0, 0, 70, 91), (-1, 0, 5, 5), (0, -1, 5, 5), (69, 0, 2, 5), (0, 0, 0, 5), (0, 0, 5, 0)]
)
def test_a_box_that_exceeds_the_image_is_declined(part: tuple[int, int, int, int]) -> None:
    assert decode_jpeg(with_pillow(), 1, part) is None


@compiled
def test_unusual_headers_are_read_like_libjpeg_reads_them() -> None:
    """16-bit quantization steps, application data, comments, padding before markers, several tables in one segment."""
    encoded = with_pillow(
        qtables=[[300 + n for n in range(64)], [260] * 64], exif=b"Exif\0\0" + bytes(70), comment=b"\xff\xd8\xff"
    )
    tables = encoded.index(b"\xff\xdb")
    assert encoded[tables + 4] >> 4 == 1
    encoded = encoded[:tables] + b"\xff\xff\xff" + encoded[tables:]
    # Pillow writes each Huffman table to a segment of its own: merge the segments.
    segments, rest = [], encoded
    while (at := rest.find(b"\xff\xc4")) >= 0:
        end = at + 2 + int.from_bytes(rest[at + 2 : at + 4], "big")
        segments.append(rest[at + 4 : end])
        rest = rest[:at] + rest[end:]
    merged = b"".join(segments)
    at = rest.index(b"\xff\xda")
    encoded = rest[:at] + b"\xff\xc4" + (len(merged) + 2).to_bytes(2, "big") + merged + rest[at:]
    assert len(segments) == 4
    part = decode_jpeg(encoded, 1, (0, 0, 70, 90))
    assert part is not None
    assert np.array_equal(part, whole(encoded))


@compiled
def test_the_subsampling_of_a_grey_image_is_ignored() -> None:
    encoded = with_pillow(mode="L")
    frame = encoded.index(b"\xff\xc0")
    encoded = encoded[: frame + 11] + b"\x22" + encoded[frame + 12 :]
    part = decode_jpeg(encoded, 1, (0, 0, 70, 90))
    assert part is not None
    assert np.array_equal(part, whole(encoded))


@compiled
def test_damaged_bytes_are_declined_or_decoded_without_a_crash_or_a_message(capfd: pytest.CaptureFixture[str]) -> None:
    """With one byte changed, the result has the right shape or is None, and the next file decodes correctly."""
    rng = np.random.default_rng(5)
    declined = same = 0
    for sampling in SAMPLINGS.values():
        encoded = encode(np.asarray(photograph(61, 47, seed=9)), cv2.IMWRITE_JPEG_RST_INTERVAL, 5, sampling=sampling)
        expected = whole(encoded)
        for at in rng.integers(0, len(encoded), 400):
            damaged = bytearray(encoded)
            damaged[at] = int(rng.integers(0, 256))
            part = decode_jpeg(bytes(damaged), 1, (0, 0, 47, 61))
            assert part is None or part.shape == (47, 61, 3)
            declined += part is None
            same += part is not None and np.array_equal(part, expected)
        part = decode_jpeg(encoded, 1, (0, 0, 47, 61))
        assert part is not None
        assert np.array_equal(part, expected)
    assert declined > 400
    assert same < 800
    assert capfd.readouterr() == ("", "")


@compiled
def test_threads_decode_concurrently(photographs: Path) -> None:
    paths = sorted(photographs.rglob("*.jpg"))
    expected = [whole(path.read_bytes()) for path in paths]
    wrong: list[Path] = []

    def check(start: int) -> None:
        for _ in range(20):
            for path, pixels in zip(paths[start:] + paths[:start], expected[start:] + expected[:start], strict=True):
                image = open_image(path)
                if not np.array_equal(image.crop(0, 0, image.height, image.width), pixels):
                    wrong.append(path)

    threads = [threading.Thread(target=check, args=(start,)) for start in (0, 5, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@compiled
def test_opencv_gives_the_same_pixels_when_the_decoder_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(np.asarray(photograph(701, 533, seed=3)))
    crops = [((13, 30, 500, 600), size) for size in (None, (64, 64), (100, 150), (200, 60))]
    image = open_encoded("image.jpg", encoded)
    assert isinstance(image, SequentialJpeg)
    expected = [image.crop(*part, min_size=size).copy() for part, size in crops]
    monkeypatch.setattr(kernel_pixels, "decode_jpeg", lambda *_: None)
    for (part, size), pixels in zip(crops, expected, strict=True):
        assert np.array_equal(image.crop(*part, min_size=size), pixels)

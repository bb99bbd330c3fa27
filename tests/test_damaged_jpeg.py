"""A JPEG file whose data is incomplete or altered is refused by name, and never decoded to grey or altered pixels."""

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from shufflenetv2.data import EvaluationTransform, ImageError, TrainTransform, read_image
from shufflenetv2.data.images import open_encoded
from shufflenetv2.kernels.pixels import decode_jpeg, is_intact_jpeg, library
from shufflenetv2.rng import generator
from tests.support import photograph

HEIGHT, WIDTH = 123, 157
KINDS: dict[str, dict[str, Any]] = {
    "4:2:0": {},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "optimized": {"optimize": True, "quality": 98},
    "restart markers": {"restart_marker_blocks": 3},
    "progressive": {"progressive": True},
    "progressive with restart markers": {"progressive": True, "restart_marker_blocks": 5, "subsampling": 0},
    "grey": {"mode": "L"},
    "progressive grey": {"mode": "L", "progressive": True},
    "CMYK": {"mode": "CMYK"},
}
compiled = pytest.mark.skipif(library() is None, reason="the C code is not compiled")


def jpeg(kind: str, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    options = dict(KINDS[kind])
    buffer = io.BytesIO()
    photograph(*size, seed=seed).convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def decode(name: str, encoded: bytes) -> np.ndarray:
    image = open_encoded(name, encoded)
    return image.crop(0, 0, image.height, image.width)


def start_of_data(encoded: bytes) -> int:
    """Return the offset of the data of the first scan."""
    at = encoded.index(b"\xff\xda")
    return at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (1, 1), (17, 33), (16, 8)])
def test_intact_files_of_every_kind_are_read(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "intact.jpg"
    for ending in (b"", b"data after the end of the image"):
        path.write_bytes(jpeg(kind, size=size) + ending)
        assert read_image(path).shape == (size[1], size[0], 3)
        if library() is not None:
            assert is_intact_jpeg(path.read_bytes(), *size[::-1]) is True


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_that_ends_in_the_right_marker_is_refused(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    encoded = jpeg(kind)
    rng = np.random.default_rng(0)
    for length in rng.integers(start_of_data(encoded) + 20, len(encoded) - 12, 20):
        with pytest.raises(ImageError, match=r"^cut\.jpg is damaged: its data is incomplete or altered") as caught:
            decode("cut.jpg", encoded[:length] + b"\xff\xd9")
        assert caught.value.kind == "damaged"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_without_an_end_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ([], [None]):  # with and without the compiled code
        if module:
            monkeypatch.setattr("shufflenetv2.data.images.compiled", None)
        encoded = jpeg(kind)
        with pytest.raises(ImageError, match=r"^cut\.jpg is damaged"):
            open_encoded("cut.jpg", encoded[: (start_of_data(encoded) + len(encoded)) // 2])


@compiled
@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "grey", "restart markers"])
def test_a_header_that_claims_a_larger_size_is_refused(kind: str) -> None:
    encoded = bytearray(jpeg(kind))
    at = encoded.index(b"\xff\xc2" if kind == "progressive" else b"\xff\xc0") + 5
    encoded[at : at + 4] = struct.pack(">HH", 2 * HEIGHT, WIDTH)
    with pytest.raises(ImageError, match="is damaged"):
        decode("claim.jpg", bytes(encoded))


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_all_damage_of_which_libjpeg_warns_is_refused(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes are altered at random. What libjpeg finds no fault with may be read."""
    encoded, rng = jpeg(kind), np.random.default_rng(1)
    start, warned = start_of_data(encoded), 0
    for _ in range(150):
        damaged = bytearray(encoded)
        damaged[int(rng.integers(start, len(encoded) - 2))] = int(rng.integers(0, 256))
        capfd.readouterr()
        cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR)
        if any("extraneous" not in line for line in capfd.readouterr().err.splitlines()):
            warned += 1
            with pytest.raises(ImageError, match="is damaged"):
                decode("altered.jpg", bytes(damaged))
    assert warned > 3


@compiled
def test_altered_headers_are_declined_or_give_opencvs_pixels() -> None:
    """With absurd tables libjpeg's results depend on the size of its variables; such a file is not decoded here."""
    rng = np.random.default_rng(2)
    originals = [jpeg(kind, size=(40, 32)) for kind in ("4:2:0", "4:4:4", "grey")]
    accepted = 0
    for trial in range(1500):
        original = originals[trial % len(originals)]
        encoded = bytearray(original)
        for at in rng.integers(20, start_of_data(original), 2):
            encoded[at] = int(rng.integers(0, 256))
        scale = (1, 2, 4, 8)[trial % 4]
        part = decode_jpeg(bytes(encoded), scale, (0, 0, 32 // scale, 40 // scale))
        if part is None:
            continue
        flag = {
            1: cv2.IMREAD_COLOR,
            2: cv2.IMREAD_REDUCED_COLOR_2,
            4: cv2.IMREAD_REDUCED_COLOR_4,
            8: cv2.IMREAD_REDUCED_COLOR_8,
        }
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag[scale] | cv2.IMREAD_IGNORE_ORIENTATION)
        assert pixels is not None
        assert np.array_equal(part, pixels[: 32 // scale, : 40 // scale])
        accepted += 1
    assert accepted > 300


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_a_header_that_claims_a_smaller_size_is_refused(kind: str) -> None:
    encoded = jpeg(kind)
    at = min(encoded.find(marker) for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2") if marker in encoded) + 5
    for height, width in ((HEIGHT - 40, WIDTH), (17, WIDTH), (HEIGHT, WIDTH - 40), (HEIGHT, 17), (HEIGHT // 2, WIDTH // 2)):
        with pytest.raises(ImageError, match=r"small\.jpg is damaged"):
            decode("small.jpg", encoded[:at] + struct.pack(">HH", height, width) + encoded[at + 4 :])


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_padding_before_the_end_of_the_image_is_no_damage(kind: str) -> None:
    encoded = jpeg(kind)
    expected = decode("regular.jpg", encoded).copy()
    for padding in (b"\0" * 3000, b"\xff" * 9, b"a few bytes", b"\xff\xd0"):
        assert np.array_equal(decode("padded.jpg", encoded[:-2] + padding + encoded[-2:]), expected)


@compiled
def test_a_progressive_file_that_lacks_its_last_scans_is_refused() -> None:
    encoded = jpeg("progressive")
    last = encoded.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="is damaged"):
        open_encoded("scans.jpg", encoded[:last] + b"\xff\xd9")


@compiled
def test_the_transforms_of_training_and_validation_refuse_damage_in_their_part() -> None:
    encoded = jpeg("4:2:0")
    image = open_encoded("cut.jpg", encoded[: (start_of_data(encoded) + len(encoded)) // 2] + b"\xff\xd9")
    out = np.empty((64, 64, 3), np.uint8)
    with pytest.raises(ImageError, match=r"cut\.jpg is damaged"):
        EvaluationTransform(64, 72)(image, out)
    with pytest.raises(ImageError, match=r"cut\.jpg is damaged"):
        TrainTransform(64, scale=(1.0, 1.0))(image, out, generator(0, 99, 0))

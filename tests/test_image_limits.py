"""The memory that an image takes is limited by its header, and only the needed part of a resized image is computed."""

import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from shufflenetv2.config import MAX_IMAGE_PIXELS
from shufflenetv2.data import DecodedImage, EvaluationTransform, ImageError, TrainTransform, limit_pixels, read_image, resize
from shufflenetv2.data.headers import avif_size
from shufflenetv2.data.images import open_encoded, open_image
from shufflenetv2.data.resize import INTERPOLATIONS, Part, needed_box, resize_part
from shufflenetv2.kernels.pixels import library
from shufflenetv2.rng import generator
from tests.models import write_model
from tests.support import Run, photograph

Image.init()
MEBIBYTE = 2**20


@pytest.fixture(autouse=True)
def restore_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    yield
    limit_pixels(MAX_IMAGE_PIXELS)


@pytest.fixture
def growth() -> Callable[[], float]:
    """Return a function that gives the growth of the largest memory use of this process, in MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return lambda: (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


# ---- parts of resized images


@pytest.mark.parametrize(
    "is_compiled", [pytest.param(True, marks=pytest.mark.skipif(library() is None, reason="not compiled")), False]
)
def test_a_part_of_a_resized_image_has_the_pixels_of_the_whole(is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_compiled:
        monkeypatch.setattr(resize, "compiled", None)
    monkeypatch.setattr(resize, "MAX_PLAIN_PIXELS", 0)  # compute parts alone, even of small images
    rng = np.random.default_rng(0)
    for trial in range(300):
        height, width, new_height, new_width = (int(n) for n in rng.integers(1, 150, 4))
        if trial % 10 == 0:  # long and thin
            height, width, new_height = 1, int(rng.integers(1, 3000)), int(rng.integers(1, 48))
            new_width = new_height * width
        if trial % 10 == 1:  # OpenCV has special code for a factor of 2
            height, width = 2 * new_height, 2 * new_width
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        part_height, part_width = (int(rng.integers(1, min(side, 40) + 1)) for side in (new_height, new_width))
        top, left = int(rng.integers(0, new_height - part_height + 1)), int(rng.integers(0, new_width - part_width + 1))
        part = Part((new_height, new_width), top, left, part_height, part_width)
        for name in ("bilinear", "nearest", list(INTERPOLATIONS)[trial % len(INTERPOLATIONS)]):
            whole = cv2.resize(pixels, (new_width, new_height), interpolation=INTERPOLATIONS[name])
            first, second, rows, columns = needed_box((height, width), part, name)
            given = pixels[first : first + rows, second : second + columns]
            result = resize_part(given, (first, second), (height, width), part, name)
            assert np.array_equal(result, whole[top : top + part_height, left : left + part_width]), (name, trial)


@pytest.mark.parametrize("views", [1, 10])
def test_validation_of_a_long_and_thin_image_needs_little_memory(
    views: int, growth: Callable[[], float], tmp_path: Path
) -> None:
    """Resized as a whole, the image of 65,500 pixels would take 13 GB."""
    column = np.random.default_rng(0).integers(0, 256, (65_500, 1, 3), dtype=np.uint8)
    assert cv2.imwrite(str(tmp_path / "column.png"), column)
    out = np.empty((views, 224, 224, 3), np.uint8)
    EvaluationTransform(views=views)(open_image(tmp_path / "column.png"), out if views > 1 else out[0])
    assert growth() < 256
    # The crop covers less than one pixel of the column, and is interpolated between the two in the middle.
    pair = column[32_749:32_751, 0]
    assert ((pair.min(axis=0) <= out[0]) & (out[0] <= pair.max(axis=0))).all()
    assert (out[0] == out[0][:, :1]).all()


@pytest.mark.parametrize("crop_mode", ["rrc", "rkrc", "rkrr"])
def test_training_with_a_long_and_thin_image_needs_little_memory(crop_mode: str, growth: Callable[[], float]) -> None:
    image = DecodedImage(np.zeros((1, 65_500, 3), np.uint8))
    out = np.empty((224, 224, 3), np.uint8)
    for key in range(4):
        TrainTransform(crop_mode=crop_mode)(image, out, generator(0, 99, key))
    assert growth() < 256


def test_an_image_whose_resized_form_would_be_too_large_is_refused() -> None:
    image = DecodedImage(np.zeros((1, 65_500, 3), np.uint8), "row.png")
    with pytest.raises(ImageError, match=r"^row\.png is too long and thin: 65,500 x 1 pixels would be resized to") as caught:
        EvaluationTransform(interpolation="bicubic")(image, np.empty((224, 224, 3), np.uint8))
    assert caught.value.kind == "too large"


# ---- the limit of pixels


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def jpeg_with_size(width: int, height: int) -> bytes:
    buffer = BytesIO()
    photograph(40, 30, seed=0).save(buffer, "JPEG")
    encoded = buffer.getvalue()
    at = encoded.index(b"\xff\xc0") + 5
    return encoded[:at] + struct.pack(">HH", height, width) + encoded[at + 4 :]


@pytest.mark.parametrize(
    ("encoded", "size"),
    [
        (png_header(30_000, 30_000), "30,000 x 30,000"),
        (jpeg_with_size(65_500, 65_500), "65,500 x 65,500"),
        (b"BM" + struct.pack("<IIIIiiHHIIiiII", 10**6, 0, 54, 40, 60_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0), ""),
        (b"P6\n60000 50000\n255\n", ""),
        (struct.pack(">8I", 0x59A66A95, 60_000, 50_000, 24, 0, 2, 0, 0), "60,000 x 50,000"),  # Sun raster
        (b"P7\nWIDTH 60000\nHEIGHT 50000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n", "60,000 x 50,000"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 50000 +X 60000\n", "60,000 x 50,000"),
    ],
)
def test_a_claim_of_too_many_pixels_is_refused_before_they_are_allocated(
    encoded: bytes, size: str, growth: Callable[[], float]
) -> None:
    with pytest.raises(ImageError, match=rf"^bomb is too large: .*{size}") as caught:
        open_encoded("bomb", encoded + bytes(1000))
    assert caught.value.kind == "too large"
    assert "\n" not in str(caught.value)
    assert growth() < 64


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif", "ppm", "jp2", "tga", "pcx", "sgi"])
def test_the_limit_holds_for_every_format(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    photograph(40, 32, seed=0).save(path)
    limit_pixels(40 * 32)
    assert read_image(path).shape == (32, 40, 3)
    limit_pixels(40 * 32 - 1)
    with pytest.raises(ImageError, match=r"40 x 32 pixels, and `max_image_pixels` is 1,279; raise the limit"):
        open_image(path)


@pytest.mark.skipif("AVIF" not in Image.SAVE, reason="Pillow does not write AVIF")
def test_the_size_of_an_avif_file_is_known_without_pillow() -> None:
    for mode in ("RGB", "RGBA"):
        buffer = BytesIO()
        photograph(40, 32, seed=0).convert(mode).save(buffer, "AVIF")
        assert avif_size(buffer.getvalue()) == (32, 40)
    assert avif_size(png_header(40, 32)) is None


def test_commands_name_the_option_of_the_limit(command: Run) -> None:
    Path("images/cat").mkdir(parents=True)
    photograph(80, 60, seed=0).save("images/cat/large.jpg")
    photograph(40, 40, seed=0).save("images/cat/small.png")
    write_model(Path("model.pkl"))
    limited = ["--max-image-pixels", "4000"]
    status, output, errors = command("predict", "model.pkl", "images/cat/large.jpg", "images/cat/small.png", *limited)
    assert (status, output.count("\n")) == (0, 1)
    assert "large.jpg is too large: 80 x 60 pixels, and --max-image-pixels is 4,000; raise the limit" in errors
    status, output, errors = command("prepare", "images", "shrunk", "--short-side", "32", *limited)
    assert status == 0
    assert "1 unreadable" in output
    assert "--max-image-pixels is 4,000" in errors

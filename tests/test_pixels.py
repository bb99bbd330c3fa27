"""Compiled resizing, flips, colour jitter and crops give pixels that are bit-identical to OpenCV's."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from shufflenetv2.data.images import CropResize, Image, ImageError, SequentialJpeg, open_encoded
from shufflenetv2.data.jitter import UNCHANGED, Jitter, draw_jitter
from shufflenetv2.data.resize import INTERPOLATIONS, resize
from shufflenetv2.kernels.bindings import load_library, parse_prototypes
from shufflenetv2.kernels.pixels import HEADER as HEADER_FILE
from shufflenetv2.kernels.pixels import LIBRARY, library
from tests.support import ONE_THREAD, ROOT, photograph

GUARD = 64  # number of bytes after a result that are checked to be unchanged

compiled = pytest.mark.skipif(library() is None, reason="the C code is not compiled")


def guarded(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return memory for an image, and the GUARD bytes after that memory, which all have the value 77."""
    memory = np.full(3 * height * width + GUARD, 77, np.uint8)
    return memory[:-GUARD].reshape(height, width, 3), memory[-GUARD:]


def random_pixels(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw noise; in 30 % of the calls only of the values 0 and 255, which have the largest differences."""
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pixels if rng.random() < 0.7 else (pixels >> 7) * np.uint8(255)


@compiled
@pytest.mark.parametrize("largest", [9, 60, 500])
def test_bilinear_resizing_and_flips_equal_opencv(largest: int) -> None:
    rng = np.random.default_rng(largest)
    for trial in range(150):
        height, width, new_height, new_width = (int(n) for n in rng.integers(1, largest + 1, 4))
        if trial % 10 == 0:  # OpenCV has special code for a factor of 2 and for equal sizes
            height, width = 2 * new_height, 2 * new_width
        if trial % 10 == 1:
            height, width = new_height, new_width
        top, left = (int(n) for n in rng.integers(0, 9, 2))
        pixels = random_pixels(rng, height + top, width + left)[top:, left:]  # ends with the last byte of the memory
        hflip, vflip = bool(trial & 1), bool(trial & 2)
        out, guard = guarded(new_height, new_width)
        assert resize(pixels, new_height, new_width, hflip=hflip, vflip=vflip, out=out) is out
        expected = cv2.resize(pixels, (new_width, new_height))[:: -1 if vflip else 1, :: -1 if hflip else 1]
        assert np.array_equal(out, expected)
        assert (guard == 77).all()


def test_resizing_accepts_every_interpolation_and_memory_layout() -> None:
    pixels = random_pixels(np.random.default_rng(0), 50, 41)
    for name, flag in INTERPOLATIONS.items():
        expected = cv2.resize(pixels, (33, 27), interpolation=flag)
        for layout in (pixels, np.asfortranarray(pixels), pixels[::-1].copy()[::-1], pixels[:, :, ::-1].copy()[:, :, ::-1]):
            assert np.array_equal(resize(layout, 27, 33, name), expected)
            assert np.array_equal(resize(layout, 27, 33, name, hflip=True), expected[:, ::-1])
            assert np.array_equal(resize(layout, 27, 33, name, vflip=True), expected[::-1])
            assert np.array_equal(resize(layout, 27, 33, name, hflip=True, vflip=True), expected[::-1, ::-1])


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.4), (0.0, 0.3, 0.0), (1.0, 1.0, 1.0), (4.0, 5.0, 6.0)])
def test_jitter_equals_opencvs_transform(strengths: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(1)
    for trial in range(150):
        height, width = (224, 224) if trial % 15 == 0 else (int(n) for n in rng.integers(1, 40, 2))
        pixels = random_pixels(rng, height, width)
        jitter = draw_jitter(strengths, rng)
        expected = cv2.transform(pixels, jitter.matrix(cv2.mean(pixels)))
        out, guard = guarded(height, width)
        assert jitter(pixels, out) is out
        assert np.array_equal(out, expected)
        assert (guard == 77).all()
        assert np.array_equal(jitter(np.asfortranarray(pixels)), expected)


def test_jitter_with_large_coefficients_equals_opencvs_transform() -> None:
    pixels = random_pixels(np.random.default_rng(2), 30, 30)
    for jitter in (Jitter(40.0, 0.0, 0.0), Jitter(1.0, -35.0, 30.0), Jitter(0.5, 0.5, 40.0), Jitter(20.0, 20.0, -32.0)):
        assert np.array_equal(jitter(pixels), cv2.transform(pixels, jitter.matrix(cv2.mean(pixels))))
    assert np.array_equal(UNCHANGED(pixels), pixels)


def random_crops(rng: np.random.Generator, height: int, width: int) -> list[CropResize]:
    """Draw crops of all sizes, from single pixels to rectangles so large that they are decoded at reduced size."""
    result = []
    for trial in range(60):
        part_height, part_width = (int(n) for n in rng.integers(1, (height + 1, width + 1)))
        top, left = (int(n) for n in rng.integers(0, (height - part_height + 1, width - part_width + 1)))
        jitter = draw_jitter((0.4, 0.4, 0.4), rng) if trial % 3 else UNCHANGED
        interpolation = "bicubic" if trial % 10 == 9 else "bilinear"
        new_height, new_width = (int(side) for side in rng.choice([7, 32, 61, 224], 2))
        result.append(
            CropResize(
                top,
                left,
                part_height,
                part_width,
                (new_height, new_width),
                interpolation,
                bool(trial & 1),
                bool(trial & 2),
                jitter,
            )
        )
    return result


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_crop_resize_of_a_jpeg_equals_its_separate_steps(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    photograph(403, 311, seed=6).convert(mode).save(path, quality=90)
    image = open_encoded(path.name, path.read_bytes())
    assert isinstance(image, SequentialJpeg)
    for crop in random_crops(np.random.default_rng(3), 311, 403):
        out, guard = guarded(*crop.size)
        assert image.crop_resize(crop, out) is out
        assert np.array_equal(out, Image.crop_resize(image, crop))
        assert np.array_equal(image.crop_resize(crop), out)
        assert (guard == 77).all()


@compiled
def test_crop_resize_of_a_jpeg_does_not_use_the_separate_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    photograph(403, 311, seed=6).save(path)
    image = open_encoded(path.name, path.read_bytes())
    monkeypatch.setattr(Image, "crop_resize", None)
    assert image.crop_resize(CropResize(5, 7, 300, 300, (64, 48))).shape == (64, 48, 3)


@compiled
def test_compiled_resizing_and_jitter_do_not_call_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, jitter = random_pixels(np.random.default_rng(4), 40, 50), Jitter(0.8, 0.1, 0.1)
    expected = jitter(resize(pixels, 20, 30, hflip=True, vflip=True))
    for name in ("resize", "flip", "mean", "transform"):
        monkeypatch.setattr(cv2, name, None)
    assert np.array_equal(jitter(resize(pixels, 20, 30, hflip=True, vflip=True)), expected)


def test_concurrent_threads_get_the_same_crops_as_a_single_thread(photographs: Path) -> None:
    images = [open_encoded(path.name, path.read_bytes()) for path in sorted(photographs.rglob("*.jpg"))]
    crop = CropResize(3, 4, 60, 70, (48, 48), hflip=True, jitter=Jitter(0.8, 0.1, 0.1))
    expected = [image.crop_resize(crop) for image in images]

    def are_equal(start: int) -> bool:
        indices = [(start + n) % len(images) for n in range(20 * len(images))]
        return all(np.array_equal(images[index].crop_resize(crop), expected[index]) for index in indices)

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(are_equal, (0, 5, 11)))


def test_crop_resize_falls_back_to_opencv_and_reports_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    photograph(90, 70, seed=7).save(path)
    whole = path.read_bytes()
    crop = CropResize(3, 4, 50, 60, (32, 40), hflip=True, jitter=Jitter(0.8, 0.1, 0.1))
    photograph(3, 70, seed=7).save(path)  # chroma of two columns, which the C code declines
    narrow = open_encoded("narrow.jpg", path.read_bytes())
    narrow_crop = crop._replace(left=0, width=3)
    assert np.array_equal(narrow.crop_resize(narrow_crop), Image.crop_resize(narrow, narrow_crop))
    start = whole.index(b"\xff\xda")
    with pytest.raises(ImageError, match=r"headers\.jpg is not a readable image"):
        open_encoded("headers.jpg", whole[:start] + b"\xff\xd9").crop_resize(crop)


# A program that prints a checksum of the pixels that the transforms make of the images in PHOTOGRAPHS
PIXELS_PROGRAM = """
import hashlib
import numpy as np
from pathlib import Path
from shufflenetv2.data import EvaluationTransform, FolderDataset, TrainTransform
from shufflenetv2.rng import generator

images, digest = FolderDataset(Path(PHOTOGRAPHS)), hashlib.sha256()
for index in range(len(images)):
    for transform in (TrainTransform(48), TrainTransform(20, hflip=0.0, vflip=1.0), EvaluationTransform(48, 56)):
        out = np.empty((transform.size, transform.size, 3), np.uint8)
        transform(images.image(index), out, generator(0, 99, index))
        digest.update(out)
print(digest.hexdigest())
"""


# A program that prints the golden losses, and the losses of training steps on the device that the command would use
LOSSES_PROGRAM = """
import torch
from shufflenetv2 import ShuffleNetV2
from shufflenetv2.engine import choose_devices, train_step
from shufflenetv2.recipe import parameter_groups
from tests.test_recipe import digit_batches, golden_losses

torch.set_num_threads(1)
print(golden_losses(torch.float32))
network = ShuffleNetV2(32, 10, "0.5x")
network.initialize_weights(torch.Generator().manual_seed(0))
model = choose_devices("cpu").place(network, training=True).train()
optimizer = torch.optim.SGD(parameter_groups(network, 4e-5), lr=0.03, momentum=0.9)
loss_function = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
print([train_step(model, *batch, loss_function, optimizer)[0].item() for batch in digit_batches(12, 16)])
"""


def run_package(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process that imports the package from `folder`."""
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_an_uncompiled_package_gives_the_same_pixels_and_logs_one_line(tmp_path: Path, photographs: Path) -> None:
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "shufflenetv2", tmp_path / "shufflenetv2", ignore=ignored)
    code = PIXELS_PROGRAM.replace("PHOTOGRAPHS", repr(str(photographs)))
    expected, uncompiled = (run_package(folder, code) for folder in (ROOT, tmp_path))
    assert (expected.returncode, uncompiled.returncode) == (0, 0), expected.stderr + uncompiled.stderr
    assert uncompiled.stdout == expected.stdout
    assert uncompiled.stderr.count("\n") == (platform.machine() == "x86_64")
    if platform.machine() == "x86_64":
        assert "pip install -e ." in uncompiled.stderr


def test_without_the_kernels_folder_pixels_and_golden_losses_are_the_same(tmp_path: Path, photographs: Path) -> None:
    ignored = shutil.ignore_patterns("kernels", "__pycache__")
    shutil.copytree(ROOT / "shufflenetv2", tmp_path / "shufflenetv2", ignore=ignored)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=ignored)
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    code = PIXELS_PROGRAM.replace("PHOTOGRAPHS", repr(str(photographs))) + LOSSES_PROGRAM
    absent = "import importlib.util\nassert not importlib.util.find_spec('shufflenetv2.kernels')\n"
    expected, plain = run_package(ROOT, code), run_package(tmp_path, absent + code)
    assert (expected.returncode, plain.returncode) == (0, 0), expected.stderr + plain.stderr
    assert plain.stdout == expected.stdout != ""


# Removes the import hook of an editable installation, which would find the missing kernels in the repository.
SITECUSTOMIZE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
"""

HEADER = """
/* Return nothing of use; int ignored(int x); stays a comment. */
int run(const float *x, ptrdiff_t count, double scale, uint8_t *bytes,
        size_t size);
int is_supported(void);
"""


def test_bindings_are_derived_from_the_header() -> None:
    assert parse_prototypes(HEADER) == {
        "run": (
            ctypes.c_int,
            [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_double, ctypes.c_void_p, ctypes.c_size_t],
        ),
        "is_supported": (ctypes.c_int, []),
    }
    with pytest.raises(KeyError, match="long"):
        parse_prototypes("int run(long count);")


@compiled
def test_a_library_that_was_built_with_another_header_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_library(LIBRARY, HEADER_FILE, "slower") is not None
    changed = tmp_path / "pixels.h"
    changed.write_text(HEADER_FILE.read_text().replace("double own", "float own"))
    assert load_library(LIBRARY, changed, "slower") is None
    assert [record.message for record in caplog.records] == [
        "slower: compile it with `pip install -e .`, which needs a C compiler"
    ]

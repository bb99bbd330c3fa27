"""A shrunk data set has the same classes and pictures, and an interrupted run of `prepare` can be continued."""

import functools
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from shufflenetv2.data import EvaluationTransform, FolderDataset
from shufflenetv2.data.images import read_image
from shufflenetv2.data.shrinking import shrink, target_names
from shufflenetv2.data.threads import map_in_threads
from shufflenetv2.data.transforms import OpencvResize
from tests.support import ONE_THREAD, ROOT, Run, photograph

COMMAND = [sys.executable, "-m", "shufflenetv2", "prepare"]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, ((a.astype(np.float64) - b) ** 2).mean())))


def files(folder: Path) -> dict[str, bytes]:
    """Return path and content of the files that are not hidden."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def all_paths(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def save(path: Path, width: int, height: int, mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph(width, height, seed=width).convert(mode).save(path, **options)
    return path


@pytest.fixture
def run(command: Run) -> Run:
    return functools.partial(command, "prepare")


@pytest.fixture
def process(tmp_path: Path) -> Run:
    """Run the command in a new process."""

    def call(*arguments: str | Path, **options: Any) -> tuple[int, str, str]:
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
        completed = subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, **options
        )
        return completed.returncode, completed.stdout, completed.stderr

    return call


# ---- the images


@pytest.mark.parametrize("size", [(200, 150), (150, 200), (97, 301), (64, 65), (333, 333), (1000, 70), (900, 700)])
@pytest.mark.parametrize("encoding", [{}, {"progressive": True}, {"subsampling": 0}])
def test_images_have_the_size_to_which_validation_resizes(
    tmp_path: Path, size: tuple[int, int], encoding: dict[str, Any]
) -> None:
    source = save(tmp_path / "src/cat/1.jpg", *size, quality=95, **encoding)
    outcome = shrink(tmp_path / "src", tmp_path / "dst", short_side=64, quality=95, workers=1)
    assert (outcome.encoded, outcome.copied, outcome.unreadable) == (int(min(size) > 64), int(min(size) <= 64), [])
    image, original = read_image(tmp_path / "dst/cat/1.jpg"), read_image(source)
    height, width = image.shape[:2]
    assert (width, height) == OpencvResize(64).target(*original.shape[:2])
    assert np.array_equal(OpencvResize(64)(image), image)  # validation does not resize again
    # Compare with a filter that averages: the bilinear filter of training aliases the noise of these images.
    expected = cv2.resize(original, (width, height), interpolation=cv2.INTER_AREA)
    assert psnr(image, expected) > 33  # limited by the chroma subsampling


def test_validation_sees_nearly_the_same_pixels(tmp_path: Path) -> None:
    """Compare on an image without noise."""
    path = tmp_path / "src/cat/1.png"
    path.parent.mkdir(parents=True)
    photograph(8, 6, seed=1).resize((500, 375), Image.Resampling.BICUBIC).save(path)
    shrink(tmp_path / "src", tmp_path / "dst", short_side=256, quality=95)
    before, after = np.empty((2, 224, 224, 3), np.uint8)
    for folder, out in (("src", before), ("dst", after)):
        EvaluationTransform(224, 256)(FolderDataset(tmp_path / folder).image(0), out)
    assert psnr(before, after) > 42


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "cmyk.jpg": ("CMYK", {}),
    "grey.jpg": ("L", {}),
    "grey.png": ("L", {}),
    "alpha.png": ("RGBA", {}),
    "palette.gif": ("P", {}),
    "sixteen.png": ("I;16", {}),
    "bits.tiff": ("1", {}),
    "lossless.webp": ("RGB", {"lossless": True}),
    "plain.bmp": ("RGB", {}),
    "sixteen.tiff": ("I;16", {}),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(150, 120), (60, 50)])  # one to shrink, one that is small enough
def test_every_kind_of_image_becomes_a_jpeg_of_the_same_picture(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    mode, options = KINDS[name]
    path = tmp_path / "src/cat" / name
    path.parent.mkdir(parents=True)
    image = photograph(*size, seed=3)
    if mode == "I;16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        image.convert(mode).save(path, **options)
    shrink(tmp_path / "src", tmp_path / "dst", short_side=64, quality=98)
    (target,) = files(tmp_path / "dst")
    assert target == f"cat/{Path(name).stem}.jpg"
    result, original = read_image(tmp_path / "dst" / target), read_image(path)
    with Image.open(tmp_path / "dst" / target) as written:
        assert written.format == "JPEG"
    expected = original
    if size[1] > 64:
        assert result.shape == (64, 80, 3)
        assert b"\xff\xdd\x00\x04\x00\x04" in (tmp_path / "dst" / target).read_bytes()  # restart markers, for crops
        expected = cv2.resize(original, (80, 64), interpolation=cv2.INTER_AREA)
    assert result.shape == expected.shape
    assert psnr(result, expected) > (22 if name == "palette.gif" else 30)  # the dithering of the palette is averaged


@pytest.mark.parametrize("progressive", [False, True])  # two decoders
def test_orientation_tags_are_ignored_as_in_training(tmp_path: Path, progressive: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for name, size in (("large", (150, 100)), ("small", (80, 60))):
        source = save(tmp_path / f"src/cat/{name}.jpg", *size, exif=exif, progressive=progressive)
        assert read_image(source).shape[:2] == size[::-1]
    shrink(tmp_path / "src", tmp_path / "dst", short_side=64, quality=95)
    large = read_image(tmp_path / "dst/cat/large.jpg")
    assert large.shape == (64, 96, 3)
    assert psnr(large, cv2.resize(read_image(tmp_path / "src/cat/large.jpg"), (96, 64), interpolation=cv2.INTER_AREA)) > 36
    with Image.open(tmp_path / "dst/cat/large.jpg") as image:
        assert 0x0112 not in image.getexif()
    assert np.array_equal(read_image(tmp_path / "dst/cat/small.jpg"), read_image(tmp_path / "src/cat/small.jpg"))


def test_small_jpegs_are_copied_byte_for_byte_with_any_suffix(tmp_path: Path) -> None:
    for number, (name, mode) in enumerate((("a.jpg", "RGB"), ("b.JPEG", "CMYK"), ("c.png", "L"), ("d.jpe", "RGB"))):
        save(tmp_path / "src/cat" / name, 64, 70 + number, mode, format="JPEG", quality=30)
    outcome = shrink(tmp_path / "src", tmp_path / "dst", short_side=64, quality=95)
    assert (outcome.copied, outcome.encoded) == (4, 0)
    assert list(files(tmp_path / "dst")) == ["cat/a.jpg", "cat/b.JPEG", "cat/c.jpg", "cat/d.jpe"]
    assert list(files(tmp_path / "dst").values()) == list(files(tmp_path / "src").values())


def test_the_quality_decides_the_size_of_the_files(tmp_path: Path) -> None:
    save(tmp_path / "src/cat/1.png", 200, 150)
    sizes = []
    for quality in (50, 95):
        shrink(tmp_path / "src", tmp_path / str(quality), short_side=100, quality=quality)
        sizes.append((tmp_path / str(quality) / "cat/1.jpg").stat().st_size)
    assert sizes[0] * 2 < sizes[1]


# ---- the folders


def test_paths_classes_and_labels_are_kept(tmp_path: Path) -> None:
    for name in ("b/1.JPG", "b/deep/er/2.jpeg", "a/3.jpg", "a/.hidden.jpg", ".cache/4.jpg", "elsewhere/5.jpg", "stray.jpg"):
        save(tmp_path / "src" / name, 70, 66)
    (tmp_path / "src/a/notes.txt").write_text("no image")
    shutil.move(tmp_path / "src/elsewhere", tmp_path / "elsewhere")
    (tmp_path / "src/c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "src/a/back").symlink_to(tmp_path / "src/a", target_is_directory=True)
    shrink(tmp_path / "src", tmp_path / "dst", short_side=64, quality=95)
    before, after = FolderDataset(tmp_path / "src"), FolderDataset(tmp_path / "dst")
    assert after.paths == before.paths == ["a/3.jpg", "b/1.JPG", "b/deep/er/2.jpeg", "c/5.jpg"]
    assert after.targets.tolist() == before.targets.tolist()
    assert list(files(tmp_path / "dst")) == after.paths


def test_a_class_without_images_is_kept(tmp_path: Path) -> None:
    """An empty class is allowed in a validation folder and refused in a training folder, as before shrinking."""
    save(tmp_path / "src/cat/1.jpg", 70, 66)
    (tmp_path / "src/dog").mkdir()
    shrink(tmp_path / "src", tmp_path / "dst", short_side=64, quality=95)
    assert len(FolderDataset(tmp_path / "dst", ["cat", "dog"])) == 1
    with pytest.raises(ValueError, match="dog holds no images"):
        FolderDataset(tmp_path / "dst")


def test_images_that_would_get_the_same_name_are_all_kept(tmp_path: Path) -> None:
    for number, name in enumerate(("a.jpg", "a.png", "a.webp", "b.PNG", "b.tiff", "c.png")):
        save(tmp_path / "src/cat" / name, 70 + number, 66)
    shrink(tmp_path / "src", tmp_path / "dst", short_side=64, quality=95)
    names = ["a.jpg", "a.png.jpg", "a.webp.jpg", "b.PNG.jpg", "b.tiff.jpg", "c.jpg"]
    assert list(files(tmp_path / "dst")) == [f"cat/{name}" for name in names]
    widths = [read_image(tmp_path / "dst/cat" / name).shape[1] for name in names]
    assert widths == [OpencvResize(64).target(66, 70 + number)[0] for number in range(6)]


@pytest.mark.parametrize(
    "paths",
    [
        ["a.jpg", "a.png", "a.png.jpg"],
        ["a.jpg", "a.png", "a.png.jpg", "a.png.jpg.jpg", "a.png.webp"],
        ["A.JPG", "a.png"],
        ["a.PNG", "a.png", "A.webp"],
        ["a.png.gif", "a.gif", "a.png", "a.jpeg"],
    ],
)
def test_target_names_are_distinct(paths: list[str]) -> None:
    names = target_names(paths)
    assert len({name.lower() for name in names}) == len(paths)
    assert all(name == path for path, name in zip(paths, names, strict=True) if path.lower().endswith((".jpg", ".jpeg")))
    assert all(name.startswith(path.split(".")[0]) for path, name in zip(paths, names, strict=True))


def test_threads_read_few_items_ahead() -> None:
    numbers = iter(range(10_000))
    results = map_in_threads(lambda number: number * 2, numbers, 2)
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    results.close()
    assert next(numbers) < 20


# ---- the command


def huge_png(width: int, height: int) -> bytes:
    """Return a small PNG file whose header claims a huge size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def test_unreadable_images_are_left_out_by_name(process: Run, run: Run, tmp_path: Path) -> None:
    good = save(tmp_path / "src/cat/good.jpg", 100, 80)
    small = save(tmp_path / "src/cat/small.jpg", 60, 50)
    for name, content in {
        "dog/bad.jpg": b"no image",
        "cat/empty.png": b"",
        "cat/cut.jpg": good.read_bytes()[:900],
        "cat/cut-small.jpg": small.read_bytes()[:700],
        "cat/huge.png": huge_png(100_000, 100_000),
        "cat/hollow.jpg": small.read_bytes().split(b"\xff\xda")[0] + b"\xff\xd9",  # a header and an end marker only
    }.items():
        (tmp_path / "src" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "src" / name).write_bytes(content)
    cv2.imwrite(str(tmp_path / "src/cat/long.png"), np.zeros((33, 66_000), np.uint8))
    (tmp_path / "src/cat/lost.jpg").symlink_to(tmp_path / "nowhere.jpg")

    status, output, errors = process("src", "dst", "--short-side", "64")
    assert status == 0, errors
    assert output == "10 images in dst: 1 encoded, 1 copied unchanged, 0 already there, 8 unreadable\n"
    assert [line.split(": skipped: ")[1].split()[0] for line in errors.splitlines()] == [
        f"src/{name}"
        for name in (
            "cat/cut-small.jpg",
            "cat/cut.jpg",
            "cat/empty.png",
            "cat/hollow.jpg",
            "cat/huge.png",
            "cat/long.png",
            "cat/lost.jpg",
            "dog/bad.jpg",
        )
    ]
    assert "src/dog/bad.jpg is not a readable image; remove it or replace it" in errors
    assert "src/cat/long.png is too long for a JPEG" in errors
    assert "src/cat/lost.jpg cannot be read: No such file" in errors
    assert list(files(tmp_path / "dst")) == ["cat/good.jpg", "cat/small.jpg"]

    # The next run encodes an image that was repaired in the meantime.
    shutil.copy(good, tmp_path / "src/dog/bad.jpg")
    assert (
        run("src", "dst", "--short-side", "64")[1]
        == "10 images in dst: 1 encoded, 0 copied unchanged, 2 already there, 7 unreadable\n"
    )


def test_a_data_set_without_readable_images_is_a_failure(run: Run, tmp_path: Path) -> None:
    (tmp_path / "src/cat").mkdir(parents=True)
    (tmp_path / "src/cat/bad.jpg").write_bytes(b"no image")
    status, _, errors = run("src", "dst", "--short-side", "64")
    assert (status, errors.count("\n")) == (1, 1)


def test_wrong_usage_is_one_line_with_status_2_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "src/cat/1.jpg", 100, 80)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare/cat").mkdir(parents=True)
    save(tmp_path / "flat/1.jpg", 100, 80)
    save(tmp_path / "other/cat/1.jpg", 100, 80)
    (tmp_path / "link").symlink_to(tmp_path / "src", target_is_directory=True)
    shrink(tmp_path / "src", tmp_path / "done", short_side=64, quality=95)
    before = all_paths(tmp_path)
    small = ["--short-side", "64"]
    for arguments, part in (
        ([], "SOURCE, DESTINATION missing"),
        (["src", "dst"], "--short-side"),
        (["src", "dst", "--short-side", "15"], "--short-side 15: must be a whole number of pixels from 16 to"),
        (["src", "dst", *small, "--quality", "101"], "--quality 101: must be a whole number from 1 to 100"),
        (["src", "dst", *small, "--workers", "0"], "--workers 0"),
        (["src", "dst", *small, "--shot-side", "64"], "--shot-side"),
        (["absent", "dst", *small], "absent is not a folder"),
        (["empty", "dst", *small], "empty holds no class folders"),
        (["flat", "dst", *small], "flat holds no class folders"),
        (["bare", "dst", *small], "bare holds no images"),
        (["src", "src", *small], "are the same folder"),
        (["src", "link", *small], "are the same folder"),
        (["src", "src/cat/small", *small], "src/cat/small lies in src"),
        (["link", "src/small", *small], "src/small lies in link"),
        (["src/cat/..", "other", *small], "other holds files that this command did not write"),
        (["src", "done", "--short-side", "65"], "with --short-side 64 --quality 95; name another folder"),
        (["other", "done", *small], f"done was made from {tmp_path / 'src'} with --short-side 64"),
    ):
        status, _, errors = run(*arguments)
        assert (status, errors.count("\n")) == (2, 1), (arguments, errors)
        assert errors.startswith("shufflenetv2 prepare: error: ")
        assert part in errors
    assert all_paths(tmp_path) == before


def test_a_full_disk_ends_the_run_with_one_line_and_no_partial_files(run: Run, tmp_path: Path) -> None:
    """Use a limit on the size of files, which is the error that a process can provoke."""
    save(tmp_path / "src/cat/large.png", 300, 200)
    arguments = ["src", "dst", "--short-side", "150"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        status, _, errors = run(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (status, errors.count("\n")) == (1, 1), errors
    assert "dst/cat/large.jpg cannot be written: File too large" in errors
    assert all_paths(tmp_path / "dst/cat") == []
    assert run(*arguments)[0] == 0
    assert all_paths(tmp_path / "dst/cat") == ["large.jpg"]


def test_help_does_not_import_torch() -> None:
    program = (
        "import sys; from shufflenetv2 import __main__\n"
        "for name in __main__.COMMANDS:\n"
        "    try: __main__.main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "assert __main__.main(['prepare', 'SRC', 'DST', '--short-side', '7']) == 2\n"
        "print({'torch', 'cv2', 'numpy'} & set(sys.modules))"
    )
    completed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert completed.stdout.splitlines()[-1] == "set()", completed.stderr


# ---- interruptions

Images = tuple[Path, dict[str, bytes]]  # a folder, and the files into which an uninterrupted run shrinks it


@pytest.fixture(scope="module")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Make a folder of 60 images, which takes long enough to interrupt."""
    folder = tmp_path_factory.mktemp("many")
    first = save(folder / "src/cat/0.png", 900, 700, compress_level=1)
    for number in range(1, 60):
        target = folder / f"src/{'cat' if number % 2 else 'dog'}/{number}.png"
        target.parent.mkdir(exist_ok=True)
        os.link(first, target)
    shrink(folder / "src", folder / "complete", short_side=300, quality=95)
    assert len(files(folder / "complete")) == 60
    return folder / "src", files(folder / "complete")


def start(source: Path, destination: Path) -> "subprocess.Popen[str]":
    """Start the command and wait until it has written three images."""
    process = subprocess.Popen(
        [*COMMAND, str(source), str(destination), "--short-side", "300", "--workers", "2"],
        cwd=ROOT,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore SIGINT
    )
    for _ in range(20_000):
        if destination.exists() and len(list(destination.rglob("*.jpg"))) >= 3:
            return process
        time.sleep(0.002)
    raise AssertionError("nothing was written")


def assert_continues(images: Images, destination: Path) -> None:
    """Check that an interrupted run left complete files only, and that the next run writes the others."""
    source, complete = images
    existing = files(destination)
    assert 3 <= len(existing) < 60
    assert all(complete[name] == content for name, content in existing.items())

    # A temporary file of a killed process, and a file that a power failure left empty.
    (destination / "cat/.0123456789abcdef.tmp").write_bytes(b"half")
    empty = min(existing)
    (destination / empty).write_bytes(b"")
    times = {name: (destination / name).stat().st_mtime_ns for name in existing if name != empty}
    outcome = shrink(source, destination, short_side=300, quality=95)
    assert (outcome.existing, outcome.encoded) == (len(existing) - 1, 61 - len(existing))
    assert files(destination) == complete
    assert not list(destination.rglob(".*.tmp"))
    assert all((destination / name).stat().st_mtime_ns == time_ns for name, time_ns in times.items())  # not written again


def test_a_run_stopped_by_ctrl_c_can_be_continued(tmp_path: Path, many_images: Images) -> None:
    process = start(many_images[0], tmp_path / "dst")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (130, "shufflenetv2 prepare: interrupted\n")
    assert_continues(many_images, tmp_path / "dst")


def test_a_killed_run_can_be_continued_but_not_while_it_lives(tmp_path: Path, many_images: Images, run: Run) -> None:
    process = start(many_images[0], tmp_path / "dst")
    process.send_signal(signal.SIGSTOP)
    status, _, errors = run(many_images[0], "dst", "--short-side", "300")
    assert (status, errors.count("\n")) == (2, 1)
    assert f"dst is in use by process {process.pid} on " in errors
    process.kill()
    assert process.communicate(timeout=100)[0] == ""
    assert_continues(many_images, tmp_path / "dst")

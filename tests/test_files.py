"""What is not a regular file of a sensible size is refused at once: it is neither waited for nor read without end."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shufflenetv2 import ShuffleNetV2, files
from shufflenetv2.data.images import ImageError, open_image
from shufflenetv2.engine.checkpoint import read_newest
from shufflenetv2.files import NotRegularFileError, TooLargeFileError, open_regular, read_regular_file
from tests.support import SHORT, Run, Train, mounted_disk, photograph

FIFO = "it is a FIFO (named pipe), not a file"
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Make a folder with a FIFO, a link to an endless device, a socket, a folder and a sparse file of 1 TB."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    with open(tmp_path / "large", "wb") as file:
        file.truncate(10**12)
    (tmp_path / "file").write_bytes(b"content")
    with socket.socket(socket.AF_UNIX) as listening:
        descriptor = os.open(tmp_path, os.O_RDONLY)  # an address of a socket has at most 107 bytes
        try:
            listening.bind(f"/proc/self/fd/{descriptor}/socket")
        finally:
            os.close(descriptor)
        yield tmp_path


@pytest.mark.parametrize(
    ("name", "error_type", "reason"),
    [
        ("fifo", NotRegularFileError, FIFO),
        ("device", NotRegularFileError, "it is a device, not a file"),
        ("socket", NotRegularFileError, "it is a socket, not a file"),
        ("folder", IsADirectoryError, "Is a directory"),
        ("large", TooLargeFileError, "it has more than 16 MiB, the limit for such a file"),
        ("absent", FileNotFoundError, "No such file or directory"),
    ],
)
def test_what_is_no_file_is_refused(folder: Path, name: str, error_type: type[OSError], reason: str) -> None:
    with pytest.raises(error_type) as caught:
        read_regular_file(folder / name)
    assert (caught.value.strerror, caught.value.filename) == (reason, str(folder / name))
    if name in ("fifo", "device", "socket"):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            with pytest.raises(NotRegularFileError):
                open_regular(folder / name, flags)


def test_a_file_is_read_up_to_the_limit(folder: Path) -> None:
    assert read_regular_file(folder / "file", 7) == b"content"
    with pytest.raises(TooLargeFileError):
        read_regular_file(folder / "file", 6)
    status = Path("/proc/self/maps")  # its size is 0
    if status.exists():
        assert b"[stack]" in read_regular_file(status)
        with pytest.raises(TooLargeFileError):
            read_regular_file(status, 100)
    with open(folder / "new", "a", opener=open_regular) as file:
        file.write("text")
    assert files.read_text_file(folder / "new") == "text"


@pytest.mark.parametrize(("name", "kind"), [("fifo", "not a file"), ("device", "not a file"), ("folder", "not a file"),
                                            ("large", "too large"), ("absent", "unreadable"),
                                            ("a\0b", "unreadable"), ("\ud800", "unreadable")])  # fmt: skip
def test_an_image_that_is_no_file_is_refused_and_named(folder: Path, name: str, kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(folder / name)
    assert str(caught.value).startswith(f"{folder / name} ")
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "fifo"],
        ["--initial-checkpoint", "fifo", *SHORT],
        ["--resume", "fifo", *SHORT],
        ["--teacher", "fifo.pth", *SHORT],
        ["--class-map", "fifo", "--train-dir", "images"],
        ["--class-weights", "fifo", *SHORT],
    ],
)
def test_training_refuses_a_fifo(train_here: Train, arguments: list[str]) -> None:
    os.mkfifo("fifo")
    os.mkfifo("fifo.pth")
    Path("images/cat").mkdir(parents=True)
    done = train_here(*arguments)
    assert done.returncode in (1, 2)
    assert FIFO in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["logs/models/train.log", "logs/models/metrics.jsonl", "models/.lock"])
def test_a_run_does_not_write_into_a_fifo(train_here: Train, name: str) -> None:
    Path(name).parent.mkdir(parents=True)
    os.mkfifo(name)
    done = train_here(*SHORT)
    assert done.returncode == 1
    assert name in done.stderr.splitlines()[-1]
    assert FIFO in done.stderr.splitlines()[-1]


def test_a_checkpoint_that_is_a_fifo_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    older = tmp_path / "checkpoint-000004.pth.tar"
    files.write(older, {"optimizer": {}})
    os.mkfifo(tmp_path / "checkpoint-000008.pth.tar")
    assert read_newest(tmp_path) == (older, {"optimizer": {}})
    assert FIFO in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "fifo", "fifo"],
        ["predict", "fifo.onnx", "fifo"],
        ["predict", "fifo.pt2", "fifo"],
        ["predict", "weights.pkl", "fifo"],
        ["prepare", "images", "small", "--short-side", "32"],
        ["info", "fifo"],
        ["convert", "fifo", "out.pth", "--to", "original"],
    ],
)
def test_other_commands_refuse_a_fifo(command: Run, arguments: list[str]) -> None:
    Path("images/cat").mkdir(parents=True)
    photograph(40, 40, seed=0).save("images/cat/good.jpg")
    for name in ("fifo", "fifo.onnx", "fifo.pt2", "images/cat/bad.jpg"):
        os.mkfifo(name)
    if "weights.pkl" in arguments:
        torch.save(ShuffleNetV2(32, 3, "0.5x").state_dict(), "weights.pkl")
    _, _, errors = command(*arguments)
    assert FIFO in errors


@pytest.mark.parametrize("name", ["fifo", "device", "folder"])
def test_nothing_takes_the_place_of_what_is_no_file(folder: Path, command: Run, name: str) -> None:
    weights, target = folder / "weights.pkl", folder / name
    torch.save(ShuffleNetV2(32, 3, "0.5x").state_dict(), weights)
    before = target.stat().st_mode
    status, _, errors = command("convert", str(weights), str(target), "--to", "original")
    assert status == 1
    assert f"{target} cannot be written: " in errors
    assert len(errors.splitlines()) == 1
    assert target.stat().st_mode == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    yield from mounted_disk(tmp_path / "disk", "64k")


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # its traceback would be printed
def test_a_run_goes_on_when_the_disk_of_its_log_is_full(train_here: Train, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(
        bytes(24 * 1024)
    )  # it is full during the run, not at the start, when the user is there
    done = train_here(*SHORT, "--log-dir", str(small_disk))
    assert done.returncode == 0, done.stderr
    assert Path("models/model.pkl").exists()
    lines = (done.stdout + done.stderr).splitlines()
    warnings = [line for line in lines if line.startswith("warning: ") and "needs a C compiler" not in line]
    assert 1 <= len(warnings) <= 3
    assert "No space left on device" in warnings[0]
    assert "Traceback" not in done.stderr

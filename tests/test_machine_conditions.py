"""On a machine that is poor or broken a command goes on, or ends with one line that says why; no saved file is lost."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from shufflenetv2 import files
from shufflenetv2.__main__ import main
from shufflenetv2.data import BadImages, DataIterator, Digits, FolderDataset, TrainTransform, map_in_threads
from shufflenetv2.engine import GracefulShutdown, Hook, ShutdownRequested
from shufflenetv2.engine.checkpoint import checkpoint_name
from shufflenetv2.errors import UserError
from tests.processes import Process
from tests.support import ONE_THREAD, ROOT, SHORT, Train, mounted_disk, same_tensors

NOISE = b"a line of a library"
FULL = "standard output cannot be written: No space left on device"
FIFO = "stalled"  # reading this file blocks, as on a file system that does not answer

# The file system answers the main thread, which lists folders, and none of the threads that read images.
ON_A_STALLED_DISK = f"""
import os, sys, threading
from shufflenetv2.__main__ import main

read = os.read

def wait_for_the_disk(descriptor, size):
    if threading.current_thread() is threading.main_thread():
        return read(descriptor, size)
    return open({FIFO!r}, "rb").read()

os.read = wait_for_the_disk
sys.exit(main(sys.argv[1:]))
"""


def start(folder: Path, *command: str | Path) -> "subprocess.Popen[str]":
    """Start a Python process in a folder."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore SIGINT
    )


@contextlib.contextmanager
def stalling(process: "subprocess.Popen[str] | Process", fifo: Path) -> Iterator[None]:
    """Wait until a process reads a FIFO, and let it wait for content during the block."""
    while True:
        try:
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:  # nobody reads it yet
            is_running = process.poll() is None if isinstance(process, subprocess.Popen) else process.returncode is None
            assert is_running, process.communicate()
            time.sleep(0.01)
    try:
        yield
    finally:
        os.close(descriptor)


# ---- streams, limits and folders of a poor machine


class NoisyLibrary(Hook):
    """Write to the standard streams by their numbers, as libraries in C do."""

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        for descriptor in range(3):
            with contextlib.suppress(OSError):
                os.write(descriptor, NOISE)


def test_a_training_on_a_poor_machine_gives_the_result_of_any_other(train_here: Train, tmp_path: Path) -> None:
    """No home, no temporary folder, no terminal, no standard streams, no locale, one core, few files."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        os.umask(0o077)

    instructions = {name: value for name, value in os.environ.items() if name == "ATEN_CPU_CAPABILITY"}  # they decide the bits
    arguments = [*SHORT, "--total-iters", "4", "--hook", "tests.test_machine_conditions:NoisyLibrary"]
    folder = tmp_path / "ünïcode 数"
    folder.mkdir()
    command = [sys.executable, "-B", str(ROOT / "train.py"), *arguments]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=folder, preexec_fn=limit, timeout=300,
        env={"LC_ALL": "POSIX", "COLUMNS": "0", "TMPDIR": "/absent", "PYTHONPATH": str(ROOT)} | instructions,
    )  # fmt: skip
    assert done.returncode == 0
    assert NOISE not in b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert (folder / "models/.lock").stat().st_mode & 0o777 == 0o600
    assert train_here(*arguments).returncode == 0
    assert same_tensors(*(files.read(path / "models/model.pkl")["state_dict"] for path in (folder, tmp_path)))


@pytest.mark.parametrize(
    ("arguments", "stream", "status", "rest"),
    [
        (["schema"], "stdout", 1, f"shufflenetv2 schema: error: {FULL}\n"),
        (["train", "--help"], "stdout", 1, f"shufflenetv2 train: error: {FULL}\n"),
        (["train", "--nonsense"], "stderr", 2, ""),
        (["nonsense"], "stderr", 2, ""),
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_written_is_an_error_and_an_error_that_cannot_be_written_keeps_its_status(
    arguments: list[str], stream: str, status: int, rest: str
) -> None:
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: full.fileno()}
        done = subprocess.run(
            [sys.executable, "-m", "shufflenetv2", *arguments], cwd=ROOT, text=True, timeout=100,
            stdout=streams["stdout"], stderr=streams["stderr"],
        )  # fmt: skip
    assert (done.returncode, (done.stderr or "") + (done.stdout or "")) == (status, rest)


@contextlib.contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """Lower a limit of this process."""
    limits = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, limits)


def test_an_image_for_which_no_file_can_be_opened_is_not_taken_for_a_bad_one(photographs: Path) -> None:
    dataset = FolderDataset(photographs)
    bad_images = BadImages(dataset, "training", max_fraction=1)
    transform = TrainTransform(32, (0.5, 1), (0.8, 1.2), (0.4,) * 3, 0.5)
    with limited(resource.RLIMIT_NOFILE, 3):  # standard streams alone
        batches = DataIterator(dataset, transform, 4, workers=1, bad_images=bad_images)
        with pytest.raises(UserError, match=r"cannot be read: Too many open files; raise the number of files .* \(ulimit -n\)"):
            batches.next()
        batches.close()
    assert len(bad_images) == 0


def test_threads_that_the_system_does_not_start_are_an_error_with_the_limits() -> None:
    size = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
    with limited(resource.RLIMIT_AS, size + 64 * 2**20):  # a stack takes 8 MiB
        squares = map_in_threads(lambda number: number**2, range(3), 100)
        with pytest.raises(
            UserError, match=r"`workers` 100: the system starts no more than \d+ threads; .*\(ulimit -u, ulimit -v\)"
        ):
            next(squares)
    assert list(map_in_threads(lambda number: number**2, range(3), 2)) == [0, 1, 4]


def test_a_limit_that_is_too_low_for_pytorch_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shufflenetv2", "info", "model.pkl"], cwd=ROOT, capture_output=True, text=True, timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (300 * 2**20, 300 * 2**20)),
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "error: out of memory before the start (" in done.stderr
    assert done.stderr.endswith("); raise the limit of this process (ulimit -v)\n")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB: two checkpoints of a short run and its best weights."""
    yield from mounted_disk(tmp_path / "disk", "12m")


def test_a_run_whose_disk_is_full_goes_on_when_there_is_room(disk: Path, train_here: Train, tmp_path: Path) -> None:
    """The clock of the machine is wrong in between: the times of the files are those of another century."""
    run = [*SHORT, "--save", str(disk / "run")]
    full = train_here(*run)
    assert full.returncode == 1
    (line,) = full.stderr.splitlines()
    assert line.endswith(
        "cannot be written: No space left on device; the files written before are intact; "
        "make room, then run the same command again"
    )
    for iteration, year in ((4, 2100), (8, 1970)):
        seconds = (year - 1970) * 365 * 86_400
        os.utime(disk / "run" / checkpoint_name(iteration), (seconds, seconds))
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    continued = train_here(*run)
    assert continued.returncode == 0, continued.stderr
    assert "checkpoint-000008.pth.tar" in continued.stdout.splitlines()[0]
    assert train_here(*SHORT).returncode == 0
    assert same_tensors(*(files.read(path / "model.pkl")["state_dict"] for path in (disk / "run", tmp_path / "models")))

    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for arguments in (run, [*SHORT, "--save", str(disk / "new")], [*SHORT, "--save", "new", "--log-dir", str(disk)]):
        refused = train_here(*arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert refused.stderr.endswith(": Read-only file system; name another folder, or make this one writable\n")


def test_a_deleted_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert main(["info", "/model.pkl"]) == 1
    assert capsys.readouterr().err == "shufflenetv2 info: error: the current folder was deleted; change to another folder\n"


# ---- signals


def test_closing_the_terminal_stops_a_run_unless_nohup_lets_it_ignore_that() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulShutdown() as shutdown:
            os.kill(os.getpid(), signal.SIGHUP)
            shutdown.check()
    finally:
        signal.signal(signal.SIGHUP, previous)
    with GracefulShutdown() as shutdown:
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(ShutdownRequested, match="SIGHUP"):
            shutdown.check()


@pytest.mark.parametrize("command", ["check", "prepare --short-side 64 --workers 2 small"])
def test_ctrl_c_ends_a_command_whose_files_do_not_answer(command: str, photographs: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FIFO)
    name, *arguments = command.split()
    process = start(tmp_path, "-c", ON_A_STALLED_DISK, name, photographs, *arguments)
    with stalling(process, tmp_path / FIFO):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (130, f"shufflenetv2 {name}: interrupted\n")


class StallingPictures:
    """Digits of which each validation image is readable once, for the validation, and not for the report."""

    def __init__(self, split: str, folder: str) -> None:
        self._digits, self._is_training, self._read = Digits(split), split == "train", set[int]()
        self.class_names, self.targets = self._digits.class_names, self._digits.targets

    def image(self, index: int) -> np.ndarray:
        if not self._is_training and index in self._read:
            Path(FIFO).read_bytes()
        self._read.add(index)
        pixels: np.ndarray = self._digits.images[index]
        return pixels


def test_a_run_ends_after_a_signal_although_the_images_of_its_report_do_not_answer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FIFO)
    process = Process(tmp_path, *SHORT, "--dataset", "tests.test_machine_conditions:StallingPictures")
    with stalling(process, tmp_path / FIFO):  # after the validation at iteration 6
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (143, "")
    match = re.search(r"stopped by SIGTERM after iteration ([67]);", output)
    assert match, output
    assert (tmp_path / "models" / checkpoint_name(int(match[1]))).exists()


# ---- several processes


def test_several_processes_report_their_common_error_once(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(8):
            path = tmp_path / split / str(number % 2) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\xff\xd8 damaged")
    options = [*SHORT[2:], "--train-dir", "train", "--val-dir", "val", "--model-size", "0.5x", "--workers", "2"]
    store = TCPStore("127.0.0.1", 0, is_master=True)  # as that of torchrun, in a process that does not train
    common = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    processes = [Process(tmp_path, *options, **common, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    statuses, errors = [process.wait() for process in processes], [process.communicate()[1] for process in processes]
    assert statuses == [1, 1]
    (line,) = "".join(errors).splitlines()
    assert "of 8 training images cannot be decoded, which is more than --max-bad-images 0.01 accepts" in line

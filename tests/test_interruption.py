"""A run that is stopped or killed and then continued gives a bit-identical result, and never leaves a damaged file."""

import csv
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shufflenetv2 import files
from shufflenetv2.config import RunConfig
from shufflenetv2.data import DataIterator, Digits, FolderDataset, TrainTransform
from shufflenetv2.engine import Checkpointer, GracefulShutdown, Hook, RunIdentity, ShutdownRequested
from shufflenetv2.engine.background import BackgroundWriter, time_limit
from shufflenetv2.engine.checkpoint import checkpoint_name, list_checkpoints, read_newest
from shufflenetv2.engine.intervals import every
from shufflenetv2.errors import UserError
from tests.processes import Process
from tests.support import ONE_THREAD, ROOT, SHORT, Stop, Train, same_tensors

FIFO = "stalled"  # reading this file blocks, as on a file system that does not answer


class StallingDigits:
    """Digits of which the training images are readable 80 times."""

    def __init__(self, split: str, folder: str) -> None:
        self._digits, self._is_training, self._readable = Digits(split), split == "train", itertools.count()
        self.class_names, self.targets = self._digits.class_names, self._digits.targets

    def image(self, index: int) -> np.ndarray:
        if self._is_training and next(self._readable) >= 80:
            Path(FIFO).read_bytes()
        pixels: np.ndarray = self._digits.images[index]
        return pixels


LONGER = [
    *SHORT, "--total-iters", "40", "--display-interval", "1", "--val-interval", "10", "--save-interval", "15",
    "--model-ema", "--model-ema-decay", "0.9", "--drop", "0.2",
]  # fmt: skip


class Kill(Hook):
    """Kill the process at a random iteration after the second checkpoint."""

    def __init__(self) -> None:
        self.iterations_left = random.Random(os.getpid()).randint(0, 10)
        self.saved = 0

    def after_save(self, iteration: int, path: str) -> None:
        self.saved += path.rpartition("/")[2].startswith("checkpoint-")

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        self.iterations_left -= self.saved >= 2
        if self.iterations_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def wait_for(process: Process, text: str) -> None:
    """Read the output of a process until a line contains `text`."""
    assert any(text in line for line in process.stdout), f"{text!r} was never printed"


def read_results(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of all model files: the weights, the averaged weights, and the best weights."""
    names = ("model.pkl", "model-ema.pkl", "best.pkl")
    results = {name: torch.load(folder / name, weights_only=True)["state_dict"] for name in names}
    return {f"{name}/{key}": tensor for name, state_dict in results.items() for key, tensor in state_dict.items()}


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without the columns that are times."""
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    times = {"data_time", "train_time", "images_per_second", "val_time"}
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run without interruption, and return the folder with the checkpoints and results."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = Process(folder, *LONGER)
    process.communicate()
    assert process.returncode == 0
    return folder / "models"


# ---- signals


def test_a_run_stopped_by_a_signal_continues_to_a_bit_identical_result(tmp_path: Path, uninterrupted: Path) -> None:
    process = Process(tmp_path, *LONGER)
    wait_for(process, " 4/")
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate()
    assert process.returncode == 143
    assert rest.count("stopped by SIGTERM after iteration ") == 1
    (saved,) = (tmp_path / "models").glob("*.pth.tar")  # the save interval would write the first checkpoint at iteration 15
    assert 4 <= torch.load(saved, weights_only=True)["iteration"] < 15

    again = Process(tmp_path, *LONGER, "--workers", "3")
    assert "continuing from models/checkpoint-" in again.communicate()[0]
    assert again.returncode == 0
    assert same_tensors(read_results(tmp_path / "models"), read_results(uninterrupted))


def test_a_run_whose_files_do_not_answer_stops_after_a_signal_with_its_last_complete_iteration_saved(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FIFO)
    process = Process(tmp_path, *LONGER, "--dataset", "tests.test_interruption:StallingDigits", "--workers", "2")
    wait_for(process, " 5/")
    with open(tmp_path / FIFO, "wb"):  # waits until a thread of the run reads the file
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate()
    assert (process.returncode, errors) == (143, "")
    assert "stopped by SIGTERM after iteration 5;" in rest
    assert torch.load(tmp_path / "models" / checkpoint_name(5), weights_only=True)["iteration"] == 5


def test_a_batch_that_memory_cannot_hold_ends_the_run_with_one_line(tmp_path: Path) -> None:
    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (10 * 2**30, 10 * 2**30))

    arguments = [*SHORT, "--batch-size", "1000000", "--input-size", "64", "--resize-size", "64", "--no-memory-check"]
    run = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=tmp_path, env=os.environ | ONE_THREAD,
        capture_output=True, text=True, timeout=300, preexec_fn=limit_memory,
    )  # fmt: skip
    assert (run.returncode, run.stderr.count("\n")) == (1, 1), run.stderr
    assert "out of memory; use a smaller --batch-size" in run.stderr


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_takes_effect_at_the_next_check(signum: signal.Signals, status: int) -> None:
    previous = signal.getsignal(signum)
    with GracefulShutdown() as shutdown:
        shutdown.check()
        os.kill(os.getpid(), signum)
        with pytest.raises(ShutdownRequested, match=signum.name) as caught:
            list(shutdown.interruptible([1, 2]))
        assert caught.value.status == status
    assert signal.getsignal(signum) is previous


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with GracefulShutdown():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_killed_three_times_gives_a_bit_identical_result(tmp_path: Path, uninterrupted: Path) -> None:
    """The run is killed at random instants, which may fall into a save or a validation."""
    rng = random.Random(1)
    for _ in range(3):
        process = Process(tmp_path, *LONGER, "--save-interval", "2", "--workers", str(rng.randint(1, 3)))
        wait_for(process, "device      cpu")
        try:
            process.communicate(timeout=rng.uniform(0.1, 1.5))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    (tmp_path / "models" / ".checkpoint-000999.pth.tar.abc.tmp").write_bytes(b"half written")
    process = Process(tmp_path, *LONGER)
    process.communicate()
    assert process.returncode == 0
    assert same_tensors(read_results(tmp_path / "models"), read_results(uninterrupted))
    assert not list((tmp_path / "models").glob(".*.tmp"))
    logs, uninterrupted_logs = tmp_path / "logs/models", uninterrupted.parent / "logs/models"
    assert read_metrics(logs) == read_metrics(uninterrupted_logs)
    assert (logs / "predictions.csv").read_bytes() == (uninterrupted_logs / "predictions.csv").read_bytes()
    sessions = [json.loads(line) for line in (logs / "sessions.jsonl").read_text().splitlines()]
    assert [session["event"] for session in sessions] == ["start"] * 4 + ["end"]


def test_a_run_killed_long_before_its_first_interval_in_iterations_continues_from_a_checkpoint_by_time(
    tmp_path: Path, uninterrupted: Path
) -> None:
    """The default interval, with 0.01 s instead of ten minutes. A hook kills the run after the second checkpoint."""
    arguments = [*LONGER, "--save-interval", "10000,0.01s"]
    killed = Process(tmp_path, *arguments, "--hook", "tests.test_interruption:Kill")
    _, errors = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, errors
    newest = read_newest(tmp_path / "models")
    assert newest is not None
    assert len(list_checkpoints(tmp_path / "models")) <= 3  # the newest two are kept; a third is deleted after the next save
    again = Process(tmp_path, *arguments)
    assert f"continuing from models/{newest[0].name}\n" in again.communicate()[0]
    assert again.returncode == 0
    assert same_tensors(read_results(tmp_path / "models"), read_results(uninterrupted))
    assert len(list_checkpoints(tmp_path / "models")) == 2


def test_the_last_iterations_are_recorded_where_the_interval_does_not_divide_them(tmp_path: Path, train_here: Train) -> None:
    arguments = [*SHORT, "--display-interval", "5", "--clip-grad", "1"]
    assert train_here(*arguments, "--save", "complete").returncode == 0
    rows = read_metrics(tmp_path / "complete/logs")
    assert [row["iteration"] for row in rows if row["kind"] == "train"] == ["5", "10", "12"]
    assert all(float(row["grad_norm"]) > 0 for row in rows if row["kind"] == "train")
    assert train_here(*arguments, "--save", "interrupted", "--hook", "tests.support:Stop").returncode == 143
    assert train_here(*arguments, "--save", "interrupted").returncode == 0
    assert read_metrics(tmp_path / "interrupted/logs") == rows


# ---- files


def test_damage_at_any_byte_of_a_checkpoint_is_detected_and_the_previous_one_is_used(
    tmp_path: Path, uninterrupted: Path
) -> None:
    previous, newest = (tmp_path / checkpoint_name(iteration) for iteration in (15, 30))
    complete = (uninterrupted / newest.name).read_bytes()
    files.write(previous, {"optimizer": {}, "iteration": 15})  # small, because it is read 100 times
    rng = random.Random(5)
    for offset in rng.sample(range(len(complete)), 50):
        flipped = bytearray(complete)
        flipped[offset] ^= 1 << rng.randrange(8)
        for damaged in (complete[:offset], flipped):
            newest.write_bytes(damaged)
            assert read_newest(tmp_path) == (previous, {"optimizer": {}, "iteration": 15})
            assert newest.with_name(newest.name + ".damaged").read_bytes() == damaged
    newest.write_bytes(complete)
    path, content = read_newest(tmp_path) or (None, {})
    assert (path, content["iteration"]) == (newest, 30)


def test_a_folder_that_vanishes_ends_the_run_with_one_line(tmp_path: Path) -> None:
    process = Process(tmp_path, *LONGER, "--save-interval", "5", "--total-iters", "100000")
    wait_for(process, " 7/")
    shutil.rmtree(tmp_path / "models")
    _, errors = process.communicate()
    assert (process.returncode, errors.count("\n")) == (1, 1), errors
    assert re.search(r"models/(checkpoint-0000\d\d\.pth\.tar|best\.pkl) cannot be written: No such file or directory", errors)


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_runs(tmp_path: Path, train: Train) -> None:
    first = Process(tmp_path, *LONGER, "--total-iters", "100000")
    wait_for(first, " 1/")
    second = train(*LONGER, "--total-iters", "100000")
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert f"models is in use by process {first.pid} on " in second.stderr
    first.kill()
    first.communicate()
    with files.lock_folder(tmp_path / "models"):  # the lock was released when the process was killed
        pass


def test_a_full_disk_ends_the_run_with_one_line_and_the_earlier_checkpoints(tmp_path: Path) -> None:
    """A limit on file sizes, below the size of a checkpoint, has the effect of a full disk."""
    full = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SHORT], cwd=tmp_path, env=os.environ | ONE_THREAD,
        capture_output=True, text=True, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert full.returncode == 1
    assert full.stderr.count("\n") == 1
    expected = "models/checkpoint-000004.pth.tar cannot be written: File too large; the files written before are intact"
    assert expected in full.stderr
    assert not list((tmp_path / "models").glob("[!.]*"))
    assert not list((tmp_path / "models").glob(".*.tmp"))


def test_a_file_written_in_the_background_holds_the_tensors_at_the_time_of_the_call(tmp_path: Path) -> None:
    writer, tensor = BackgroundWriter(), torch.zeros(1_000_000)
    for number in range(3):
        writer.write(tmp_path / f"{number}.pth", {"nested": [{"tensor": tensor}]})
        tensor += 1
    writer.wait()
    for number in range(3):
        assert (files.read(tmp_path / f"{number}.pth")["nested"][0]["tensor"] == number).all()


def test_the_error_of_a_failed_write_is_raised_by_wait(tmp_path: Path) -> None:
    writer = BackgroundWriter()
    writer.write(tmp_path / "absent" / "file.pth", {})
    with pytest.raises(UserError, match=r"file\.pth cannot be written: No such file"):
        writer.wait()
    writer.wait()  # the error is not raised a second time


def test_a_wait_for_a_disk_that_does_not_answer_can_be_ended(tmp_path: Path) -> None:
    release, writer = threading.Event(), BackgroundWriter()
    writer.write(tmp_path / "file.pth", {}, on_written=release.wait)
    try:
        with GracefulShutdown() as shutdown:
            os.kill(os.getpid(), signal.SIGTERM)
            writer.while_waiting = shutdown.check_while_waiting
            with pytest.raises(ShutdownRequested, match="SIGTERM"):
                writer.write(tmp_path / "next.pth", {})
        writer.while_waiting = time_limit(0)
        with pytest.raises(UserError, match="could not be written within 0 seconds; the files written before are intact"):
            writer.wait()
    finally:
        release.set()
    writer.wait()


def test_an_interval_is_in_iterations_or_in_time_or_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [k for k in range(1, 8) if every(3)(k)] == [3, 6]
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    is_due = every("2m")
    assert not is_due(1)
    now += 121
    assert is_due(2)
    assert not is_due(3)
    is_due, due = every("4,2m"), []
    for iteration in range(1, 13):
        now += 50
        if is_due(iteration):
            due.append(iteration)
    # An iteration takes 50 s, so 3 iterations take longer than 2 minutes. Every fourth iteration is due and restarts the time.
    assert due == [3, 4, 7, 8, 11, 12]


def test_a_checkpoint_is_due_once_per_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    identity = RunIdentity({}, ["cat"], "digest")
    by_time = Checkpointer(tmp_path, identity, RunConfig(save_interval="2m"))
    now += 121
    assert [by_time.is_due(k) for k in (1, 2)] == [True, False]
    by_iterations = Checkpointer(tmp_path, identity, RunConfig(save_interval=6, recovery_interval=4))
    assert [k for k in range(1, 13) if by_iterations.is_due(k)] == [4, 6, 8, 12]


# ---- non-finite losses


# With this standard deviation of the first channel, blue, normalized values of 240 and more are infinite, and 0 stays 0.
OVERFLOWING = ["--std", "7e-37", "1", "1", "--color-jitter", "0", "--train-dir", "data", "--seed", "1", "--model-size", "0.5x",
               "--input-size", "32", "--batch-size", "4", "--total-iters", "20", "--learning-rate", "0.05",
               "--display-interval", "4", "--save-interval", "5", "--device", "cpu"]  # fmt: skip


@pytest.fixture
def bad_iterations(tmp_path: Path) -> list[int]:
    """Write 24 images without blue and one blue image; return the iterations whose batches contain the blue image."""
    rng = np.random.default_rng(0)
    for number in range(25):
        folder = tmp_path / "data" / ("odd" if number % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        pixels[:, :, 2] = 255 if number == 7 else 0
        Image.fromarray(pixels).save(folder / f"{number}.png")
    iterator = DataIterator(FolderDataset(tmp_path / "data"), TrainTransform(32), 4, seed=1)
    iterations = [k for k in range(1, 27) if "odd/7.png" in iterator.sample_names(k)]
    assert len(iterations) == 4
    assert max(iterations) <= 19  # the recalibration uses the six batches after iteration 20
    return iterations


def test_a_non_finite_loss_ends_the_run_with_an_error_that_lists_the_samples_and_nothing_is_saved(
    tmp_path: Path, train: Train, bad_iterations: list[int]
) -> None:
    stopped = train(*OVERFLOWING, "--display-interval", "100")  # the save due after iteration 5 detects the loss
    assert (stopped.returncode, stopped.stderr.count("\n")) == (1, 1)
    assert f"the loss is not finite at iteration {bad_iterations[0]}, where the learning rate was" in stopped.stderr
    assert "its 4 samples were" in stopped.stderr
    assert "odd/7.png" in stopped.stderr
    assert not list((tmp_path / "models").glob("[!.]*"))


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_iterations_with_non_finite_losses_are_skipped_with_and_without_interruption(
    tmp_path: Path, train_here: Train, bad_iterations: list[int], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*OVERFLOWING, "--on-nonfinite", policy]
    complete = train_here(*arguments, "--save", "complete")
    assert complete.returncode == 0, complete.stderr
    messages = re.findall(r"not finite at iteration (\d+), .*; continuing from .+ without iterations", complete.stdout)
    assert [int(iteration) for iteration in messages] == bad_iterations
    final = torch.load(tmp_path / "complete/checkpoint-000020.pth.tar", weights_only=True)
    first_skipped = [k if policy == "skip" else (k - 1) // 5 * 5 + 1 for k in bad_iterations]
    assert final["skipped"] == list(zip(first_skipped, bad_iterations, strict=True))
    assert all(tensor.isfinite().all() for tensor in final["state_dict"].values())
    assert final["scheduler"]["last_epoch"] == 20
    if policy == "skip":
        assert final["state_dict"]["first_conv.1.num_batches_tracked"] == 20 - len(bad_iterations)

    # A signal stops the run just before a bad iteration.
    monkeypatch.setattr(Stop, "after", bad_iterations[1] - 1)
    interrupted = train_here(*arguments, "--save", "interrupted", "--hook", "tests.support:Stop")
    assert interrupted.returncode == 143
    resumed = train_here(*arguments, "--save", "interrupted")
    assert resumed.returncode == 0, resumed.stderr
    a, b = (torch.load(tmp_path / name / "model.pkl", weights_only=True)["state_dict"] for name in ("complete", "interrupted"))
    assert same_tensors(a, b)

"""A run that is stopped or killed goes on to the same bits, and nothing on the disk is lost."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shufflenetv2 import files
from shufflenetv2.cli.command import parse
from shufflenetv2.data import DataIterator, FolderDataset, TrainTransform
from shufflenetv2.engine import GracefulShutdown, ShutdownRequested, checkpoint
from shufflenetv2.engine.background import BackgroundWriter
from shufflenetv2.engine.checkpoint import every
from shufflenetv2.errors import UserError
from tests.support import ONE_THREAD, ROOT, SHORT, Train, same_tensors

LONGER = [
    *SHORT, "--total-iters", "40", "--display-interval", "1", "--val-interval", "10", "--save-interval", "15",
    "--model-ema", "--model-ema-decay", "0.9", "--drop", "0.2",
]  # fmt: skip


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "train.py"), *LONGER, *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: "subprocess.Popen[str]", text: str) -> None:
    """Reads what the process prints until a line has the text in it."""
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), f"{text!r} was never printed"


def result(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of both results, the weights and their average."""
    files = {name: torch.load(folder / name, weights_only=True)["state_dict"] for name in ("model.pkl", "model-ema.pkl")}
    return {f"{name}/{key}": tensor for name, state_dict in files.items() for key, tensor in state_dict.items()}


@pytest.fixture(scope="module")
def untouched_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untouched")
    process = start(folder)
    process.communicate(timeout=300)
    assert process.returncode == 0
    return folder / "models"


@pytest.fixture(scope="module")
def untouched(untouched_folder: Path) -> dict[str, torch.Tensor]:
    return result(untouched_folder)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_stopped_run_saves_and_goes_on_to_the_same_bits(
    tmp_path: Path, untouched: dict[str, torch.Tensor], signum: int, status: int
) -> None:
    process = start(tmp_path)
    wait_for(process, "TRAIN Iter 4:")
    process.send_signal(signum)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == status
    assert rest.count(f"stopped by {signal.Signals(signum).name} after iteration ") == 1
    (saved,) = (tmp_path / "models").glob("*.pth.tar")  # well before the first one that is due
    assert 4 <= torch.load(saved, weights_only=True)["iteration"] < 15

    again = start(tmp_path, "--workers", "3")
    assert "continuing from models/checkpoint-" in again.communicate(timeout=300)[0]
    assert again.returncode == 0
    assert same_tensors(result(tmp_path / "models"), untouched)


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, untouched: dict[str, torch.Tensor]) -> None:
    """At random instants, saves and validations among them."""
    chance = random.Random(1)
    for _ in range(4):
        process = start(tmp_path, "--save-interval", "2", "--workers", str(chance.randint(1, 3)))
        wait_for(process, "training on cpu")
        try:
            process.communicate(timeout=chance.uniform(0.1, 1.5))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    (tmp_path / "models" / ".checkpoint-000999.pth.tar.abc.tmp").write_bytes(b"half written")
    process = start(tmp_path)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert same_tensors(result(tmp_path / "models"), untouched)
    assert not list((tmp_path / "models").glob(".*.tmp"))


def test_wherever_a_checkpoint_is_cut_or_changed_the_one_before_is_used(tmp_path: Path, untouched_folder: Path) -> None:
    """What a run then does with that one, tests/test_command.py shows."""
    before, newest = (checkpoint.checkpoint_name(iteration) for iteration in (15, 30))
    whole = (untouched_folder / newest).read_bytes()
    files.write(tmp_path / before, {"optimizer": {}, "iteration": 15})  # small: it is read 400 times
    chance = random.Random(5)
    for offset in chance.sample(range(len(whole)), 200):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << chance.randrange(8)
        for damaged in (whole[:offset], flipped):
            (tmp_path / newest).write_bytes(damaged)
            assert checkpoint.read_newest(tmp_path) == (tmp_path / before, {"optimizer": {}, "iteration": 15})
            assert (tmp_path / (newest + ".damaged")).read_bytes() == damaged
    (tmp_path / newest).write_bytes(whole)
    found = checkpoint.read_newest(tmp_path)
    assert found is not None
    assert (found[0].name, found[1]["iteration"]) == (newest, 30)


def test_a_folder_that_vanishes_ends_the_run_with_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, "--save-interval", "5", "--total-iters", "100000")
    assert process.stdout is not None
    wait_for(process, "TRAIN Iter 7:")
    shutil.rmtree(tmp_path / "models")
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors.count("\n")) == (1, 1), errors
    assert re.search(r"models/(checkpoint-0000\d\d|best)\.pth\.tar cannot be written: No such file or directory", errors)


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives(tmp_path: Path, train: Train) -> None:
    first = start(tmp_path, "--total-iters", "100000")
    wait_for(first, "TRAIN Iter 1:")
    second = train(*LONGER, "--total-iters", "100000")
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert f"models is in use by process {first.pid} on " in second.stderr
    first.kill()
    first.communicate()
    assert train(*SHORT, "--no-auto-continue").returncode == 0  # the lock died with its owner


def test_a_full_disk_ends_the_run_with_one_line_and_the_earlier_checkpoints(tmp_path: Path) -> None:
    """With a real limit on the size of files, below that of a checkpoint."""

    full = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SHORT], cwd=tmp_path, env=os.environ | ONE_THREAD,
        capture_output=True, text=True, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert full.returncode == 1
    assert full.stderr.count("\n") == 1
    assert (
        "models/checkpoint-000004.pth.tar cannot be written: File too large; the files written before are intact" in full.stderr
    )
    assert not list((tmp_path / "models").glob("[!.]*"))
    assert not list((tmp_path / "models").glob(".*.tmp"))


def test_a_loss_that_is_not_finite_ends_the_run_by_name_and_is_never_saved(tmp_path: Path, train: Train) -> None:
    done = train(*SHORT, "--learning-rate", "1e30", "--display-interval", "100")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert re.search(r"the loss is not finite at iteration [23], where the learning rate was \S+e\+29", done.stderr)
    assert "its 16 samples were digits/train/" in done.stderr
    assert not list((tmp_path / "models").glob("[!.]*"))  # the first save was due at iteration 4


# Blue of 240 and more becomes infinite, and 0 stays 0.
OVERFLOWING = ["--std", "7e-37", "1", "1", "--color-jitter", "0", "--train-dir", "data", "--seed", "1", "--model-size", "0.5x",
               "--input-size", "32", "--batch-size", "4", "--total-iters", "20", "--learning-rate", "0.05",
               "--display-interval", "4", "--save-interval", "5", "--device", "cpu"]  # fmt: skip


@pytest.fixture
def one_bad_image(tmp_path: Path) -> list[int]:
    """A folder of 24 images without blue and a blue one; gives the iterations that meet that."""
    rng = np.random.default_rng(0)
    for number in range(25):
        folder = tmp_path / "data" / ("odd" if number % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        pixels[:, :, 2] = 255 if number == 7 else 0
        Image.fromarray(pixels).save(folder / f"{number}.png")
    iterator = DataIterator(FolderDataset(tmp_path / "data"), TrainTransform(32), 4, seed=1)
    bad = [k for k in range(1, 27) if "odd/7.png" in iterator.sample_names(k)]
    assert len(bad) == 4
    assert max(bad) <= 19  # for the recalibration sees the next six batches
    return bad


def test_a_bad_iteration_is_skipped(tmp_path: Path, train: Train, one_bad_image: list[int]) -> None:
    stopped = train(*OVERFLOWING)
    assert (stopped.returncode, stopped.stderr.count("\n")) == (1, 1)
    assert f"the loss is not finite at iteration {one_bad_image[0]}, where" in stopped.stderr
    assert "odd/7.png" in stopped.stderr

    done = train(*OVERFLOWING, "--on-nonfinite", "skip")  # goes on from what the first attempt has saved
    assert done.returncode == 0, done.stderr
    told = re.findall(r"not finite at iteration (\d+), .*; continuing from (.+) without iterations (\d+) to (\d+)", done.stdout)
    assert [int(k) for k, *_ in told] == one_bad_image
    assert all(k == first == last for k, _, first, last in told)
    final = torch.load(tmp_path / "models/checkpoint-000020.pth.tar", weights_only=True)
    assert final["skipped"] == [(k, k) for k in one_bad_image]
    assert all(tensor.isfinite().all() for tensor in final["state_dict"].values())
    assert final["scheduler"]["last_epoch"] == 20
    assert final["state_dict"]["first_conv.1.num_batches_tracked"] == 20 - len(one_bad_image)


@pytest.mark.parametrize("how", ["skip", "rollback"])
def test_a_run_that_goes_around_bad_iterations_can_be_interrupted(
    tmp_path: Path, train: Train, one_bad_image: list[int], how: str
) -> None:
    arguments = [*OVERFLOWING, "--on-nonfinite", how]
    whole = train(*arguments, "--save", "whole")
    assert whole.returncode == 0, whole.stderr
    if how == "rollback":
        final = torch.load(tmp_path / "whole/checkpoint-000020.pth.tar", weights_only=True)
        assert final["skipped"] == [((k - 1) // 5 * 5 + 1, k) for k in one_bad_image]
    for k in one_bad_image[:2]:  # stopped by a signal right before, in or after it
        command = [sys.executable, str(ROOT / "train.py"), *arguments, "--save", "cut", "--display-interval", "1"]
        process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True)
        wait_for(process, f"TRAIN Iter {k - 1}:")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)
        assert process.returncode == 143
    resumed = train(*arguments, "--save", "cut")
    assert resumed.returncode == 0, resumed.stderr
    a, b = (torch.load(tmp_path / folder / "model.pkl", weights_only=True)["state_dict"] for folder in ("whole", "cut"))
    assert same_tensors(a, b)


def test_a_second_ctrl_c_stops_at_once_and_a_first_signal_waits() -> None:
    before = signal.getsignal(signal.SIGINT)
    with GracefulShutdown() as shutdown:
        shutdown.check()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(ShutdownRequested, match="SIGINT") as caught:
            list(shutdown.interruptible([1, 2]))
        assert caught.value.status == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_written_is_the_state_at_the_time_of_the_call(tmp_path: Path) -> None:
    writer, tensor = BackgroundWriter(), torch.zeros(1_000_000)
    for number in range(3):
        writer.write(tmp_path / f"{number}.pth", {"nested": [{"tensor": tensor}]})
        tensor += 1
    writer.wait()
    for number in range(3):
        assert (files.read(tmp_path / f"{number}.pth")["nested"][0]["tensor"] == number).all()


def test_an_error_of_the_writer_is_an_error_of_the_run(tmp_path: Path) -> None:
    writer = BackgroundWriter()
    writer.write(tmp_path / "absent" / "file.pth", {})
    with pytest.raises(UserError, match=r"file\.pth cannot be written: No such file"):
        writer.wait()
    writer.wait()  # told once


def test_intervals_are_iterations_or_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [k for k in range(1, 8) if every(3)(k)] == [3, 6]
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    due = every("2m")
    assert not due(1)
    now[0] += 121
    assert due(2)
    assert not due(3)
    assert parse(["--train-dir", "D", "--save-interval", "10m"]).run.save_interval == "10m"
    assert parse(["--train-dir", "D", "--save-interval", "10"]).run.save_interval == 10
    for wrong in ("0", "m", "0m", "nanm", "5d"):
        with pytest.raises(UserError, match="90s, 10m or 2h"):
            parse(["--train-dir", "D", "--save-interval", wrong])

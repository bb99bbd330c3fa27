"""Metrics and tables of a run are complete, also after a kill, and other programs can read them."""

import csv
import dataclasses
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shufflenetv2.errors import UserError
from shufflenetv2.report import Records, RunLog, TensorBoard, TrainMetrics, ValidationMetrics, write_confusion
from shufflenetv2.report.records import COLUMNS
from tests.support import ONE_THREAD, ROOT, SHORT, Train


def record(folder: Path, first: int, last: int, after: int = 0, *, tensorboard: bool = False) -> None:
    """Write the rows of iterations `first` to `last` of a run that continues after iteration `after`."""
    records = Records(folder, after, [TensorBoard] if tensorboard else [])
    for iteration in range(first, last + 1):
        records.write(iteration, "train", {"learning_rate": 0.1, "loss": 1 / iteration, "top1_error": iteration / 7})
        if iteration % 3 == 0:
            records.write(iteration, "test", {"loss": 2 / iteration, "val_time": 0.5})
            records.write(iteration, "test_ema", {"loss": 3 / iteration, "val_time": 0.5})
    records.close()


def read_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("metrics.csv", "metrics.jsonl")}


def read_csv(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) by tag, as TensorBoard shows them."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator: Any = accumulators.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


@pytest.fixture
def uninterrupted(tmp_path: Path) -> dict[str, bytes]:
    """Return the files of a run of ten iterations that is never interrupted."""
    record(tmp_path / "uninterrupted", 1, 10)
    return read_files(tmp_path / "uninterrupted")


def test_values_are_written_exactly(tmp_path: Path) -> None:
    records = Records(tmp_path / "logs" / "run", 0)
    train = {"learning_rate": 0.1 + 0.2, "loss": 1 / 3, "images_per_second": 1e-17}
    records.write(20, "train", {**train, "extra": 5})
    records.write(20, "test", {"loss": float(np.float32(0.1)), "val_time": 2})
    records.close()
    header, *rows = read_csv(tmp_path / "logs" / "run" / "metrics.csv")
    assert header == list(COLUMNS)
    first, second = (dict(zip(header, row, strict=True)) for row in rows)
    assert (first["iteration"], first["kind"], first["val_time"]) == ("20", "train", "")
    assert {name: float(first[name]) for name in train} == train
    assert float(second["loss"]) == float(np.float32(0.1))
    lines = (tmp_path / "logs" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"iteration": 20, "kind": "train", **train, "extra": 5.0},
        {"iteration": 20, "kind": "test", "loss": float(np.float32(0.1)), "val_time": 2.0},
    ]


@pytest.mark.parametrize("after", [1, 4, 6, 8])
def test_an_interrupted_run_writes_the_files_of_an_uninterrupted_one(
    tmp_path: Path, uninterrupted: dict[str, bytes], after: int
) -> None:
    record(tmp_path, 1, 8)
    record(tmp_path, after + 1, 10, after)
    assert read_files(tmp_path) == uninterrupted
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(uninterrupted)  # no temporary file


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.jsonl"])
def test_a_line_cut_by_a_kill_is_removed(tmp_path: Path, uninterrupted: dict[str, bytes], name: str) -> None:
    record(tmp_path, 1, 8)
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 9)
    record(tmp_path, 7, 10, 6)
    assert read_files(tmp_path) == uninterrupted


def test_lines_damaged_by_a_power_failure_are_removed(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    record(tmp_path, 1, 6)
    for name in uninterrupted:
        with open(tmp_path / name, "ab") as file:
            file.write(bytes(100) + b'\n{"iteration"\n')
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        for line in ("1", "null", "{}", '{"iteration": "1", "kind": "train"}', '{"iteration": 1, "kind": []}', "[" * 100_000):
            file.write(line.encode() + b"\n")
    record(tmp_path, 7, 10, 6)
    assert read_files(tmp_path) == uninterrupted


def test_a_repeated_validation_is_recorded_once(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    """The run was stopped between the two tests of iteration 6, and repeats the first."""
    record(tmp_path, 1, 5)
    records = Records(tmp_path, 5)
    records.write(6, "train", {"learning_rate": 0.1, "loss": 1 / 6, "top1_error": 6 / 7})
    records.write(6, "test", {"loss": 2 / 6, "val_time": 77.0})
    records = Records(tmp_path, 6)
    records.write(6, "test", {"loss": 2 / 6, "val_time": 0.5})
    records.write(6, "test_ema", {"loss": 3 / 6, "val_time": 0.5})
    record(tmp_path, 7, 10, 6)
    assert read_files(tmp_path) == uninterrupted


def test_a_new_run_replaces_the_files_of_another(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    record(tmp_path, 1, 20, tensorboard=True)
    assert read_events(tmp_path)["train/loss"][-1][0] == 20
    record(tmp_path, 1, 10, tensorboard=True)
    assert read_files(tmp_path) == uninterrupted
    assert [step for step, _ in read_events(tmp_path)["train/loss"]] == list(range(1, 11))


def test_tensorboard_shows_an_interrupted_run_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    seconds = itertools.count(1_800_000_000)  # the names of event files, which TensorBoard reads in order, contain the second
    monkeypatch.setattr("time.time", lambda: float(next(seconds)))
    threads = set(threading.enumerate())
    record(tmp_path / "a", 1, 10, tensorboard=True)
    record(tmp_path / "b", 1, 8, tensorboard=True)
    record(tmp_path / "b", 6, 10, 5, tensorboard=True)
    events = read_events(tmp_path / "a")
    assert events["train/loss"] == [(iteration, float(np.float32(1 / iteration))) for iteration in range(1, 11)]
    assert [step for step, _ in events["test_ema/loss"]] == [3, 6, 9]
    assert read_events(tmp_path / "b") == events

    # A kill during the validation of iteration 6, which is then repeated: in 'd' before the rows have reached the event files.
    for name, before in (("c", [TensorBoard]), ("d", [])):
        record(tmp_path / name, 1, 5, tensorboard=True)
        records = Records(tmp_path / name, 5, before)
        records.write(6, "train", {"learning_rate": 0.1, "loss": 1 / 6, "top1_error": 6 / 7})
        records.write(6, "test", {"loss": 2 / 6, "val_time": 0.5})
        records.close()
        records = Records(tmp_path / name, 6, [TensorBoard])
        records.write(6, "test", {"loss": 2 / 6, "val_time": 0.5})
        records.write(6, "test_ema", {"loss": 3 / 6, "val_time": 0.5})
        records.close()
        record(tmp_path / name, 7, 10, 6, tensorboard=True)
        assert read_events(tmp_path / name) == events
    assert set(threading.enumerate()) <= threads


def test_a_killed_run_keeps_every_row(tmp_path: Path) -> None:
    """TensorBoard, which is not imported before it is used, writes in a thread, which SIGKILL does not let finish."""
    pytest.importorskip("tensorboard")
    program = (
        "import os, signal, sys; from pathlib import Path; from shufflenetv2.report import Records, TensorBoard\n"
        "records = Records(Path(sys.argv[1]), 0, [TensorBoard])\n"
        "print({'tensorboard', 'matplotlib'} & set(sys.modules), flush=True)\n"
        "for iteration in range(1, 31): records.write(iteration, 'train', {'loss': 1 / iteration})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, env={**os.environ, **ONE_THREAD}, capture_output=True, timeout=100
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert (result.stdout, result.stderr) == (b"set()\n", b"")
    assert len(read_csv(tmp_path / "metrics.csv")) == 31
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 30
    assert [step for step, _ in read_events(tmp_path)["train/loss"]] == list(range(1, 31))


def test_without_tensorboard_a_warning_is_logged_and_the_other_files_are_written(
    tmp_path: Path, uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # which makes the import fail
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with caplog.at_level(logging.INFO, "shufflenetv2"):
        record(tmp_path, 1, 10, tensorboard=True)
    (message,) = [entry.getMessage() for entry in caplog.records if entry.name == "shufflenetv2"]
    assert "TensorBoard" in message
    assert "pip install tensorboard" in message
    assert "\n" not in message
    assert read_files(tmp_path) == uninterrupted


def test_records_that_cannot_be_written_raise_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read: Not a directory") as error:
        Records(tmp_path / "file", 0)
    assert error.value.status == 1
    records = Records(tmp_path / "run", 0)
    (tmp_path / "run" / "metrics.csv").unlink()
    (tmp_path / "run" / "metrics.csv").mkdir()
    with pytest.raises(UserError, match=r"metrics\.csv cannot be written: Is a directory"):
        records.write(1, "train", {"loss": 1.0})


def test_the_log_has_the_originals_lines_and_records_their_values(tmp_path: Path) -> None:
    metrics = TrainMetrics(20, 0.499967, 6.9, 0.99, 0.98, 0.01, 0.4, 2560.0, grad_norm=1.5)
    with RunLog(tmp_path, silent=True) as log:
        log.start(0, 300_000)
        log.training(metrics)
        log.test(ValidationMetrics(20, 4.1, 0.62, 0.37, 60.2, 0.3, 0.25), prefix="EMA ", final=True)
    train, test = (line.partition("] ")[2] for line in (tmp_path / "train.log").read_text().splitlines())
    assert train == (
        "TRAIN Iter 20: lr = 0.499967,\tloss = 6.900000,\tTop-1 err = 0.990000,\tTop-5 err = 0.980000,"
        "\tdata_time = 0.010000,\ttrain_time = 0.400000"
    )
    assert test == "EMA TEST Iter 20: loss = 4.100000,\tTop-1 err = 0.620000,\tTop-5 err = 0.370000,\tval_time = 60.200000"
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    values = dataclasses.asdict(metrics)
    assert values.pop("memory_mb") is None
    assert first == {"kind": "train", **values}
    assert second == {
        "iteration": 20, "kind": "test_ema_bnps", "loss": 4.1, "top1_error": 0.62, "top5_error": 0.37, "val_time": 60.2,
        "balanced_accuracy": 0.3, "macro_f1": 0.25,
    }  # fmt: skip


def test_each_class_has_its_accuracy_and_its_most_frequent_confusion(tmp_path: Path) -> None:
    counts = np.array([[8, 2, 0, 0], [1, 3, 5, 0], [0, 0, 4, 0], [0, 0, 0, 0]])
    before = counts.copy()
    write_confusion(tmp_path / "new", counts, ["cat", "dog, wild", "owl", "eel"])
    assert np.array_equal(counts, before)
    assert read_csv(tmp_path / "new" / "per_class.csv") == [
        ["class", "images", "correct", "accuracy", "most_confused_with", "times", "precision", "recall", "f1", "support"],
        ["cat", "10", "8", "0.8", "dog, wild", "2", str(8 / 9), "0.8", str(16 / 19), "10"],
        ["dog, wild", "9", "3", str(3 / 9), "owl", "5", "0.6", str(3 / 9), str(6 / 14), "9"],
        ["owl", "4", "4", "1.0", "", "", str(4 / 9), "1.0", str(8 / 13), "4"],
        ["eel", "0", "0", "", "", "", "", "", "", "0"],
    ]
    assert read_csv(tmp_path / "new" / "confusion.csv")[:2] == [
        ["true class", "cat", "dog, wild", "owl", "eel"],
        ["cat", "8", "2", "0", "0"],
    ]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "confusion.csv", "per_class.csv",
    ]  # fmt: skip


def test_tables_that_cannot_be_written_raise_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"per_class\.csv cannot be written"):
        write_confusion(tmp_path / "file", np.eye(2, dtype=np.int64), ["a", "b"])


def test_tensorboard_shows_the_network_the_images_the_mistakes_and_the_accuracy_of_classes(
    tmp_path: Path, train_here: Train
) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    finished = train_here(*SHORT, "--model-ema")
    assert finished.returncode == 0, finished.stderr
    accumulator: Any = accumulators.EventAccumulator(str(tmp_path / "logs/models"))
    accumulator.Reload()
    assert {tag: [image.step for image in accumulator.Images(tag)] for tag in accumulator.Tags()["images"]} == {
        "batch": [1, 6, 12],
        "mistakes": [6, 12],
    }
    nodes = {node.name: node for node in accumulator.Graph().node}
    assert nodes["first_conv/1"].op == "BatchNorm2d"
    assert list(nodes["first_conv/1"].input) == ["first_conv/0"]
    assert [name for name in nodes if name.startswith("classifier/")] == ["classifier/0"]

    rows = [json.loads(line) for line in (tmp_path / "logs/models/metrics.jsonl").read_text().splitlines()]
    by_class = [row for row in rows if row["kind"] == "class_accuracy"]
    assert [row["iteration"] for row in by_class] == [6, 12]
    tests = {row["iteration"]: row for row in rows if row["kind"] == "test"}
    for row in by_class:
        mean = np.mean([row[str(digit)] for digit in range(10)])
        assert mean == pytest.approx(tests[row["iteration"]]["balanced_accuracy"])
        assert ("class_accuracy/3", (row["iteration"], pytest.approx(row["3"]))) in [
            (tag, (event.step, event.value)) for tag in accumulator.Tags()["scalars"] for event in accumulator.Scalars(tag)
        ]
    assert {row[1] for row in read_csv(tmp_path / "logs/models/metrics.csv")} >= {"train", "test"}
    assert "class_accuracy" not in (tmp_path / "logs/models/metrics.csv").read_text()

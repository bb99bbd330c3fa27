"""Weights & Biases and MLflow receive every row of a run once, however often it is interrupted."""

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shufflenetv2.errors import UserError
from shufflenetv2.report import Records, RunDescription, Wandb, require_package
from shufflenetv2.report.trackers import Tracker
from tests.support import ONE_THREAD, ROOT, SHORT, Train

RUN = RunDescription("run", {"batch-size": 16})
BLOCK = 32_768  # bytes, in a file of wandb

# Writes the rows of iterations 1 to 7 and is killed.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_trackers import open_wandb, write
records = open_wandb(Path(sys.argv[1]), 0)
write(records, 1, 7)
os.kill(os.getpid(), signal.SIGKILL)
"""


class Service(Tracker):
    """Sends nothing."""

    name = "service"

    @property
    def state(self) -> dict[str, Any]:
        return self._state


def open_wandb(folder: Path, iteration: int) -> Records:
    return Records(folder, iteration, [partial(Wandb, run=RUN)])


def write(records: Records, first: int, last: int) -> None:
    for iteration in range(first, last + 1):
        records.write(iteration, "train", {"loss": 1 / iteration, "grad_norm": None})
        if iteration % 3 == 0:
            records.write(iteration, "test", {"loss": 2 / iteration})
            records.picture(iteration, "mistakes", np.zeros((8, 8, 3), np.uint8))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows in a file that wandb writes without a connection: blocks of records, as in the logs of LevelDB."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")

    def contents() -> Iterator[bytes]:
        data, position, content = path.read_bytes(), 7, b""
        while position + 7 <= len(data):
            if (rest := BLOCK - position % BLOCK) < 7:
                position += rest
                continue
            _, length, part = struct.unpack_from("<IHB", data, position)
            content += data[position + 7 : position + 7 + length]
            position += 7 + length
            if part in (1, 4):  # the whole record, or its last part
                yield content
                content = b""

    rows = []
    for content in contents():
        record = messages.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in items.items() if name == "iteration" or name.endswith("/loss")})
    return rows


def test_wandb_has_every_row_of_a_killed_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    environment = {**os.environ, **ONE_THREAD}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, env=environment, timeout=100)
    assert killed.returncode == -signal.SIGKILL
    name = json.loads((tmp_path / "wandb.json").read_text())["id"]
    records = open_wandb(tmp_path, 5)
    write(records, 6, 10)
    records.close()
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == name
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    expected = []
    for iteration in range(1, 11):
        expected.append({"iteration": iteration, "train/loss": 1 / iteration})
        if iteration % 3 == 0:
            expected.append({"iteration": iteration, "test/loss": 2 / iteration})
    assert read_rows(path) == expected


def test_mlflow_has_every_row_of_an_interrupted_run_once(
    tmp_path: Path, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlflow'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert train_here(*SHORT, "--log-mlflow", "--hook", "tests.support:Stop").returncode == 143
    assert train_here(*SHORT, "--log-mlflow").returncode == 0
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("shufflenetv2").experiment_id])
    assert (run.info.status, run.data.params["batch-size"]) == ("FINISHED", "16")
    rows = [json.loads(line) for line in (tmp_path / "logs/models/metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} >= {"train", "test", "test_bnps"}
    for name in run.data.metrics:
        kind, _, column = name.partition("/")
        received = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        steps = [row["iteration"] for row in rows if row["kind"] == kind]
        assert [step for step, _ in received] == steps
        if column == "loss":
            assert received == [(row["iteration"], row["loss"]) for row in rows if row["kind"] == kind]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_named_in_one_line(train_here: Train, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    refused = train_here(*SHORT, f"--log-{package}")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"--log-{package} needs the package {package}: pip install 'shufflenetv2[{package}]'" in refused.stderr


@pytest.mark.parametrize("content", ["", "[1]", "[" * 100_000, '{"options": 1}'])
def test_a_damaged_state_begins_a_new_run_of_the_service(tmp_path: Path, content: str) -> None:
    (tmp_path / "service.json").write_text(content)
    assert Service(tmp_path, 0, RUN).state.keys() == {"options"}


def test_a_folder_named_like_a_package_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tracker_of_runs").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="needs the package tracker_of_runs"):
        require_package("log_tracker", "tracker_of_runs")

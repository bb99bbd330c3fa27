"""A run ends early, is prolonged, and changes its recipe: what the weights, the log and the files then are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shufflenetv2.cli.command import main
from shufflenetv2.engine import Hook
from tests.support import SHORT, Run, Stop, Train, same_tensors

STOP = ("--hook", "tests.test_changes:StopAt7")


class StopAt14(Stop):
    """Send SIGTERM in iteration 14."""

    after = 14


class StopAt7(Hook):
    """End the run after iteration 7."""

    def before_run(self, run: Any) -> None:
        self.run = run

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        if iteration == 7:
            self.run.stop("seven is enough")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run with the options SHORT."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main([*SHORT, "--save", str(folder), "--log-dir", str(folder.parent / "logs")]) == 0
    return folder


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


# ---- ending early


def test_a_hook_ends_the_run_with_its_results(train_here: Train, tmp_path: Path) -> None:
    stopped = train_here(*SHORT, *STOP)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped after iteration 7: seven is enough" in stopped.stdout
    result = read(tmp_path / "models/model.pkl")
    assert result["iteration"] == 7
    assert result["accuracy"]["top1"] > 0
    assert result["stop_reason"] == "seven is enough"
    again = train_here(*SHORT, *STOP)
    assert "this run is finished" in again.stdout

    # A kill during the recalibration leaves the last checkpoint, which remembers that the run has ended.
    (tmp_path / "models/model.pkl").unlink()
    train_here(*SHORT)
    assert same_tensors(read(tmp_path / "models/model.pkl")["state_dict"], result["state_dict"])


def test_a_run_without_better_validations_ends_early_after_the_same_iteration_with_and_without_interruption(
    train_here: Train, tmp_path: Path
) -> None:
    options = [*SHORT, "--total-iters", "60", "--val-interval", "2", "--learning-rate", "1e-6", "--early-stop-iters", "6"]
    whole = train_here(*options, "--save", "whole")
    rows = map(json.loads, (tmp_path / "whole/logs/metrics.jsonl").read_text().splitlines())
    errors = {row["iteration"]: row["top1_error"] for row in rows if row["kind"] == "test"}
    last = read(tmp_path / "whole/model.pkl")["iteration"]
    best = min(iteration for iteration in errors if errors[iteration] == min(errors.values()))
    assert last == best + 6 < 60
    assert f"stopped after iteration {last}: no better top1 on validation for 6 iterations" in whole.stdout

    half = tmp_path / "half"
    half.mkdir()
    newest_but_one = sorted((tmp_path / "whole").glob("checkpoint-*"))[-2]
    (half / newest_but_one.name).write_bytes(newest_but_one.read_bytes())
    assert "continuing from" in train_here(*options, "--save", "half").stdout
    assert same_tensors(read(half / "model.pkl")["state_dict"], read(tmp_path / "whole/model.pkl")["state_dict"])


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (("--no-validate",), "--early-stop-iters needs validation results, and --no-validate rules them out"),
        (("--early-stop-iters", "0"), "--early-stop-iters 0: must be a whole number"),
    ],
)
def test_early_stopping_without_validation_is_refused(train_here: Train, options: tuple[str, ...], refusal: str) -> None:
    refused = train_here(*SHORT, "--early-stop-iters", "6", *options)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refusal in refused.stderr
    assert refused.stderr.count("\n") == 1


# ---- training longer, and under another recipe

CONSTANT = [*SHORT, "--sched", "constant", "--learning-rate", "0.01", "--model-ema", "--momentum", "0.8"]


def test_a_prolonged_run_at_a_constant_rate_has_the_bits_of_a_long_run(train_here: Train, tmp_path: Path) -> None:
    assert train_here(*CONSTANT, "--total-iters", "24", "--save", "long").returncode == 0
    assert train_here(*CONSTANT, "--total-iters", "12", "--save", "run").returncode == 0
    refused = train_here(*CONSTANT, "--total-iters", "24", "--save", "run")
    assert refused.returncode == 2
    assert "--total-iters was 12 and is 24" in refused.stderr
    assert "--prolong to train longer" in refused.stderr

    prolonged = train_here(*CONSTANT, "--total-iters", "24", "--save", "run", "--prolong")
    assert prolonged.returncode == 0, prolonged.stderr
    assert "after iteration 12: total-iters 12 -> 24; the learning rate goes from 0.01 to 0.01" in prolonged.stdout
    assert read(tmp_path / "run/model-000012.pkl")["iteration"] == 12  # the earlier results remain
    assert read(tmp_path / "run/model-ema-000012.pkl")["iteration"] == 12
    assert read(tmp_path / "run/best-000012.pkl")["recalibrated"]
    for name in ("model.pkl", "model-ema.pkl", "best.pkl"):
        assert same_tensors(read(tmp_path / "run" / name)["state_dict"], read(tmp_path / "long" / name)["state_dict"])
    assert "this run is finished" in train_here(*CONSTANT, "--total-iters", "24", "--save", "run", "--prolong").stdout
    assert "this run is finished" in train_here(*CONSTANT, "--total-iters", "24", "--save", "run").stdout


def test_a_change_of_batch_size_and_rate_is_recorded_and_continues_to_the_same_bits(
    train_here: Train, tmp_path: Path, command: Run
) -> None:
    changed = ["--batch-size", "8", "--learning-rate", "0.02", "--total-iters", "21", "--change-recipe"]
    for folder in ("whole", "stopped"):
        assert train_here(*SHORT, "--early-stop-iters", "100", "--save", folder).returncode == 0
    whole = train_here(*SHORT, *changed, "--save", "whole")
    assert whole.returncode == 0, whole.stderr
    for text in ("batch-size 16 -> 8", "early-stop-iters 100 -> None", "total-iters 12 -> 21"):
        assert text in whole.stdout
    # The k-th update uses the rate of the new schedule, and the samples go on behind the 12 batches of 16.
    assert f"TRAIN Iter 15: lr = {0.02 * (1 - 15 / 21):.6f}" in (tmp_path / "whole/logs/train.log").read_text()
    assert read(tmp_path / "whole/checkpoint-000021.pth.tar")["order_offset"] + 12 * 8 == 12 * 16

    # SIGTERM after iteration 14; the option is no longer needed afterwards.
    assert train_here(*SHORT, *changed, "--save", "stopped", "--hook", "tests.test_changes:StopAt14").returncode == 143
    assert train_here(*SHORT, *changed[:-1], "--save", "stopped").returncode == 0
    assert same_tensors(read(tmp_path / "stopped/model.pkl")["state_dict"], read(tmp_path / "whole/model.pkl")["state_dict"])

    status, described, _ = command("info", "stopped/model.pkl")
    assert status == 0
    assert "after iteration 12: total-iters 12 -> 21, batch-size 16 -> 8, learning-rate" in described


def test_an_ended_run_goes_on_when_it_is_prolonged(train_here: Train, tmp_path: Path) -> None:
    assert train_here(*SHORT, *STOP).returncode == 0
    prolonged = train_here(*SHORT, "--total-iters", "14", "--prolong")
    assert prolonged.returncode == 0, prolonged.stderr
    result = read(tmp_path / "models/model.pkl")
    assert (result["iteration"], result["stop_reason"]) == (14, "")
    assert read(tmp_path / "models/model-000007.pkl")["stop_reason"] == "seven is enough"


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (("--model-size", "1.0x", "--change-recipe"), "--model-size cannot change within a run"),
        (("--opt", "adamw", "--learning-rate", "0.001", "--change-recipe"), "--opt cannot change within a run"),
        (("--opt-kwargs", "nesterov=True", "--change-recipe"), "--opt-kwargs cannot change within a run"),
        (("--gp", "catavgmax", "--change-recipe"), "the recipe cannot change in this way within a run: "),
        (("--total-iters", "5", "--change-recipe"), "--total-iters 5 is less than the 12 iterations"),
        (("--total-iters", "5", "--prolong"), "--total-iters was 12 and is 5. Use --experiment NAME for a new run, "),
        (("--batch-size", "8", "--prolong"), "--change-recipe to go on with it"),
        (("--mixup", "0.2"), "--mixup was 0.0 and is 0.2. Use --experiment NAME for a new run, --change-recipe"),
    ],
)
def test_what_cannot_change_is_refused_in_one_line_and_nothing_is_touched(
    finished: Path, train_here: Train, options: tuple[str, ...], refusal: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*.p*")}
    refused = train_here(*SHORT, "--save", finished, *options)
    assert refused.returncode == 2
    assert refusal in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*.p*")} == before


def test_a_result_without_checkpoints_cannot_be_prolonged(finished: Path, train_here: Train, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/model.pkl").write_bytes((finished / "model.pkl").read_bytes())
    refused = train_here(*SHORT, "--total-iters", "24", "--prolong", "--save", "alone")
    assert refused.returncode == 2
    assert "no checkpoint to continue from; --initial-checkpoint alone/model.pkl starts a new run" in refused.stderr

"""A run ends early, is prolonged, and changes its recipe: what the weights, the log and the files then are."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shufflenetv2 import files
from shufflenetv2.engine import Hook
from tests.support import SHORT, Train, same_tensors

STOP = ("--hook", "tests.test_changes:StopAt7")
TEST_ERROR = re.compile(r"TEST Iter (\d+): .*?Top-1 err = ([\d.]+)")


class StopAt7(Hook):
    """End the run after iteration 7."""

    def before_run(self, run: Any) -> None:
        self.run = run

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        if iteration == 7:
            self.run.stop("seven is enough")


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
    validations = TEST_ERROR.findall(whole.stdout)[:-1]  # the last TEST line follows the recalibration
    errors = {int(iteration): float(error) for iteration, error in validations}
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

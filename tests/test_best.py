"""best.pkl holds the best validated weights, raw or averaged, and choosing them changes nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from shufflenetv2 import files
from shufflenetv2.cli.command import main, parse
from shufflenetv2.cli.evaluate import run_evaluation
from shufflenetv2.cli.train import run_training
from shufflenetv2.engine.results import set_aside
from tests.support import SHORT, Stop, Train, same_tensors

# After a warm-up with tiny steps the rate is so high that the weights become worse than those of the first validation.
DIVERGING = ["--lr", "0.1", "--warmup-iters", "5", "--warmup-lr", "1e-6", "--sched", "constant", "--eval-metric", "loss"]


def run(photographs: Path, folder: Path, *arguments: str) -> int:
    """Run eight iterations in this process, with a validation after every second."""
    common = [
        "--train-dir", str(photographs), "--val-dir", str(photographs), "--save", str(folder / "models"),
        "--log-dir", str(folder / "logs"), "--model-size", "0.5x", "--input-size", "32", "--batch-size", "6",
        "--total-iters", "8", "--display-interval", "4", "--val-interval", "2", "--save-interval", "3", "--device", "cpu",
        "--no-figures",
    ]  # fmt: skip
    return run_training(parse([*common, *arguments]))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def log(folder: Path) -> str:
    return (folder / "logs/models/train.log").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def diverged(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run whose best weights are earlier ones."""
    folder = tmp_path_factory.mktemp("diverged")
    assert run(photographs, folder, *DIVERGING) == 0
    return folder


def test_earlier_weights_that_are_better_become_the_best_model(diverged: Path, photographs: Path, tmp_path: Path) -> None:
    best, last = (read(diverged / "models" / name) for name in ("best.pkl", "model.pkl"))
    assert best["iteration"] <= 4
    assert last["iteration"] == 8
    assert best["accuracy"]["loss"] < last["accuracy"]["loss"]
    assert (best["averaged"], best["recalibrated"]) == (False, True)
    assert f"best.pkl, top-1 {best['accuracy']['top1']:.2%}, loss {best['accuracy']['loss']:.4f} on validation: the weights of "
    assert f"iteration {best['iteration']}, better than model.pkl" in log(diverged)

    # The weights are those that were validated, with recalibrated statistics; an evaluation prints the same figures.
    stored = read(diverged / "models/checkpoint-000008.pth.tar")["best_weights"]
    changed = {name for name, tensor in best["state_dict"].items() if not torch.equal(tensor, stored["state_dict"][name])}
    assert changed == {name for name in changed if "running" in name or "num_batches" in name} != set()
    figures = ["--eval", "--eval-resume", str(diverged / "models/best.pkl"), "--val-dir", str(photographs)]
    assert run_evaluation(parse([*figures, "--device", "cpu", "--log-dir", str(tmp_path)])) == 0
    line = re.search(r"TEST Iter (\d+): loss = ([\d.]+)", (tmp_path / f"eval/best-{photographs.name}/train.log").read_text())
    assert line
    assert int(line[1]) == best["iteration"]
    assert float(line[2]) == pytest.approx(best["accuracy"]["loss"], rel=1e-4)


def test_choosing_the_best_weights_changes_nothing_else(diverged: Path, photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path, *DIVERGING, "--no-validate") == 0
    models = tmp_path / "models"
    for name in ("checkpoint-000006.pth.tar", "checkpoint-000008.pth.tar", "bnps-checkpoint-000008.pth.tar", "model.pkl"):
        assert same_tensors(read(models / name)["state_dict"], read(diverged / "models" / name)["state_dict"])
    assert not (models / "best.pkl").exists()  # there is no validation that could choose


def test_averaged_weights_that_are_better_become_the_best_model(photographs: Path, tmp_path: Path) -> None:
    """The average hardly leaves the first weights, and the weights diverge after the warm-up."""
    arguments = [*DIVERGING, "--model-ema", "--model-ema-decay", "0.99999"]
    assert run(photographs, tmp_path, *arguments) == 0
    best, last, averaged = (read(tmp_path / "models" / name) for name in ("best.pkl", "model.pkl", "model-ema.pkl"))
    assert best["averaged"]
    assert best["accuracy"]["loss"] <= averaged["accuracy"]["loss"] < last["accuracy"]["loss"]
    assert "the averaged weights of iteration" in log(tmp_path)
    assert "better than model.pkl" in log(tmp_path)


@pytest.mark.parametrize("after", [3, 4, 5])
def test_a_run_stopped_around_its_best_validation_ends_with_the_same_best_model(
    diverged: Path, photographs: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stop, "after", after)
    assert run(photographs, tmp_path, *DIVERGING, "--hook", "tests.support:Stop") == 143
    so_far = read(tmp_path / "models/best.pkl")  # written at once, as validated
    assert (so_far["iteration"] <= after, so_far["recalibrated"]) == (True, False)
    assert f"best.pkl: the weights of iteration {so_far['iteration']}, top-1" in log(tmp_path)
    assert run(photographs, tmp_path, *DIVERGING) == 0
    stopped, uninterrupted = (read(folder / "models/best.pkl") for folder in (tmp_path, diverged))
    assert same_tensors(stopped.pop("state_dict"), uninterrupted.pop("state_dict"))
    assert {name: value for name, value in stopped.items() if name != "time"} == {
        name: value for name, value in uninterrupted.items() if name != "time"
    }


def test_equally_good_weights_leave_the_last_ones_the_best(photographs: Path, tmp_path: Path) -> None:
    """With three classes every top-5 error is zero."""
    assert run(photographs, tmp_path, "--eval-metric", "top5", "--model-ema") == 0
    best, last = (read(tmp_path / "models" / name) for name in ("best.pkl", "model.pkl"))
    assert same_tensors(best["state_dict"], last["state_dict"])
    assert "on validation: the weights of iteration 8, the same as in model.pkl" in log(tmp_path)


def test_the_checkpoint_with_the_best_validation_is_kept(photographs: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint-by", "metric", "--checkpoint-hist", "1", "--save-interval", "2"]
    assert run(photographs, tmp_path, *DIVERGING, *arguments) == 0
    best = read(tmp_path / "models/checkpoint-000008.pth.tar")["best_weights"]["iteration"]
    assert best <= 4
    names = {path.name for path in (tmp_path / "models").glob("checkpoint-*")}
    assert names == {f"checkpoint-00000{best}.pth.tar", "checkpoint-000008.pth.tar"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--checkpoint-hist", "2", "--no-validate"],
            "--checkpoint-by metric needs validation results, and --no-validate rules",
        ),
        ([], "--checkpoint-by has no effect without --checkpoint-hist"),
        (["--checkpoint-hist", "2"], "--checkpoint-by metric needs validation results; give --val-dir"),
    ],
)
def test_checkpoints_by_metric_need_validations(
    photographs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    common = ["--train-dir", str(photographs), "--save", str(tmp_path), "--checkpoint-by", "metric", "--device", "cpu"]
    assert main([*common, *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_a_continued_run_may_judge_by_another_metric(
    diverged: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stop, "after", 5)
    assert run(photographs, tmp_path, *DIVERGING, "--eval-metric", "top1", "--hook", "tests.support:Stop") == 143
    assert run(photographs, tmp_path, *DIVERGING) == 0
    expected, checkpoint = (read(folder / "models/checkpoint-000008.pth.tar") for folder in (diverged, tmp_path))
    # Scores by the other metric are forgotten; the best weights were kept, and are compared by the new one.
    assert checkpoint["validations"] == {k: score for k, score in expected["validations"].items() if k > 5}
    assert checkpoint["best_weights"]["iteration"] <= 4


def test_a_checkpoint_without_validations_continues_as_version_0_1_left_it(
    diverged: Path, photographs: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    content = read(diverged / "models/checkpoint-000006.pth.tar") | {"best": -0.5}
    newer = ("validations", "eval_metric", "best_weights")
    files.write(models / "checkpoint-000006.pth.tar", {name: value for name, value in content.items() if name not in newer})
    (models / "best.pth.tar").touch()
    assert run(photographs, tmp_path, *DIVERGING) == 0
    assert same_tensors(read(models / "model.pkl")["state_dict"], read(diverged / "models/model.pkl")["state_dict"])
    assert list(read(models / "checkpoint-000008.pth.tar")["validations"]) == [8]
    moved = set_aside(models)
    assert moved
    assert {path.name for path in moved.iterdir()} >= {"best.pth.tar", "best.pkl", "model.pkl", "checkpoint-000006.pth.tar"}
    assert not list(models.glob("*.p*"))


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_and_keeps_its_best_weights(
    train_here: Train, tmp_path: Path
) -> None:
    assert train_here(*SHORT).returncode == 0
    models = tmp_path / "models"
    best = (models / "best.pkl").read_bytes()
    for path in [*models.glob("*checkpoint*"), *models.glob("model*.pkl")]:
        path.unlink()
    again = train_here(*SHORT)
    assert "an earlier start was killed before its first checkpoint; its best.pkl is in models/previous-1\n" in again.stdout
    assert (models / "previous-1/best.pkl").read_bytes() == best
    assert (models / "model.pkl").exists()

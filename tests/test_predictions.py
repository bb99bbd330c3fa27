"""summary.json and predictions.csv describe every image and every class of a validation, and agree with each other."""

import csv
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shufflenetv2 import UserError
from shufflenetv2.engine import EvaluationResult, Hook, evaluate
from shufflenetv2.report import ClassCounts, Predictions, write_predictions, write_summary
from shufflenetv2.report.tables import protect, unprotect
from tests.models import write_model
from tests.support import SHORT, Run, Train


class PixelsAsLogits(nn.Module):
    """Take images (N, C, 1, 1) as logits (N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0] * self.scale


def random_predictions(images: int, n_class: int, *, scale: float = 3.0) -> tuple[EvaluationResult, Tensor, Tensor]:
    """Evaluate random logits in batches of unequal size; return the result, the probabilities and the labels."""
    rng = torch.Generator().manual_seed(images)
    logits, targets = scale * torch.randn(images, n_class, generator=rng), torch.randint(n_class, (images,), generator=rng)
    batches = zip(torch.split(logits[:, :, None, None], 7), torch.split(targets, 7), strict=True)
    return evaluate(PixelsAsLogits(), batches, predictions=True), logits.softmax(1), targets


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


@pytest.mark.parametrize("n_class", [2, 5, 100, 101])
def test_the_predictions_are_the_most_likely_classes_of_every_image_in_order(tmp_path: Path, n_class: int) -> None:
    result, probabilities, targets = random_predictions(40, n_class)
    assert result.predictions is not None
    names = [f"class {label}" for label in range(n_class)]
    write_predictions(tmp_path, result.predictions, [f"{number}.jpg" for number in range(40)], names)
    rows = read_csv(tmp_path / "predictions.csv")
    top = min(5, n_class)
    columns = ["image", "label", "prediction", "probability", "label_probability"]
    columns += [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("guess", "probability")]
    assert list(rows[0]) == columns + [f"p({name})" for name in names if n_class <= 100]
    expected = probabilities.sort(1, descending=True)
    for number, row in enumerate(rows):
        assert row["image"] == f"{number}.jpg"
        assert row["label"] == names[int(targets[number])]
        guesses = [row["prediction"], *(row[f"guess_{rank}"] for rank in range(2, top + 1))]
        assert guesses == [names[label] for label in expected.indices[number, :top].tolist()]
        values = [row["probability"], *(row[f"probability_{rank}"] for rank in range(2, top + 1))]
        assert [float(value) for value in values] == pytest.approx(expected.values[number, :top].tolist(), rel=1e-5)
        assert float(row["label_probability"]) == pytest.approx(float(probabilities[number, targets[number]]), rel=1e-5)
        if n_class <= 100:
            assert [float(row[f"p({name})"]) for name in names] == pytest.approx(probabilities[number].tolist(), rel=1e-5)


def test_the_calibration_error_is_the_gap_between_probability_and_accuracy() -> None:
    def predictions(probability: list[float], correct: list[bool]) -> Predictions:
        first = np.array(probability, np.float32)
        guesses = np.zeros((len(first), 1), np.int64)
        return Predictions((~np.array(correct)).astype(np.int64), guesses, first[:, None], first)

    # Two intervals: 0.5 on average with accuracy 1/2, and 0.9 with accuracy 1.
    assert predictions([0.48, 0.52, 0.9, 0.9], [True, False, True, True]).calibration_error() == pytest.approx(0.05)
    assert predictions([1.0, 1.0], [True, True]).calibration_error() == 0
    assert predictions([1.0, 1.0], [False, False]).calibration_error() == 1
    assert math.isnan(predictions([math.nan, 1.0], [True, True]).calibration_error())


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@a", "\tb", "\rc", "'=1", "''@", "'quoted'", "cat", "", "a=b", "猫"])
def test_formulas_are_protected_and_restored(text: str) -> None:
    field = protect(text)
    assert field[:1] not in {"=", "+", "-", "@", "\t", "\r"}
    assert unprotect(field) == text
    assert (field == text) == (not text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r")))


def test_a_run_leaves_the_predictions_of_its_best_weights(train_here: Train, tmp_path: Path) -> None:
    finished = train_here(*SHORT, "--model-ema", "--model-ema-decay", "0.5")
    assert finished.returncode == 0, finished.stderr
    folder = tmp_path / "logs/models"
    best = torch.load(tmp_path / "models/best.pkl", weights_only=True)
    summary, rows = read_summary(folder), read_csv(folder / "predictions.csv")
    accuracy = {name: summary[name] for name in ("top1", "top5", "loss", "balanced_accuracy", "macro_f1")}
    assert accuracy == best["accuracy"]
    assert (summary["iteration"], summary["final"], summary["weights"]) == (best["iteration"], True, "best.pkl")
    assert 0 <= summary["calibration_error"] <= 1

    assert summary["images"] == len(rows) == 359
    assert [row["image"] for row in rows] == [f"digits/val/{number}" for number in range(359)]
    for label, entry in enumerate(summary["classes"]):
        assert entry["name"] == str(label)
        assert entry["support"] == sum(row["label"] == str(label) for row in rows)
        assert entry["predicted"] == sum(row["prediction"] == str(label) for row in rows)
    pairs = [(int(row["label"]), int(row["prediction"])) for row in rows]
    assert {(label, guess): count for label, guess, count in summary["confusion"]} == {p: pairs.count(p) for p in pairs}
    assert summary["top1"] == pytest.approx(sum(label == guess for label, guess in pairs) / 359)
    assert [int(row["correct"]) for row in read_csv(folder / "per_class.csv")] == [e["correct"] for e in summary["classes"]]


def test_undefined_figures_are_null_in_a_summary(tmp_path: Path) -> None:
    classes = ClassCounts.from_confusion(np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]))
    write_summary(tmp_path, {"loss": math.nan, "images": 8}, classes, ["cat", "=owl", "never"], [(0, 0, 3)])
    summary = read_summary(tmp_path)
    assert (summary["loss"], summary["images"], summary["confusion"]) == (None, 8, [[0, 0, 3]])
    assert summary["classes"][1:] == [
        {"name": "=owl", "support": 4, "predicted": 3, "correct": 2, "precision": 2 / 3, "recall": 0.5, "f1": 4 / 7},
        {"name": "never", "support": 0, "predicted": 0, "correct": 0, "precision": None, "recall": None, "f1": None},
    ]


# ---- --eval


CLASSES = ["Käfer 0", "Käfer 1", "Käfer 2"]  # of `write_model`


@pytest.fixture
def beetles(tmp_path: Path, photographs: Path) -> Path:
    """Return a folder with the photographs in class folders for a model of `write_model`."""
    for source, name in zip(sorted(photographs.iterdir()), CLASSES, strict=True):
        shutil.copytree(source, tmp_path / "beetles" / name)
    return tmp_path / "beetles"


def test_an_evaluation_prints_percent_and_writes_to_a_folder_of_its_own(
    train_here: Train, tmp_path: Path, beetles: Path
) -> None:
    """The folder differs for files and images with the same name, and is the same when the evaluation is repeated."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name / "model.pkl", n_class=3)
    shutil.copytree(beetles, tmp_path / "flowers/val")
    damaged = tmp_path / "logs/eval/b-model-beetles/evaluation.json"  # says nothing, and stays
    damaged.parent.mkdir(parents=True)
    damaged.write_text("[" * 100_000)
    folders = []
    for model, images in (("a", beetles), ("b", beetles), ("a", tmp_path / "flowers/val"), ("a", beetles)):
        finished = train_here("--eval", "--eval-resume", f"{model}/model.pkl", "--val-dir", images, "--device", "cpu")
        assert finished.returncode == 0, finished.stderr
        folders.append(re.findall(r"are in (\S+)\n", finished.stdout)[0])
        summary = read_summary(tmp_path / folders[-1])
        assert f"{model}/model.pkl on {images}: 21 images, top-1 {summary['top1']:.2%}, top-5 100.00%, " in finished.stdout
        assert (summary["weights"], summary["final"]) == (f"{model}/model.pkl", True)
    assert folders[0] == folders[3] == "logs/eval/a-model-beetles"
    assert folders[1:3] == ["logs/eval/b-model-beetles-2", "logs/eval/a-model-flowers-val"]
    for fraction in ("0.3", "0.5"):  # parts of the folder that was evaluated as a whole above
        held_out = ["--train-dir", beetles, "--val-fraction", fraction, "--device", "cpu", "--no-figures"]
        finished = train_here("--eval", "--eval-resume", "a/model.pkl", *held_out)
        folders += re.findall(r"are in (\S+)\n", finished.stdout)
    assert folders[4:] == ["logs/eval/a-model-beetles-held-out", "logs/eval/a-model-beetles-held-out-2"]
    rows = read_csv(tmp_path / folders[0] / "predictions.csv")
    assert [row["image"] for row in rows] == [f"{name}/{number}.jpg" for name in CLASSES for number in range(7)]
    assert [row["label"] for row in rows] == [row["image"].partition("/")[0] for row in rows]


def test_an_exported_file_is_evaluated_like_its_weights(train_here: Train, command: Run, tmp_path: Path, beetles: Path) -> None:
    write_model(tmp_path / "model.pkl", n_class=3)
    assert command("export", "model.pkl", "model.pt", "--images", beetles)[0] == 0
    summaries = []
    for name in ("model.pkl", "model.pt"):
        arguments = ["--eval", "--eval-resume", name, "--val-dir", beetles, "--tta", "2"]
        finished = train_here(*arguments)
        assert finished.returncode == 0, finished.stderr
        summaries.append(read_summary(tmp_path / re.findall(r"are in (\S+)\n", finished.stdout)[0]))
    weights, exported = summaries
    assert exported["classes"] == weights["classes"]
    assert exported["loss"] == pytest.approx(weights["loss"], rel=1e-4)
    refused = train_here(*arguments, "--mean", "1", "2", "3")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "model.pt is an exported file, which fixes --mean; leave it out" in refused.stderr


# ---- sessions


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "sessions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_sessions_record_how_a_run_was_started_and_ended(train_here: Train, tmp_path: Path) -> None:
    stopped = train_here(*SHORT, "--hook", "tests.support:Stop")
    assert stopped.returncode == 143
    with open(tmp_path / "logs/models/sessions.jsonl", "a", encoding="utf-8") as file:
        file.write('{"event": "sta')  # as a power failure may leave it
    assert train_here(*SHORT).returncode == 0
    text = (tmp_path / "logs/models/sessions.jsonl").read_text(encoding="utf-8")
    start, end, resume, finish = (json.loads(line) for line in text.splitlines() if not line.endswith('"sta'))
    assert (start["event"], start["iteration"]) == ("start", 0)
    assert {"host", "platform", "processor", "cores", "device", "python", "torch", "numpy", "timm", "shufflenetv2"} <= set(
        start["environment"]
    )
    assert start["environment"]["torch"] == torch.__version__.partition("+")[0]
    assert (end["event"], end["iteration"], end["reason"]) == ("end", 7, "stopped by SIGTERM")
    assert (resume["event"], resume["iteration"]) == ("start", 7)
    assert (finish["event"], finish["iteration"], finish["reason"]) == ("end", 12, "finished")
    assert train_here(*SHORT).returncode == 0
    assert len((tmp_path / "logs/models/sessions.jsonl").read_text().splitlines()) == 5  # a finished run does not start


class Fail(Hook):
    """End a run with an error after the fifth iteration."""

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        if iteration == 5:
            raise UserError("`batch_size` is\nbad", status=1)


def test_the_error_that_ended_a_session_is_recorded(train_here: Train, tmp_path: Path) -> None:
    assert train_here(*SHORT, "--hook", "tests.test_predictions:Fail").returncode == 1
    end = read_sessions(tmp_path / "logs/models")[-1]
    assert (end["iteration"], end["reason"]) == (5, "error: --batch-size is bad")

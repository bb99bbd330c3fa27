"""Accuracy with equal weight for every class: compared with scikit-learn, in the log and in the files of a run."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn

from shufflenetv2.engine import EvaluationResult, evaluate
from shufflenetv2.report import ClassCounts, write_per_class
from tests.support import SHORT, Run, Train
from tests.test_engine import SynchronizingOperations

CLASSES = 6


class Lookup(nn.Module):
    """Give the logits in a table for images whose values are the row of the table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, images: Tensor) -> Tensor:
        return self.table.index_select(0, images[:, 0, 0, 0].long())


def random_results(seed: int, count: int = 60) -> tuple[Tensor, Tensor]:
    """Return logits and targets; class 4 has no images, class 5 neither images nor guesses."""
    rng = torch.Generator().manual_seed(seed)
    targets = torch.multinomial(torch.tensor([30.0, 10, 5, 1]), count, replacement=True, generator=rng)
    logits = torch.randn(count, CLASSES, generator=rng)
    logits[torch.arange(count), targets] += 1
    logits[:, 5] = -9
    return logits, targets


def batches_of(targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    images = torch.arange(len(targets)).view(-1, 1, 1, 1)
    starts = range(0, len(targets), size)
    return [(images[start : start + size], targets[start : start + size]) for start in starts]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_the_metrics_are_those_of_scikit_learn(seed: int) -> None:
    logits, targets = random_results(seed)
    result = evaluate(Lookup(logits), batches_of(targets, 7), predictions=True)
    true, predicted = targets.numpy(), logits.argmax(1).numpy()
    assert result.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(true, predicted))
    assert result.macro_f1 == pytest.approx(metrics.f1_score(true, predicted, average="macro"))
    assert 4 in predicted
    assert result.classes is not None
    expected = metrics.precision_recall_fscore_support(true, predicted, labels=range(CLASSES), zero_division=math.nan)
    for mine, scores in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(getattr(result.classes, mine), scores)
    assert result.predictions is not None
    matrix = metrics.confusion_matrix(true, predicted, labels=range(CLASSES))
    assert np.array_equal(result.predictions.confusion_matrix(CLASSES), matrix)
    assert result.predictions.confusion() == [(i, j, count) for (i, j), count in np.ndenumerate(matrix) if count]


def test_equal_logits_count_as_the_same_guess_everywhere() -> None:
    """With 16-bit logits ties are frequent."""
    logits, targets = torch.zeros(40, CLASSES), torch.arange(40) % CLASSES
    result = evaluate(Lookup(logits), batches_of(targets, 40), predictions=True)
    assert result.classes is not None
    assert result.predictions is not None
    correct = round((1 - result.top1_error) * 40)
    assert correct == result.classes.correct.sum() == result.predictions.confusion_matrix(CLASSES).trace()


def test_classes_are_counted_without_waiting_for_the_device() -> None:
    logits, targets = random_results(0, count=8)
    batches = batches_of(targets, 4)
    waits: list[int] = []
    with SynchronizingOperations() as operations:

        def observed() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in batches:
                yield batch
                waits.append(len(operations.names))

        evaluate(Lookup(logits), observed(), predictions=True)
    assert waits == [0, 0]


def test_the_score_follows_the_metric_and_an_unknown_value_is_the_worst() -> None:
    result = EvaluationResult(1.0, 0.25, 0.0, 8, balanced_accuracy=0.5, macro_f1=0.4)
    assert result.score("balanced_accuracy") == pytest.approx(-0.5)
    assert result.score("macro_f1") == pytest.approx(-0.6)
    older = EvaluationResult(1.0, 0.25, 0.0, 8)
    assert older.score("macro_f1") == -math.inf
    assert older.accuracy() == {"top1": 0.75, "top5": 1.0, "loss": 1.0}


def test_without_a_matrix_the_classes_have_all_other_columns(tmp_path: Path) -> None:
    classes = ClassCounts.from_confusion(np.array([[3, 1], [0, 0]]))
    write_per_class(tmp_path, classes, ["cat", "owl"])
    cat, owl = csv.DictReader((tmp_path / "per_class.csv").read_text().splitlines())
    assert cat == {
        "class": "cat", "images": "4", "correct": "3", "accuracy": "0.75", "most_confused_with": "", "times": "",
        "precision": "1.0", "recall": "0.75", "f1": str(6 / 7), "support": "4",
    }  # fmt: skip
    assert (owl["recall"], owl["precision"], owl["f1"], owl["support"]) == ("", "0.0", "0.0", "0")


def test_a_run_reports_the_metrics_in_its_log_and_files(train_here: Train, command: Run, tmp_path: Path) -> None:
    finished = train_here(*SHORT, "--eval-metric", "macro_f1")
    assert finished.returncode == 0, finished.stderr
    accuracy = torch.load(tmp_path / "models/model.pkl", weights_only=True)["accuracy"]
    with open(tmp_path / "logs/models/per_class.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    best = torch.load(tmp_path / "models/best.pkl", weights_only=True)["accuracy"]  # the same weights, or those of iteration 6
    assert best["balanced_accuracy"] == pytest.approx(np.mean([float(row["recall"]) for row in rows]))
    assert best["macro_f1"] == pytest.approx(np.mean([float(row["f1"]) for row in rows]))
    line = f"balanced accuracy {accuracy['balanced_accuracy']:.2%}, macro F1 {accuracy['macro_f1']:.4f}; lowest recall "
    assert finished.stdout.count(line) == 1
    assert finished.stdout.index(line) > finished.stdout.rindex("recalibrated at 12  ")

    validations = [json.loads(text) for text in (tmp_path / "logs/models/metrics.jsonl").read_text().splitlines()]
    tests = [row for row in validations if row["kind"] in ("test", "test_bnps")]
    assert [row["iteration"] for row in tests] == [6, 12, 12]
    assert tests[-1]["macro_f1"] == accuracy["macro_f1"]
    checkpoint = torch.load(tmp_path / "models/checkpoint-000012.pth.tar", weights_only=True)
    assert f"best.pkl, top-1 {best['top1']:.2%}, macro F1 " in finished.stdout
    assert checkpoint["validations"] == {row["iteration"]: row["macro_f1"] - 1 for row in tests[:-1]}
    with open(tmp_path / "logs/models/metrics.csv", encoding="utf-8") as file:
        (last,) = (row for row in csv.DictReader(file) if row["kind"] == "test_bnps")
    assert float(last["balanced_accuracy"]) == accuracy["balanced_accuracy"]

    assert f"balanced accuracy {accuracy['balanced_accuracy']:.2%}" in command("info", "models/model.pkl")[1]

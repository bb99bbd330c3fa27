"""Log folders of runs, with the files that a training writes, for the tests of the report."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shufflenetv2.config import Config
from shufflenetv2.data import Digits
from shufflenetv2.report import ClassCounts

ENVIRONMENT = {
    "host": "node-7",
    "processor": "a processor",
    "cores": 16,
    "device": "cuda:0",
    "python": "3.12.1",
    "torch": "2.15.0",
}
START = {
    "event": "start",
    "time": "2026-11-20T10:00:00+00:00",
    "iteration": 0,
    "command": ["python", "train.py", "--mixup", "0.2"],
}
END = {"event": "end", "time": "2026-11-20T12:00:00+00:00", "iteration": 400, "reason": "finished"}


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(
    folder: Path,
    *,
    class_names: Sequence[str] = tuple("0123456789"),
    sessions: Sequence[dict[str, Any]] = (START | {"environment": ENVIRONMENT}, END),
    accuracy: float = 0.9,
    options: dict[str, Any] | None = None,
) -> Path:
    """Write the files of a run on the built-in digits; a fixed tenth of the images is mistaken for the next class.

    Args:
        class_names: names of the ten classes.
        sessions: rows of sessions.jsonl.
        accuracy: of the last validation in metrics.jsonl.
        options: of the run, in addition to those of the digits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    val_set = Digits("val")
    targets, classes = val_set.targets, len(class_names)
    predictions = np.where(np.arange(len(targets)) % 10, targets, (targets + 1) % classes)
    probabilities = np.linspace(0.99, 0.3, len(targets))
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (targets, predictions), 1)
    counts = ClassCounts.from_confusion(confusion)
    columns = {
        name: getattr(counts, name).tolist() for name in ("support", "predicted", "correct", "precision", "recall", "f1")
    }
    summary = {
        "iteration": 400, "final": True, "weights": "best.pkl", "images": len(targets),
        "top1": float((predictions == targets).mean()), "top5": 1.0, "loss": 0.5, "balanced_accuracy": counts.balanced_accuracy,
        "macro_f1": counts.macro_f1, "calibration_error": 0.0625,
        "classes": [
            {"name": name} | {column: values[label] for column, values in columns.items()}
            for label, name in enumerate(class_names)
        ],
        "confusion": [[int(label), int(guess), int(confusion[label, guess])] for label, guess in np.argwhere(confusion)],
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    with open(folder / "predictions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "label", "prediction", "probability", "label_probability"])
        for index, (label, guess, probability) in enumerate(zip(targets, predictions, probabilities, strict=True)):
            names = ["'" + name if name[:1] in "=+-@" and name else name for name in (class_names[label], class_names[guess])]
            writer.writerow([val_set.name(index), *names, probability, probability if label == guess else 0.01])
    metrics: list[dict[str, Any]] = []
    for iteration in range(20, 401, 20):
        train = {
            "learning_rate": 0.05 * (1 - iteration / 400),
            "loss": 2 - iteration / 400,
            "top1_error": 0.9 - iteration / 500,
        }
        speed = {"top5_error": 0.1, "data_time": 0.01, "train_time": 0.1, "images_per_second": 640.0}
        metrics.append({"iteration": iteration, "kind": "train", **train, **speed})
        if iteration % 100 == 0:
            test = {
                "loss": 1 - iteration / 800,
                "top1_error": 1 - accuracy * iteration / 400,
                "top5_error": 0.0,
                "val_time": 1.0,
            }
            metrics.append({"iteration": iteration, "kind": "test", **test})
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "sessions.jsonl", sessions)
    values = {"dataset": "digits", "total_iters": 400, "save": f"models/{folder.name}"} | (options or {})
    (folder / "options.yaml").write_text(Config.from_values(values).with_length(1438).to_yaml())
    (folder / "train.log").write_text(
        "[2026-11-20 10:00:01] =====\nLayer (type:depth-idx)  Param #\n=====\nTotal params: 352,042\n=====\n"
        "[2026-11-20 10:00:01] ShuffleNetV2 0.5x at 32 x 32 pixels: 352,032 parameters, 0.8 M mult-adds\n"
        "[2026-11-20 10:00:02] TRAIN Iter 20: lr = 0.05\n"
    )
    return folder

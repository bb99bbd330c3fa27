"""Curves over the iterations, and calibration, from the rows in the files of a run."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .runfiles import Prediction, Row

MAX_POINTS = 600  # of a curve; more rows are averaged
CALIBRATION_BINS = 10
VALUES = ("loss", "top1_error", "top5_error", "learning_rate", "images_per_second", "grad_norm", "memory_mb")

Points = list[list[float]]  # [iteration, value]
Curves = dict[str, dict[str, Points]]  # by kind of row and name of value


def read_curves(metrics: Sequence[Row]) -> Curves:
    """Return the curves in the rows of metrics.jsonl; long curves are averaged over equal ranges."""
    curves: Curves = {}
    by_kind: dict[str, list[Row]] = defaultdict(list)
    for row in metrics:
        by_kind[str(row.get("kind"))].append(row)
    for kind, rows in by_kind.items():
        values = {
            name: [[row["iteration"], row[name]] for row in rows if isinstance(row.get(name), int | float)] for name in VALUES
        }
        curves[kind] = {name: _shorten(points) for name, points in values.items() if points}
    if train := [row for row in metrics if row.get("kind") == "train" and row.get("train_time")]:
        curves["train"]["waiting"] = _shorten([[row["iteration"], row["data_time"] / row["train_time"]] for row in train])
    return curves


def calibration(predictions: Sequence[Prediction]) -> list[list[float]]:
    """Return [mean probability, fraction right, images] of the predictions in each of ten ranges of probability."""
    if not predictions:
        return []
    # An edited file may hold anything.
    probabilities = np.clip(np.nan_to_num([row.probability for row in predictions]), 0, 1)
    is_correct = np.array([row.prediction == row.label for row in predictions])
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    rows = []
    for number in range(CALIBRATION_BINS):
        mine = bins == number
        if mine.any():
            rows.append([float(probabilities[mine].mean()), float(is_correct[mine].mean()), int(mine.sum())])
    return rows


def significant(value: float) -> float:
    """Round to six significant digits."""
    return float(f"{value:.6g}")


def _shorten(points: Points) -> Points:
    size = -(-len(points) // MAX_POINTS)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [[group[-1][0], significant(sum(value for _, value in group) / len(group))] for group in groups]

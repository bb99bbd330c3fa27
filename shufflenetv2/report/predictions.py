"""Predictions of an evaluation, image by image (predictions.csv), and their summary (summary.json)."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .classes import ClassCounts
from .records import write_file
from .tables import protect, write_csv

TOP = 5  # guesses per image
MAX_PROBABILITIES = 100  # largest number of classes for which the probabilities of all classes are kept
CALIBRATION_BINS = 15
ROWS_AT_ONCE = 1_000  # limits the memory for texts
PREDICTIONS_FILE, SUMMARY_FILE = "predictions.csv", "summary.json"


@dataclass(frozen=True)
class Predictions:
    """Predictions for the N images of a data set, in its order. K is 5, or the number of classes C if that is less.

    Attributes:
        targets: int64 (N,), the labels.
        guesses: int64 (N, K), the most likely classes, the most likely first.
        probabilities: float32 (N, K), of the guesses.
        label_probabilities: float32 (N,), of the labels.
        all_probabilities: float32 (N, C), of all classes; None for more than 100 classes.
    """

    targets: NDArray[np.int64]
    guesses: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    label_probabilities: NDArray[np.float32]
    all_probabilities: NDArray[np.float32] | None = None

    def confusion(self) -> list[tuple[int, int, int]]:
        """Return the pairs of label and first guess that occur: (label, guess, number of images), sorted."""
        pairs, counts = np.unique(np.stack((self.targets, self.guesses[:, 0])), axis=1, return_counts=True)
        return list(zip(*pairs.tolist(), counts.tolist(), strict=True))

    def confusion_matrix(self, classes: int) -> NDArray[np.int64]:
        """Return the numbers of images by label (row) and first guess (column): int64 (classes, classes)."""
        cells = np.bincount(self.targets * classes + self.guesses[:, 0], minlength=classes**2)
        return cells.reshape(classes, classes)

    def calibration_error(self) -> float:
        """Return the expected calibration error of the first guess.

        The images are grouped by the probability of the first guess, into 15 intervals of equal width. The error is the mean,
        over the images, of the distance between the mean probability and the accuracy of their group (Guo et al., 2017).
        """
        probability = self.probabilities[:, 0].astype(np.float64)
        if np.isnan(probability).any():
            return math.nan
        bins = np.clip(np.ceil(probability * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
        excess = np.bincount(bins, probability - (self.guesses[:, 0] == self.targets), CALIBRATION_BINS)
        return float(np.abs(excess).sum() / len(probability))


def write_predictions(folder: Path, predictions: Predictions, images: Sequence[str], class_names: Sequence[str]) -> None:
    """Write predictions.csv: one row per image, with its label, the guesses and their probabilities.

    Args:
        folder: destination; created if missing.
        images: N names.
        class_names: C names.

    Raises:
        UserError: the file cannot be written.
    """
    header = ["image", "label", "prediction", "probability", "label_probability"]
    for rank in range(2, predictions.guesses.shape[1] + 1):
        header += [f"guess_{rank}", f"probability_{rank}"]
    if predictions.all_probabilities is not None:
        header += [f"p({name})" for name in class_names]
    names = [protect(name) for name in class_names]

    def rows() -> Iterator[list[str]]:
        yield header
        for start in range(0, len(images), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            columns: list[list[str]] = [
                [protect(image) for image in images[part]],
                [names[label] for label in predictions.targets[part].tolist()],
            ]
            for rank, guesses in enumerate(predictions.guesses[part].T.tolist()):
                columns += [[names[guess] for guess in guesses], _decimals(predictions.probabilities[part, rank])]
                if rank == 0:
                    columns.append(_decimals(predictions.label_probabilities[part]))
            if predictions.all_probabilities is not None:
                columns += map(_decimals, predictions.all_probabilities[part].T)
            yield from map(list, zip(*columns, strict=True))

    write_csv(folder / PREDICTIONS_FILE, rows())


def _decimals(values: NDArray[np.float32]) -> list[str]:
    return ["%.6g" % value for value in values.tolist()]  # noqa: UP031 - a third faster than an f-string


def write_summary(
    folder: Path,
    figures: Mapping[str, Any],
    classes: ClassCounts,
    class_names: Sequence[str],
    confusion: list[tuple[int, int, int]],
) -> None:
    """Write summary.json: the figures of an evaluation, those of each class, and which classes were confused.

    Args:
        folder: destination; created if missing.
        figures: name -> value; NaN becomes null, as for the classes.
        confusion: (label, guess, number of images) of the pairs that occur.

    Raises:
        UserError: the file cannot be written.
    """
    columns = {
        name: getattr(classes, name).tolist() for name in ("support", "predicted", "correct", "precision", "recall", "f1")
    }
    by_class = [
        {"name": name} | {column: _number(values[label]) for column, values in columns.items()}
        for label, name in enumerate(class_names)
    ]
    summary = {name: _number(value) for name, value in figures.items()} | {"classes": by_class, "confusion": confusion}
    text = json.dumps(summary, ensure_ascii=False, allow_nan=False)
    write_file(folder / SUMMARY_FILE, text.encode(errors="backslashreplace") + b"\n")


def _number(value: Any) -> Any:
    """Return None for a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""All figures of a run, from the files in its log folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...data import Dataset
from ..classes import ClassCounts
from ..runfiles import Prediction, RunFiles
from ..series import calibration, read_curves
from ..thumbnails import read_tile, select_mistakes, select_uncertain
from .classes import draw_calibration, draw_class_accuracy, draw_confusion
from .curves import draw_curves, draw_learning_rate
from .grids import write_grid
from .style import shorten

MAX_CONFUSION_CLASSES = 2_000  # a confusion matrix of this many classes takes 32 MB
TILE = 128  # pixels


def write_figures(folder: Path, val_set: Dataset | None = None) -> None:
    """Draw what the files in the log folder of a run say into its subfolder `figures`.

    Args:
        folder: the log folder.
        val_set: the validation set, for the figures that show images.

    Raises:
        UserError: a figure cannot be written.
    """
    run, figures = RunFiles.read(folder), folder / "figures"
    curves = read_curves(run.metrics)
    if curves.get("train") or curves.get("test"):
        draw_curves(figures / "curves.png", curves)
    if rates := curves.get("train", {}).get("learning_rate"):
        draw_learning_rate(figures / "learning_rate.png", rates)
    if entries := run.summary.get("classes"):
        names = [str(entry["name"]) for entry in entries]
        columns = (np.array([entry[name] for entry in entries], np.int64) for name in ("support", "predicted", "correct"))
        draw_class_accuracy(figures / "class_accuracy.png", ClassCounts(*columns), names)
        if len(names) <= MAX_CONFUSION_CLASSES:
            counts = np.zeros((len(names), len(names)), np.int64)
            for label, guess, count in run.summary.get("confusion", []):
                counts[label, guess] = count
            draw_confusion(figures / "confusion_matrix.png", counts, names)
    if bins := calibration(run.predictions):
        draw_calibration(figures / "calibration.png", bins, run.summary.get("calibration_error"))
    if val_set is not None:
        _write_grid(figures / "mistakes.png", val_set, select_mistakes(run.predictions), "The worst mistakes")
        _write_grid(figures / "uncertain.png", val_set, select_uncertain(run.predictions), "The least certain images")


def _write_grid(path: Path, val_set: Dataset, predictions: Sequence[Prediction], title: str) -> None:
    tiles = [(row, read_tile(val_set, row, TILE)) for row in predictions]
    shown = [(row, tile) for row, tile in tiles if tile is not None]
    if not shown:
        return
    images = np.stack([tile for _, tile in shown]).transpose(0, 3, 1, 2)
    is_wrong = [row.label != row.prediction for row, _ in shown]
    captions = [prediction_caption(row) for row, _ in shown]
    write_grid(path, images, captions, columns=6, title=title, is_wrong=is_wrong)


def prediction_caption(row: Prediction) -> str:
    """Return the prediction of an image with its probability, and the label if it is another."""
    guess = f"{shorten(row.prediction, 12)} {row.probability:.0%}"
    return guess if row.label == row.prediction else f"{guess} (is {shorten(row.label, 12)})"

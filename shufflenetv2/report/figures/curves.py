"""Figures over the iterations of a run: learning curves and the learning rate."""

from collections.abc import Sequence
from pathlib import Path

from ..series import Curves, Points
from .style import ACCENT, FAINT, SECOND, as_percent, new_figure, with_separators

# kind of rows -> (name in the legend, colour, style of the line)
KINDS = {
    "train": ("training", FAINT, "-"),
    "test_ema": ("averaged weights", SECOND, "o--"),
    "test": ("validation", ACCENT, "o-"),
}
MAX_MARKERS = 40


def draw_curves(path: Path, curves: Curves) -> None:
    """Draw accuracy and loss of training and validation.

    Args:
        path: PNG file to write.
        curves: see `read_curves`.
    """
    with new_figure(path, 11, 4.2) as figure:
        accuracy, loss = figure.subplots(1, 2)
        for kind, (name, colour, style) in KINDS.items():
            values = curves.get(kind, {})
            loss_name = f"{name}, single batches" if kind == "train" else name
            for axes, points, label in (
                (accuracy, _inverted(values.get("top1_error", [])), name), (loss, values.get("loss", []), loss_name)
            ):  # fmt: skip
                if points:
                    style = style if len(points) <= MAX_MARKERS else style.replace("o", "")
                    axes.plot(*zip(*points, strict=True), style, color=colour, label=label)
        accuracy.set_title("Accuracy (top-1)")
        loss.set_title("Loss")
        as_percent(accuracy.yaxis)
        for axes in (accuracy, loss):
            with_separators(axes.xaxis)
            axes.set_xlabel("iteration")
            if axes.lines:
                axes.legend()


def draw_learning_rate(path: Path, points: Sequence[Sequence[float]], title: str = "Learning rate") -> None:
    """Draw the learning rate over the iterations.

    Args:
        points: (iteration, rate) pairs.
    """
    with new_figure(path, 7, 3.6) as figure:
        axes = figure.subplots()
        axes.plot(*zip(*points, strict=True), color=ACCENT)
        axes.set_title(title)
        axes.set_ylim(bottom=0)
        with_separators(axes.xaxis)
        axes.set_xlabel("iteration")


def _inverted(points: Points) -> Points:
    return [[iteration, 1 - error] for iteration, error in points]

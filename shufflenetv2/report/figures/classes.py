"""Figures by class: the confusion matrix and the accuracy of each class; and calibration."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..classes import ClassCounts
from .style import ACCENT, FAINT, INK, LINE, MUTED, as_percent, name_ticks, new_figure

MAX_COUNTS = 20  # largest number of classes for which the counts fit into the cells
MAX_NAMES = 60  # largest number of classes for which the names fit beside the cells
MAX_CELLS = 500  # cells in a row; more classes are combined, since cells of one pixel would be invisible
SHOWN_CLASSES = 40  # with the lowest accuracy
COLOURS = ("#ffffff", "#dfe5fa", "#9db0ef", "#5673dd", "#1f3896")  # of fractions from 0 to 1


def draw_confusion(path: Path, counts: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """Draw the confusion matrix: each row shows the fractions of a true class, on a scale on which 1 % is visible.

    Args:
        path: PNG file to write.
        counts: (C, C), number of images of a class (row) that were classified as another (column).
        class_names: C names.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    classes = len(counts)
    fractions = counts / counts.sum(1, keepdims=True).clip(1)
    block = -(-classes // MAX_CELLS)
    if block > 1:  # the maximum of each square, so that a single confusion stays visible
        padding = -classes % block
        padded = np.pad(fractions, (0, padding))
        fractions = padded.reshape(len(padded) // block, block, len(padded) // block, block).max((1, 3))
    side = min(4.4 + 0.22 * classes, 8.5) if classes <= MAX_NAMES else 8.5
    colours = LinearSegmentedColormap.from_list("fractions", COLOURS)
    with new_figure(path, side + 2.2, side + 1.2) as figure:
        axes = figure.subplots()
        axes.grid(False)
        picture = axes.imshow(
            fractions, cmap=colours, norm=PowerNorm(0.5, 0, 1), extent=(-0.5, classes - 0.5, classes - 0.5, -0.5),
            interpolation="nearest",
        )  # fmt: skip
        axes.spines[:].set_visible(True)
        images = int(counts.sum())
        subtitle = f"{images:,} images of {classes:,} classes, {counts.trace() / max(images, 1):.2%} correct"
        if block > 1:
            subtitle += f"; each square is the maximum of {block} x {block} cells"
        axes.set_title(f"Confusion matrix\n{subtitle}", fontsize=10.5)
        if classes <= MAX_NAMES:
            size = 9 if classes <= 30 else 7
            name_ticks(axes, "y", range(classes), class_names, fontsize=size)
            name_ticks(axes, "x", range(classes), class_names, fontsize=size, rotation=90)
            axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
            axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
            axes.grid(True, which="minor", color=LINE, linewidth=0.8)
            axes.tick_params(which="minor", length=0)
        axes.set_xlabel("prediction" if classes <= MAX_NAMES else "prediction (number of the class)")
        axes.set_ylabel("true class" if classes <= MAX_NAMES else "true class (number of the class)")
        if classes <= MAX_COUNTS:
            for (true, guess), count in np.ndenumerate(counts):
                colour = "white" if fractions[true, guess] > 0.3 else INK if count else FAINT
                axes.text(guess, true, abbreviate(int(count)), color=colour, ha="center", va="center", fontsize=9)
        scale = figure.colorbar(picture, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
        as_percent(scale.ax.yaxis)
        scale.outline.set_visible(False)
        scale.set_label("fraction of the true class", color=MUTED)


def abbreviate(count: int) -> str:
    """Write a count in at most seven characters."""
    return f"{count:,}" if count < 100_000 else f"{count / 1000:,.0f}k" if count < 1e7 else f"{count / 1e6:,.0f}M"


def draw_class_accuracy(path: Path, classes: ClassCounts, class_names: Sequence[str]) -> None:
    """Draw the accuracy of each class as a bar, of the 40 classes with the lowest if there are more.

    Raises:
        UserError: the file cannot be written.
    """
    order = [int(label) for label in np.argsort(classes.recall, kind="stable") if classes.support[label]][:SHOWN_CLASSES]
    labels = order[::-1]
    with new_figure(path, 8, 1.6 + 0.25 * len(labels)) as figure:
        axes = figure.subplots()
        values = classes.recall[labels]
        axes.barh(range(len(labels)), values, color=ACCENT, height=0.66)
        axes.axvline(classes.balanced_accuracy, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for position, (label, value) in enumerate(zip(labels, values, strict=True)):
            text = f"{value:.1%} of {classes.support[label]:,}"
            axes.text(1.02, position, text, va="center", ha="left", fontsize=8.5, color=MUTED)
        name_ticks(axes, "y", range(len(labels)), [class_names[label] for label in labels], fontsize=9)
        axes.grid(False, axis="y")
        axes.set_xlim(0, 1.22)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_ylim(-0.6, len(labels) - 0.4)
        as_percent(axes.xaxis)
        which = f", the {len(labels)} lowest of {len(class_names):,}" if len(labels) < len(class_names) else ""
        axes.set_title(f"Accuracy by class{which}")
        axes.set_xlabel("dashed: mean over all classes")


def draw_calibration(path: Path, bins: Sequence[Sequence[float]], error: float | None = None) -> None:
    """Draw how often predictions are right by their probability, and how many predictions have which.

    Args:
        bins: (mean probability, fraction right, images) of each range of probabilities.
        error: expected calibration error, for the title.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    probability, accuracy, images = (list(column) for column in zip(*bins, strict=True))
    with new_figure(path, 5.6, 6.2) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="ideal")
        upper.plot(probability, accuracy, "o-", color=ACCENT, label="this model")
        upper.set_title("Calibration" + (f" (expected error {error:.2%})" if error is not None else ""))
        upper.set_ylabel("fraction right")
        upper.set_ylim(0, 1.02)
        upper.legend(loc="upper left")
        as_percent(upper.yaxis)
        edges = np.clip(np.floor(np.array(probability) * 10), 0, 9) / 10
        lower.bar(edges + 0.05, images, width=0.09, color=ACCENT)
        lower.set_ylabel("images")
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True, prune="lower"))
        lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        lower.set_xlabel("probability of the prediction")
        lower.set_xlim(0, 1)
        as_percent(lower.xaxis)

"""Tables in CSV files, which programs read and people open in spreadsheets."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .classes import ClassCounts
from .records import write_file

FORMULA = re.compile(r"'*[=+\-@\t\r]")  # at the start of a field: a formula for a spreadsheet, or `protect` of such a text
PROTECTED = re.compile(r"'+[=+\-@\t\r]")

MAX_COLUMNS = 200  # largest number of classes for which confusion.csv is a matrix


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file; fields may be names of files, which need not be valid Unicode.

    Raises:
        UserError: the file cannot be written.
    """
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_file(path, table.getvalue().encode(errors="backslashreplace"))


def protect(text: str) -> str:
    """Put a ' in front of a text that a spreadsheet would take for a formula; `unprotect` removes it.

    The names of images and classes are chosen by the author of the data set, and a formula can send a table to a server.
    """
    return f"'{text}" if FORMULA.match(text) else text


def unprotect(field: str) -> str:
    """Return the text for which `protect` returned this field."""
    return field[1:] if PROTECTED.match(field) else field


def write_per_class(
    folder: Path, classes: ClassCounts, class_names: Sequence[str], confusion: NDArray[np.int64] | None = None
) -> None:
    """Write per_class.csv, with a row for each class: numbers of images, and the columns of scikit-learn's report.

    Args:
        folder: destination; created if missing.
        class_names: C names.
        confusion: (C, C), see `write_confusion`; without it the class most often confused with each class is left out.

    Raises:
        UserError: the file cannot be written.
    """
    mistakes = np.zeros((len(class_names), 1), np.int64)
    if confusion is not None:
        mistakes = confusion.copy()
        np.fill_diagonal(mistakes, 0)
    most_confused = mistakes.argmax(1)
    fractions = np.stack((classes.recall, classes.precision, classes.f1), 1).tolist()
    rows: list[list[Any]] = []
    for label, name in enumerate(class_names):
        images, times = classes.support[label], mistakes[label, most_confused[label]]
        confused_with = [protect(class_names[most_confused[label]]), times] if times else ["", ""]
        recall, precision, f1 = ("" if math.isnan(value) else value for value in fractions[label])
        rows.append([protect(name), images, classes.correct[label], recall, *confused_with, precision, recall, f1, images])
    header = ["class", "images", "correct", "accuracy", "most_confused_with", "times", "precision", "recall", "f1", "support"]
    write_csv(folder / "per_class.csv", [header, *rows])


def write_confusion(folder: Path, counts: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """Write which classes are confused with which.

    per_class.csv has one row per class. confusion.csv holds the counts: as a matrix, or, for more than 200 classes, as a list
    of those above 0.

    Args:
        folder: destination; created if missing.
        counts: (C, C) int64, number of images of a class (row) that were classified as another (column).
        class_names: C names.

    Raises:
        UserError: the files cannot be written.
    """
    write_per_class(folder, ClassCounts.from_confusion(counts), class_names, counts)
    names = [protect(name) for name in class_names]
    if len(counts) <= MAX_COLUMNS:
        matrix = ([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
        write_csv(folder / "confusion.csv", [["true class", *names], *matrix])
    else:
        pairs = ([names[true], names[guess], counts[true, guess]] for true, guess in np.argwhere(counts))
        write_csv(folder / "confusion.csv", [["true", "guess", "count"], *pairs])

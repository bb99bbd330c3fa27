"""Accuracy by class, from three counts per class: precision, recall, F1, and their means over the classes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Fractions = NDArray[np.float64]


@dataclass(frozen=True)
class ClassCounts:
    """Numbers of images by class, each int64 (n_class,). The fractions are those of scikit-learn.

    Attributes:
        support: images of the class.
        predicted: images that were classified as the class.
        correct: images of the class that were classified as the class.
    """

    support: Counts
    predicted: Counts
    correct: Counts

    @classmethod
    def from_confusion(cls, confusion: Counts) -> "ClassCounts":
        """Count from the numbers of images by true class (row) and predicted class (column)."""
        return cls(confusion.sum(1), confusion.sum(0), confusion.diagonal())

    @property
    def recall(self) -> Fractions:
        """Fraction of the images of a class that were classified as the class; NaN for a class without images."""
        return _divide(self.correct, self.support)

    @property
    def precision(self) -> Fractions:
        """Fraction of the images classified as a class that are images of it; NaN for a class that was never predicted."""
        return _divide(self.correct, self.predicted)

    @property
    def f1(self) -> Fractions:
        """Harmonic mean of precision and recall; NaN for a class that has no images and was never predicted."""
        return _divide(2 * self.correct, self.support + self.predicted)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that have images."""
        return float(np.nanmean(self.recall))

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that have images or were predicted."""
        return float(np.nanmean(self.f1))

    def lowest_recall(self) -> int:
        """Return the label of the class with the lowest recall; the first of equals."""
        return int(np.nanargmin(self.recall))


def _divide(counts: Counts, totals: Counts) -> Fractions:
    """Divide; NaN where the total is 0."""
    fractions = np.full(len(totals), np.nan)
    np.divide(counts, totals, out=fractions, where=totals > 0)
    return fractions

"""Compare the top-1 accuracy of runs: intervals, and whether the difference between two runs may be chance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .runfiles import Prediction

Z = 1.959964  # quantile of the normal distribution for intervals of 95 %
SIGNIFICANCE = 0.05


def wilson_interval(accuracy: float, images: int) -> list[float]:
    """Return the ends of the 95 % interval of an accuracy that was measured on a number of images (Wilson's score interval)."""
    center = accuracy + Z**2 / (2 * images)
    half = Z * math.sqrt(accuracy * (1 - accuracy) / images + Z**2 / (4 * images**2))
    return [max(0.0, (center - half) / (1 + Z**2 / images)), min(1.0, (center + half) / (1 + Z**2 / images))]


def mcnemar(first: Sequence[Prediction], second: Sequence[Prediction]) -> float | None:
    """Return the two-sided p-value of McNemar's exact test: the probability of so large a difference between equal models.

    Returns:
        None if the two are not predictions for the same images.
    """
    by_image = {(row.image, row.label): row.prediction == row.label for row in first}
    others = {(row.image, row.label): row.prediction == row.label for row in second}
    if not by_image or by_image.keys() != others.keys() or not len(first) == len(second) == len(by_image):
        return None
    only_first = sum(is_right and not others[image] for image, is_right in by_image.items())
    only_second = sum(is_right and not by_image[image] for image, is_right in others.items())
    differing = only_first + only_second
    combinations, total = 1, 0  # whole numbers, exact for any number of images
    for count in range(min(only_first, only_second) + 1):
        total += combinations
        combinations = combinations * (differing - count) // (count + 1)
    return min(1.0, 2 * total / (1 << differing))


def describe_interval(run: Mapping[str, Any]) -> str:
    """Return the top-1 accuracy of a run with its interval, as text."""
    if not run["interval"]:
        return "no validation result"
    low, high = run["interval"]
    summary = run["summary"]
    return f"top-1 {summary['top1']:.2%} (95% interval {low:.2%} to {high:.2%}, {summary['images']:,} images)"


def find_best(runs: Sequence[Mapping[str, Any]], predictions: Sequence[Sequence[Prediction]]) -> tuple[int | None, str]:
    """Find the run with a higher top-1 accuracy than each of the others by more than chance.

    Args:
        runs: see `collect_run`; those without an interval are left out.
        predictions: of each run. With those for the same images two runs are compared by McNemar's exact test, without by
            their intervals.

    Returns:
        (number of the run or None, a sentence about it for the user; '' if fewer than two runs have a result).
    """
    ranked = sorted((number for number, run in enumerate(runs) if run["interval"]), key=lambda n: -runs[n]["summary"]["top1"])
    if len(ranked) < 2:
        return None, ""
    best, *others = ranked
    p_values = [mcnemar(predictions[best], predictions[other]) for other in others]
    is_apart = [runs[best]["interval"][0] > runs[other]["interval"][1] for other in others]
    is_better = [apart if p is None else p < SIGNIFICANCE for p, apart in zip(p_values, is_apart, strict=True)]
    paired = [p for p in p_values if p is not None]
    test = "their 95% intervals"
    if len(paired) == len(others):
        test = f"McNemar's exact test on the same images, p = {max(paired):.2g}"
    if all(is_better):
        is_unique = [run["name"] for run in runs].count(runs[best]["name"]) == 1
        name = runs[best]["name" if is_unique else "folder"]
        return best, f"The top-1 accuracy of {name} is higher by more than chance ({test})."
    return None, f"The difference in top-1 accuracy between the best runs may be chance ({test})."

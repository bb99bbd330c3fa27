"""Describe the data of a run at its start: the classes, and warnings about validation sets that give misleading accuracies."""

from collections.abc import Sequence

import numpy as np

from .datasets import Dataset
from .duplicates import LIMIT_AT_START, file_paths, shared_files

SHOWN_CLASSES = 6
SHOWN_CHARACTERS = 24  # in a class name
UNEQUAL_RATIO = 10  # of the largest class to the smallest, from which on balancing is suggested


def find_problems(train_set: Dataset, val_set: Dataset | None, *, is_balanced: bool = False) -> list[str]:
    """Return warnings: about classes of very different size, and about a validation set that gives misleading accuracies.

    Args:
        val_set: validation set with the same classes; None if the run does not validate.
        is_balanced: the run already gives small classes more weight.
    """
    warnings = [] if is_balanced else _suggest_balancing(train_set)
    if val_set is not None:
        warnings += _warn_of_missing_classes(train_set, val_set)
        warnings += _warn_of_shared_files(train_set, val_set)
    return warnings


def describe_classes(dataset: Dataset) -> str:
    """Return the first classes, in the order of their labels, and the numbers of their images."""
    names = dataset.class_names
    counts = np.bincount(dataset.targets, minlength=len(names))
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    images = (
        f"{counts[smallest]:,} ({_shorten(names[smallest])}) to {counts[largest]:,} ({_shorten(names[largest])}) images each"
    )
    if counts[smallest] == counts[largest]:
        images = f"{counts[smallest]:,} image{'s' * bool(counts[smallest] != 1)} each"
    return f"{_enumerate(names, last=True)}; {images}"


def _suggest_balancing(dataset: Dataset) -> list[str]:
    counts = np.bincount(dataset.targets, minlength=len(dataset.class_names))
    largest, smallest = int(counts.argmax()), int(np.where(counts, counts, len(dataset) + 1).argmin())  # of those with images
    ratio = counts[largest] / counts[smallest]
    if ratio < UNEQUAL_RATIO:
        return []
    return [
        f"the largest class, {_shorten(dataset.class_names[largest])}, has {ratio:.0f} times as many images as the smallest, "
        f"{_shorten(dataset.class_names[smallest])}; `class_weights=balanced` or `balanced_sampling=True` gives small classes "
        "more weight"
    ]


def _warn_of_missing_classes(train_set: Dataset, val_set: Dataset) -> list[str]:
    trained, validated = (
        np.bincount(dataset.targets, minlength=len(train_set.class_names)) > 0 for dataset in (train_set, val_set)
    )
    missing = [train_set.class_names[label] for label in np.flatnonzero(trained & ~validated)]
    if not missing:
        return []
    return [f"no validation images of {_enumerate(missing)}; the accuracy will say nothing about them"]


def _warn_of_shared_files(train_set: Dataset, val_set: Dataset) -> list[str]:
    shared = shared_files(train_set, val_set, LIMIT_AT_START)
    if not shared.pairs:
        return []
    train_index, val_index = shared.pairs[0]
    train_path, val_path = file_paths(train_set)[train_index], file_paths(val_set)[val_index]
    example = f"{val_path} is in both" if train_path == val_path else f"{val_path} has the content of {train_path}"
    count = f"{len(shared.pairs):,}" if shared.complete else f"at least {len(shared.pairs):,}"
    return [
        f"{count} of {len(val_set):,} validation images are also training images, which makes the accuracy too high; "
        f"for example, {example}; remove the copies from one of the two sets"
    ]


def _enumerate(names: Sequence[str], *, last: bool = False) -> str:
    """Return the first few names, joined by commas; with `last`, also the last name."""
    if len(names) <= SHOWN_CLASSES:
        return ", ".join(map(_shorten, names))
    shown = [*map(_shorten, names[: SHOWN_CLASSES - 1]), "..."]
    return ", ".join([*shown, _shorten(names[-1])] if last else [*shown, f"{len(names):,} classes in all"])


def _shorten(name: str) -> str:
    return name if len(name) <= SHOWN_CHARACTERS else name[: SHOWN_CHARACTERS - 3] + "..."

"""Weights of the classes in the loss, for training sets whose classes have unequal numbers of images."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, nearest, one_line
from ..files import nearest_path, read_text_file

# Exponent of the number of images per class, which the weight is divided by.
RULES = {"balanced": 1.0, "sqrt": 0.5}


def build_class_weights(
    option: str,
    class_names: list[str],
    targets: np.ndarray,
    *,
    balanced_sampling: bool = False,
    device: torch.device | None = None,
) -> Tensor | None:
    """Return the weight of each class in the loss; None if the option is empty.

    The weights are scaled so that their mean over the samples of an epoch is 1: only their ratios matter, and the learning
    rate keeps its meaning.

    Args:
        option: 'balanced': N / (K * n) for a class with n of N images in K classes; 'sqrt': in proportion to the square
            root of this weight; or the name of a file with a weight for every class, in one of three forms: an object
            {class: weight} (.json), two columns (.csv), or lines of a class name and a weight, separated by a space.
        class_names: class names in the order of their labels.
        targets: labels of the training images, int64 (N,).
        balanced_sampling: every class is drawn equally often.
        device: device of the result; default: the CPU.

    Returns:
        float32 (n_class,). A class without images, which never counts, has the weight of a class with one image.

    Raises:
        UserError: the file cannot be read, names an unknown class, lacks a class, or has a weight that is not above 0.
    """
    if not option:
        return None
    counts = np.bincount(targets, minlength=len(class_names))
    weights = np.maximum(counts, 1) ** -RULES[option] if option in RULES else _read_weights(option, class_names)
    drawn = counts > 0 if balanced_sampling else counts
    mean = (drawn * weights).sum() / drawn.sum()
    with np.errstate(over="ignore"):
        relative = (weights / mean).astype(np.float32)
    if not (np.isfinite(relative) & (relative > 0)).all():
        raise UserError(f"`class_weights` {option}: the weights differ by more than a 32-bit number can hold")
    return torch.from_numpy(relative).to(device)


def describe_class_weights(weights: Tensor, class_names: list[str]) -> str:
    """Return a line for the log: the smallest and the largest weight."""
    smallest, largest = int(weights.argmin()), int(weights.argmax())
    return (
        f"class weights from {weights[smallest]:.3g} ({class_names[smallest]}) to {weights[largest]:.3g} "
        f"({class_names[largest]}), with mean 1 over the samples of an epoch"
    )


def _read_weights(path: str, class_names: list[str]) -> np.ndarray:
    """Read the weights in the order of the labels."""
    weights: dict[str, float] = {}
    known = set(class_names)
    for name, text in _pairs(path):
        if name not in known:
            near = nearest(name, class_names)
            raise UserError(
                f"`class_weights` {path} names the class {name!r}, which is none of the {len(class_names)} classes of the "
                f"training images; {f'did you mean {near!r}?' if near else 'remove it'}"
            )
        if name in weights:
            raise UserError(f"`class_weights` {path} names the class {name!r} twice; remove one of the two lines")
        try:
            weights[name] = float(text)
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise UserError(f"`class_weights` {path} gives {name!r} the weight {text}: must be a number above 0")
    if missing := [name for name in class_names if name not in weights]:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"`class_weights` {path} has no weight for the class {missing[0]!r}{others}; add a line for each class")
    return np.array([weights[name] for name in class_names])


def _pairs(path: str) -> Iterator[tuple[str, str]]:
    """Yield the class names and the texts of their weights in a file."""
    try:
        content = read_text_file(path, "utf-8-sig")
    except FileNotFoundError as error:
        near = nearest(path, RULES) or nearest_path(path)
        remedy = f"did you mean {near}?" if near else "it may also be balanced or sqrt"
        raise UserError(f"`class_weights` {path} cannot be read: {error.strerror}; {remedy}") from error
    except OSError as error:
        raise UserError(f"`class_weights` {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"`class_weights` {path} is not UTF-8 text; it should hold a class and its weight per line") from error
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        yield from _pairs_of_json(path, content)
        return
    lines = content.split("\n")
    try:
        rows = list(csv.reader(lines)) if suffix == ".csv" else [line.rsplit(maxsplit=1) for line in lines]
    except csv.Error as error:
        raise UserError(f"`class_weights` {path} is not a table: {error}") from error
    for number, row in enumerate(rows, 1):
        fields = [field.strip() for field in row]
        if fields in ([], ["class", "weight"]):  # an empty line, or the heading of a table
            continue
        if len(fields) != 2:
            raise UserError(f"`class_weights` {path}, line {number}: must hold a class and its weight")
        yield fields[0], fields[1]


def _pairs_of_json(path: str, content: str) -> Iterator[tuple[str, str]]:
    try:
        # A list of pairs instead of a dict, which would hide a class that is named twice.
        pairs = json.loads(content, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise UserError(f"`class_weights` {path} is not JSON: {one_line(error)}") from error
    if not (content.lstrip().startswith("{") and all(isinstance(weight, int | float) for _, weight in pairs)):
        raise UserError(f'`class_weights` {path} must hold an object of classes and numbers, such as {{"cat": 1.5}}')
    yield from ((name, str(weight)) for name, weight in pairs)

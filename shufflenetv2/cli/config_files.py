"""YAML files of options, their base files, and what wins where several of them and the command line give an option."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import GivenRate, read_yaml
from ..errors import UserError
from .parser import OptionParser

# A later source of options that gives the first removes the second.
ALTERNATIVES = (
    ("epochs", "total_iters"),
    ("total_iters", "epochs"),
    ("data_dir", "train_dir"),
    ("data_dir", "val_dir"),
    ("save", "experiment"),
)
MAX_BASES = 20
LEARNING_RATES = ("learning_rate", "warmup_lr", "min_lr")


@dataclass(frozen=True)
class Layer:
    """Options from one source: a file, or the command line.

    Attributes:
        source: name of the file; empty for the command line.
        values: by name of option.
        spellings: how the source names the options.
    """

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    spellings: dict[str, str] = field(default_factory=dict)


def read_layers(path: Path, parser: OptionParser, including: Sequence[Path] = ()) -> list[Layer]:
    """Return the options in a file, after those in the file that it names as its base.

    Args:
        parser: of the command whose options the file may hold.
        including: the files that led to this one by naming their base.

    Raises:
        UserError: for a file that cannot be read, is no mapping, or holds an unknown or repeated name; for a base that
            leads back to the file.
    """
    content = read_yaml(path)
    real_path = Path(os.path.realpath(path))
    if real_path in including:
        chain = " -> ".join(file.name for file in (*including, path))
        raise UserError(f"'base' in {including[-1]} leads back to {path.name}: {chain}")
    if len(including) > MAX_BASES:
        raise UserError(f"'base' in {including[-1]}: more than {MAX_BASES} files that build on each other are not accepted")
    by_key = {name: option for option in parser.options for name in (option.key, *(alias[2:] for alias in option.aliases))}
    base = content.pop("base", None)
    layers = [] if base is None else read_layers(path.parent / str(base), parser, [*including, real_path])
    layer = Layer(str(path))
    for key, value in content.items():
        option = by_key.get(str(key).replace("_", "-"))
        if option is None:
            raise UserError(parser.unknown_option(str(key), f"in {path}"))
        if option.name == "config":
            raise UserError(f"'config' in {path}: a file names the file that it builds on as 'base'")
        if option.name in layer.values:
            raise UserError(f"{key!r} in {path} gives {option.key} a second time")
        if isinstance(value, bool) and (implied := option.accepts.implied):
            value = implied if value else None
        if value is not None:
            layer.values[option.name] = value
            layer.spellings[option.name] = f"{key} in {path}"
    return [*layers, layer]


def merge(layers: Sequence[Layer]) -> tuple[dict[str, Any], list[GivenRate]]:
    """Return the options of all layers, of which later ones win, and the learning rates that were given for a batch size.

    Where a later layer changes the batch size alone, the learning rate has to be scaled in proportion, and with it the rates
    at which the schedule begins and ends.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        for name, removed in ALTERNATIVES:
            if name in layer.values and removed not in layer.values:
                values.pop(removed, None)
        values |= layer.values
    given_rates = [given for name in LEARNING_RATES if (given := _given_rate(name, layers))]
    return values, given_rates if given_rates and given_rates[0].name == "learning_rate" else []


def _given_rate(name: str, layers: Sequence[Layer]) -> GivenRate | None:
    """Return the batch size for which a learning rate was given; None if it is the final one, or unknown."""
    places = [number for number, layer in enumerate(layers) if name in layer.values]
    if not places:
        return None
    before = [layer.values["batch_size"] for layer in layers[: places[-1] + 1] if "batch_size" in layer.values]
    is_changed = any("batch_size" in layer.values for layer in layers[places[-1] + 1 :])
    if not (before and is_changed and re.fullmatch("0*[1-9][0-9]{0,8}", str(before[-1]))):
        return None
    return GivenRate(name, int(before[-1]), layers[places[-1]].source)

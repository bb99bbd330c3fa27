"""The command `shufflenetv2 info`: what a weight file is."""

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.declaration import Parser, flag
from .command import exit_status, parse

NAMES_SHOWN = 5


def main(argv: Sequence[str], prog: str = "shufflenetv2 info") -> int:
    """Prints what the weight file is that the arguments name.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong use.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the table's lines is no reason to fail
    try:
        given = parser(prog).parse_args(argv)
        told = describe(given.model)
        plain = {name: told[name] for name in told if name != "table"}
        print(json.dumps(plain, indent=2) if given.json else shown(told), flush=True)
    except BrokenPipeError:  # by `| head`; whatever Python would still write goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        return exit_status(error, prog)
    return 0


def parser(prog: str) -> argparse.ArgumentParser:
    """The arguments and their help."""
    found = Parser(prog=prog, allow_abbrev=False, description="Says what a weight file is, whoever wrote it.")
    found.add_argument("model", metavar="MODEL", type=Path, help="weight file of any origin")
    found.add_argument("--json", action="store_true", help="for programs to read")
    return found


def describe(path: str | Path) -> dict[str, Any]:
    """What a weight file of any origin is, as plain values.

    Returns:
        path, bytes, origin ('shufflenetv2', 'original', 'torchvision' or 'mmpretrain'), model_size, layout
        ('original', 'torchvision', or 'both' where they are the same), head_bias, pooling, bn_eps, n_class,
        class_names, preprocessing, iteration, accuracy, options (the recipe), version, host and time;
        parameters, mult_adds (at the size of its input) and table (torchinfo's, of its layers). What
        the file does not tell is None.

    Raises:
        WeightsError: for a file that is missing, damaged, or holds something else.
    """
    import dataclasses

    import torchinfo  # here, since torch takes seconds to load: not for help, nor for a mistyped option

    from ..network import SIZES, STEM_CHANNELS
    from ..weights import Preprocessing
    from ..weights.convert import read_any

    weights = read_any(path)
    network = weights.network()
    side = (weights.preprocessing or Preprocessing()).input_size
    summary = torchinfo.summary(
        network, (1, 3, side, side), depth=2, mode="eval", device="cpu", verbose=0,
        col_names=("output_size", "num_params", "mult_adds"),
    )  # fmt: skip
    architecture = dict(network.architecture)
    if SIZES[weights.model_size][0][0] == 2 * STEM_CHANNELS:
        architecture["layout"] = "both"
    told = {name: weights.details.get(name) for name in ("accuracy", "options", "version", "host", "time")}
    return {
        "path": str(path),
        "bytes": weights.path.stat().st_size,
        "origin": weights.origin,
        "model_size": weights.model_size,
        **architecture,
        "n_class": weights.n_class,
        "class_names": weights.class_names,
        "preprocessing": dataclasses.asdict(weights.preprocessing) if weights.preprocessing else None,
        "iteration": weights.iteration or None,
        **told,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "mult_adds": summary.total_mult_adds,
        "table": str(summary).replace("(Units.MEGABYTES)", "(M)"),  # what torchinfo prints since Python 3.11
    }


def shown(told: Mapping[str, Any]) -> str:
    """What `describe` gave, for people."""
    names = told["class_names"]
    some = f": {', '.join(names[:NAMES_SHOWN])}{', ...' if len(names) > NAMES_SHOWN else ''}" if names else ", without names"
    lines = {
        "origin": told["origin"],
        "layout": f"{told['layout']}; head {'with' if told['head_bias'] else 'without'} biases, pooling {told['pooling']}, "
        f"batch norm's epsilon {told['bn_eps']:g}",
        "classes": f"{told['n_class']:,}{some}",
        "preprocessing": _preprocessing(told["preprocessing"]),
        "iteration": told["iteration"] and f"{told['iteration']:,}",
        "accuracy": _accuracy(told["accuracy"]),
        "recipe": _recipe(told["options"]),
        "written": told["host"] and f"by version {told['version']} on {told['host']} at {told['time']}",
        "parameters": f"{told['parameters']:,} ({told['bytes']:,} bytes)",
        "mult-adds": f"{told['mult_adds'] / 1e6:,.1f} M",
    }
    heading = f"{told['path']}: ShuffleNetV2 {told['model_size']}"
    return "\n".join([heading, *(f"  {name:<15}{text}" for name, text in lines.items() if text), told["table"]])


def _preprocessing(use: Mapping[str, Any] | None) -> str:
    if use is None:
        return "not in the file; the original's is a short side of 256, central 224 x 224 pixels, BGR, 0..255"
    mean, std = (", ".join(f"{value:g}" for value in use[name]) for name in ("mean", "std"))
    side = use["input_size"]
    return (
        f"short side {use['resize_size']} ({use['interpolation']}), central {side} x {side} pixels; "
        f"BGR, 0..255, mean {mean}, std {std}"
    )


def _accuracy(accuracy: Mapping[str, float] | None) -> str:
    if accuracy is None:
        return ""
    return f"top-1 {accuracy['top1']:.2%}, top-5 {accuracy['top5']:.2%}, loss {accuracy['loss']:.4f}"


def _recipe(options: Mapping[str, Any] | None) -> str:
    """The options of the run that are not the published recipe's, as they would be given."""
    if options is None:
        return ""
    published = parse(["--train-dir=."]).recipe()
    differing = [
        f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in options.items()
        if value not in (None, "", ()) and value != published.get(name)
    ]
    return " ".join(differing) or "the published one"

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
        from ..weights import describe  # here because torch takes seconds to import

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

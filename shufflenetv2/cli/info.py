"""The command `shufflenetv2 info`: describe a weight file, or an exported file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import terminal
from ..config import Config, InfoConfig, describe_changes
from ..errors import UserError, printable
from .command import run_command
from .parser import OptionParser

DESCRIPTION = """\
Describe a weight file: its origin, network, preprocessing and training. Of a file that `shufflenetv2 export` wrote, describe
the input, classes and preprocessing, without executing TorchScript (.pt) or torch's exported programs (.pt2), which are code.
"""
FORMATS = {
    "onnx": "an ONNX model",
    "torchscript": "a TorchScript program",
    "exported": "a program of torch.export",
    "executorch": "an ExecuTorch program",
}
MAX_CLASS_NAMES = 5


def main(argv: Sequence[str], prog: str = "shufflenetv2 info") -> int:
    """Print the description of a weight file or an exported file.

    Returns:
        The exit status: 0 done; 1 failed; 2 wrong usage.
    """
    parser = OptionParser(prog, InfoConfig, description=DESCRIPTION)

    def run() -> None:
        config = parser.parse_group(InfoConfig, argv)
        from ..export.runtimes import describe_exported, identify_format  # here because torch takes seconds to import
        from ..weights import describe

        if format := identify_format(Path(config.model)):
            if config.use_ema:
                raise UserError(f"{config.model} is {FORMATS[format]}: `use_ema` is for checkpoints; leave it out")
            info = describe_exported(Path(config.model), format)
            text = format_exported(info)
        else:
            info = describe(config.model, use_ema=config.use_ema, check_weights=config.check_weights)
            text = format_info(info)
        if config.json:
            text = json.dumps({name: value for name, value in info.items() if name != "table"}, indent=2)
        terminal.write_result(text)

    return run_command(parser, run)


def format_info(info: Mapping[str, Any]) -> str:
    """Format the result of `describe` as lines of text."""
    lines = {
        "origin": info["origin"],
        "layout": f"{info['layout']}; head {'with' if info['head_bias'] else 'without'} biases, pooling {info['pooling']}, "
        f"batch-norm epsilon {info['bn_eps']:g}",
        "classes": _format_classes(info["n_class"], info["class_names"]),
        "preprocessing": _format_preprocessing(info["preprocessing"]),
        "iteration": info["iteration"] and f"{info['iteration']:,}",
        "ended early": info["stop_reason"],
        "changed": _format_history(info["history"]),
        "weights": _format_weights(info["averaged"], info["recalibrated"]),
        "accuracy": _format_accuracy(info["accuracy"]),
        "recipe": _format_recipe(info["options"]),
        "written": info["host"] and f"by version {info['version']} on {info['host']} at {info['time']}",
        "parameters": f"{info['parameters']:,} ({info['bytes']:,} bytes)",
        "mult-adds": f"{info['mult_adds'] / 1e6:,.1f} M",
    }
    return "\n".join([_format_lines(f"{info['path']}: ShuffleNetV2 {info['model_size']}", lines), info["table"]])


def format_exported(info: Mapping[str, Any]) -> str:
    """Format the result of `describe_exported` as lines of text."""
    names = info["class_names"]
    lines = {
        "input": info["input"],
        "classes": _format_classes(len(names), names) if names else "without names",
        "preprocessing": f"{info['geometry']}; {info['interpolation']}, normalized in the model",
        "written": info["version"] and f"by version {info['version']}",
        "bytes": f"{info['bytes']:,}",
    }
    return _format_lines(f"{info['path']}: ShuffleNetV2 {info['model_size']}, {FORMATS[info['format']]}", lines)


def _format_lines(heading: str, lines: Mapping[str, str | None]) -> str:
    return "\n".join(map(printable, [heading, *(f"  {name:<15}{text}" for name, text in lines.items() if text)]))


def _format_classes(count: int, names: list[str] | None) -> str:
    if not names:
        return f"{count:,}, without names"
    return f"{count:,}: {', '.join(names[:MAX_CLASS_NAMES])}{', ...' if len(names) > MAX_CLASS_NAMES else ''}"


def _format_preprocessing(preprocessing: Mapping[str, Any] | None) -> str:
    if preprocessing is None:
        return "not in the file; the original's is a short side of 256, central 224 x 224 pixels, BGR, 0..255"
    from ..weights import Preprocessing  # here because torch takes seconds to import

    mean, std = (", ".join(f"{value:g}" for value in preprocessing[name]) for name in ("mean", "std"))
    geometry = Preprocessing(**preprocessing).describe_geometry()
    channels = "BGR" if len(preprocessing["mean"]) == 3 else "grey"
    return f"{geometry}; {preprocessing['interpolation']}, {channels}, 0..255, mean {mean}, std {std}"


def _format_weights(averaged: bool | None, recalibrated: bool | None) -> str:
    facts = ["averaged (EMA)"] * bool(averaged)
    if recalibrated is not None:
        facts.append("batch norm recalibrated" if recalibrated else "batch norm not recalibrated")
    return ", ".join(facts)


def _format_accuracy(accuracy: Mapping[str, float] | None) -> str:
    if accuracy is None:
        return ""
    text = f"top-1 {accuracy['top1']:.2%}, top-5 {accuracy['top5']:.2%}, loss {accuracy['loss']:.4f}"
    if not {"balanced_accuracy", "macro_f1"} <= accuracy.keys():  # a file of version 0.1.0
        return text
    return f"{text}, balanced accuracy {accuracy['balanced_accuracy']:.2%}, macro F1 {accuracy['macro_f1']:.4f}"


def _format_history(history: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the changes of the recipe, one after the other."""
    return "; ".join(
        f"after iteration {change['iteration']:,}: {describe_changes(change['options'])}" for change in history or ()
    )


def _format_recipe(options: Mapping[str, Any] | None) -> str:
    """Return the options that differ from the published recipe, as they would be given on the command line."""
    if options is None:
        return ""
    published = Config.from_values({"train_dir": "."}).recipe()
    differing = [
        f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in options.items()
        if value not in (None, "", ()) and value != published.get(name)
    ]
    return " ".join(differing) or "the published one"

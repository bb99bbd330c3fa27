"""The program `shufflenetv2 COMMAND ...`, which `python -m shufflenetv2` starts, too."""

import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__
from .errors import nearest

# name: (module in cli/ with the function `main`, imported when the command runs; description)
COMMANDS = {
    "train": ("command", "train a network, or evaluate one; same as train.py"),
    "preview": ("preview", "draw augmented batches and the learning rate of a training, without training"),
    "check": ("check", "find damaged images, copies and unequal classes before a training"),
    "prepare": ("prepare", "shrink a data set once, so that training reads and decodes less"),
    "info": ("info", "describe a weight file"),
    "convert": ("convert", "convert weights between this program, the original, torchvision and mmpretrain"),
    "recalibrate": ("recalibrate", "recompute the batch-norm statistics of a weight file"),
    "export": ("export", "write weights as ONNX, TorchScript, an exported program or ExecuTorch"),
    "predict": ("predict", "print the most likely classes of images"),
    "report": ("report", "write the page report.html about a run again, or one that compares several runs"),
    "schema": ("schema", "print a JSON schema for YAML files of options, for editors"),
}

USAGE = "usage: shufflenetv2 COMMAND [option ...]"
HELP = "\n".join(
    [
        USAGE,
        "",
        "Train, evaluate, convert and export ShuffleNetV2.",
        "",
        "commands:",
        *(f"  {name:<13}{description}" for name, (_, description) in COMMANDS.items()),
        "",
        "shufflenetv2 COMMAND --help shows the options of a command, shufflenetv2 --version the version.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names.

    Returns:
        The exit status of the command; 2 for a missing or unknown name.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if name == "--version":
        print(f"shufflenetv2 {__version__}")
        return 0
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        if name:
            print(
                f"shufflenetv2: error: unknown command {name!r}; "
                + (f"did you mean {near}?" if near else "--help lists the commands"),
                file=sys.stderr,
            )
        else:
            print(HELP, file=sys.stderr)
        return 2
    module = import_module(f".cli.{COMMANDS[name][0]}", __package__)
    status: int = module.main(arguments, prog=f"shufflenetv2 {name}")
    return status


if __name__ == "__main__":
    sys.exit(main())

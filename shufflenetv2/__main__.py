"""The program `shufflenetv2 COMMAND ...`, which `python -m shufflenetv2` starts, too."""

import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__, terminal
from .errors import nearest

# name: (module in cli/ with the function `main`, imported when the command runs; description)
COMMANDS = {
    "train": ("command", "train a network, or evaluate one; same as train.py"),
    "preview": ("preview", "draw augmented batches and the learning rate of a training, without training"),
    "check": ("check", "find damaged images, copies and unequal classes before a training"),
    "prepare": ("prepare", "shrink a data set once, so that training reads and decodes less"),
    "info": ("info", "describe a weight file or an exported file"),
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


def main(argv: Sequence[str] | None = None, prog: str = "") -> int:
    """Run the command that the first argument names.

    Args:
        argv: the words after the name of the program; default: those of this process.
        prog: name of the program in messages; default: `shufflenetv2 COMMAND`.

    Returns:
        The exit status of the command; 2 for a missing or unknown name.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help", "help"):
        terminal.show(*HELP.split("\n"), important=True)
        return 0
    if name == "--version":
        terminal.show(f"shufflenetv2 {__version__}", important=True)
        return 0
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        if name:
            remedy = f"did you mean {near}?" if near else "--help lists the commands"
            terminal.write_error(f"shufflenetv2: error: unknown command {name!r}; {remedy}")
        else:
            for line in HELP.split("\n"):
                terminal.write_error(line)
        return 2
    prog = prog or f"shufflenetv2 {name}"
    try:
        module = import_module(f".cli.{COMMANDS[name][0]}", __package__)
        status: int = module.main(arguments, prog=prog)
    except ModuleNotFoundError as error:
        if (error.name or __package__).partition(".")[0] == __package__ or "--debug" in arguments:
            raise
        remedy = "activate its environment with `. .venv/bin/activate`, or make it with `make install`"
        terminal.write_error(f"{prog}: error: {error.name}, which this program needs, is not installed here; {remedy}")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())

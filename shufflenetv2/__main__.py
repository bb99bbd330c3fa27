"""python -m shufflenetv2 COMMAND ..., and the console script of the same name."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module


def _in(module: str) -> Callable[..., int]:
    """The `main` in a module, which is not loaded before it is called."""

    def main(argv: Sequence[str], **how: str) -> int:
        status: int = import_module(module, __package__).main(argv, **how)
        return status

    return main


COMMANDS = {
    "train": _in(".cli.command"),
    "prepare": _in(".cli.prepare"),
    "info": _in(".cli.info"),
    "convert": _in(".cli.convert"),
    "recalibrate": _in(".cli.recalibrate"),
    "export": _in(".cli.export"),
    "predict": _in(".cli.predict"),
}


def main() -> int:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        print(f"usage: shufflenetv2 {{{','.join(COMMANDS)}}} ...  (shufflenetv2 train --help tells more)", file=sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    return COMMANDS[name](arguments, prog=f"shufflenetv2 {name}")


if __name__ == "__main__":
    sys.exit(main())

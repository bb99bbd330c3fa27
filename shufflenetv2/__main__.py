"""python -m shufflenetv2 COMMAND ..., and the console script of the same name."""

import sys
from collections.abc import Callable

from . import command
from .deploy import prepare

COMMANDS: dict[str, Callable[..., int]] = {"train": command.main, "prepare": prepare.main}


def main() -> int:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        print(f"usage: shufflenetv2 {{{','.join(COMMANDS)}}} ...  (shufflenetv2 train --help tells more)", file=sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    return COMMANDS[name](arguments, prog=f"shufflenetv2 {name}")


if __name__ == "__main__":
    sys.exit(main())

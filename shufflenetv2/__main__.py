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
    "train": _in(".command"),
    "prepare": _in(".deploy.prepare"),
    "info": _in(".deploy.info"),
    "convert": _in(".deploy.convert"),
    "recalibrate": _in(".deploy.recalibrate"),
    "export": _in(".deploy.export"),
    "predict": _in(".deploy.predict"),
}


def main() -> int:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        print(f"usage: shufflenetv2 {{{','.join(COMMANDS)}}} ...  (shufflenetv2 train --help tells more)", file=sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    return COMMANDS[name](arguments, prog=f"shufflenetv2 {name}")


if __name__ == "__main__":
    sys.exit(main())

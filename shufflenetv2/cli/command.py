"""The command `train.py`: what was asked for, and how it ended."""

import io
import os
import sys
from collections.abc import Sequence

from ..config.declaration import OptionsError
from ..config.options import parse
from ..errors import UserError


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Trains or evaluates, as the arguments say.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong use, 143 and 130 stopped by SIGTERM and SIGINT.
        Whatever the user can mend is one line on the standard error; `--debug` shows the traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv  # until the options are known
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the summary's lines is no reason to fail
    try:
        options = parse(argv, prog)
        debug = options.debug
        from . import train  # torch takes seconds to load: not for help, nor for a mistyped option

        if options.throughput:
            return train.run_throughput(options)
        return (train.run_evaluation if options.eval else train.run_training)(options)
    except (Exception, KeyboardInterrupt) as error:
        return exit_status(error, prog, debug)


def exit_status(error: Exception | KeyboardInterrupt, prog: str, debug: bool = False) -> int:
    """The exit status of a command that ended with this error, of which it prints one line.

    Raises:
        Exception: the error itself, where it is none that the user can mend, or to debug.
    """
    status, line = 1, f"{prog}: error: {error}"
    if isinstance(error, KeyboardInterrupt):
        status, line = 130, f"{prog}: interrupted"
    elif debug:
        raise error
    elif isinstance(error, UserError):
        status = error.status
        # All processes that torchrun started have the same options, and one complains for all.
        if isinstance(error, OptionsError) and os.environ.get("RANK", "0") != "0":
            return status
    elif isinstance(error, OSError) and error.filename is not None:
        line = f"{prog}: error: {error.filename}: {error.strerror}"
    elif type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        line = f"{prog}: error: --torchcompile failed: {str(error).splitlines()[0]}; --debug tells more"
    elif isinstance(error, RuntimeError) and "out of memory" in str(error):
        line = f"{prog}: error: the device is out of memory; use a smaller --batch-size or --val-batch-size"
    else:
        raise error
    print(line, file=sys.stderr)
    return status

"""The command `train.py`: what was asked for, and how it ended."""

import io
import os
import sys
from collections.abc import Sequence

from . import UserError
from .options import OptionsError, parse


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
        from . import run  # torch takes seconds to load: not for help, nor for a mistyped option

        return (run.run_evaluation if options.eval else run.run_training)(options)
    except UserError as error:
        if debug:
            raise
        # All processes that torchrun started have the same options, and one complains for all.
        if not isinstance(error, OptionsError) or os.environ.get("RANK", "0") == "0":
            print(f"{prog}: error: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        if debug or error.filename is None:
            raise
        print(f"{prog}: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not debug and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            print(f"{prog}: error: --torchcompile failed: {str(error).splitlines()[0]}; --debug tells more", file=sys.stderr)
            return 1
        if debug or "out of memory" not in str(error):
            raise
        print(f"{prog}: error: the device is out of memory; use a smaller --batch-size or --val-batch-size", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130

"""The training command: read its options, run it, and turn the way it ended into an exit status."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config import GROUPS, Config
from ..errors import UserError
from .config_files import Layer, merge, read_layers
from .parser import OptionParser

DESCRIPTION = "Train and evaluate ShuffleNetV2. Run the same command again after an interruption, and it continues."
EXAMPLES = """examples:
  train on the built-in digits:     {prog} --config configs/digits.yaml
  train on your own images:         {prog} --model-size 1.0x --train-dir DIR --val-dir DIR
  evaluate the resulting model:     {prog} --eval --eval-resume models/model.pkl --val-dir DIR
"""

_EPOCHS = ", in iterations; an epoch has (number of training images) / --batch-size iterations"
# Options of other trainers that have no meaning here.
REFUSED = {
    "apex-amp": "apex is not used any more; use --amp",
    "native-amp": "there is no other implementation any more; use --amp",
    "local-rank": "torchrun gives each process its number; leave it out",
    "use-multi-epochs-loader": "the iterator never restarts; leave it out",
    "epoch-repeats": "the iterator never restarts; --epochs or --total-iters gives the length",
    "no-prefetcher": "batches are always loaded ahead; leave it out",
    "pin-mem": "memory is pinned where there is a GPU; leave it out",
    "start-epoch": "a run continues where it was; --resume continues from a checkpoint in another folder",
    "arch": "here it is --model-size",
    "auto-augment": "here it is --aa",
    "cutmix-alpha": "here it is --cutmix",
    "data": "here it is --data-dir",
    "drop-rate": "here it is --drop",
    "mixup-alpha": "here it is --mixup",
    "nesterov": "here it is --opt nesterov",
    "random-erase": "here it is --reprob",
    "val-freq": "here it is --val-interval",
    "wd": "here it is --weight-decay",
    "warmup-epochs": "here it is --warmup-iters" + _EPOCHS,
    "decay-epochs": "here it is --decay-iters" + _EPOCHS,
    "cooldown-epochs": "here it is --cooldown-iters" + _EPOCHS,
    "patience-epochs": "here it is --patience-iters" + _EPOCHS,
    "mixup-off-epoch": "here it is --mixup-off-iter" + _EPOCHS,
}


def training_parser(prog: str = "train.py") -> OptionParser:
    """Return the parser of the training command."""
    return OptionParser(
        prog,
        *GROUPS.values(),
        description=DESCRIPTION,
        examples=EXAMPLES,
        usage="[--config FILE] [option ...]",
        refused=REFUSED,
    )


def parse(argv: Sequence[str], parser: OptionParser | None = None) -> Config:
    """Return the options on a command line and in the YAML files that it names.

    Raises:
        UserError: for a name that is unknown, a value that is not accepted, a file that cannot be read, or options that
            contradict each other.
        SystemExit: after printing the help.
    """
    parser = parser or training_parser()
    explicit = parser.parse(argv)
    layers = [layer for path in explicit.get("config", ()) for layer in read_layers(Path(path), parser)]
    for layer in reversed(layers):
        parser.spellings = layer.spellings | parser.spellings
    values, notes = merge([*layers, Layer("", explicit)])
    return Config.from_values(values, explicit=explicit, notes=notes)


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Train, evaluate or measure throughput.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage, 143 and 130 stopped by SIGTERM and SIGINT. An error that the user
        can fix is one line on standard error; `--debug` shows the traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = training_parser(prog)

    def run() -> int:
        config = parse(argv, parser)
        if config.common.debug:
            parser.debug = True
        # Imported here since torch takes seconds to load: not for help or a mistyped option.
        if config.run.throughput:
            from .throughput import run_throughput

            return run_throughput(config)
        if config.evaluation.eval:
            from .evaluate import run_evaluation

            return run_evaluation(config)
        from .train import run_training

        return run_training(config)

    parser.debug = "--debug" in argv  # until the options are parsed
    return run_command(parser, run)


def run_command(parser: OptionParser, run: Callable[[], int | None]) -> int:
    """Run a command and return its exit status.

    Args:
        parser: of the command; an error names options as the user typed them.
        run: the command; it returns the exit status, or None for 0.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may lack the characters of a table, and names of files need not be text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return run() or 0
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at exit
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, parser)


def _report(error: Exception | KeyboardInterrupt, parser: OptionParser) -> int:
    """Print one line about the error that ended a command.

    Returns:
        The exit status.

    Raises:
        Exception: the error itself, if the user cannot fix it or asked for tracebacks.
    """
    status, message = 1, str(error)
    if isinstance(error, KeyboardInterrupt):
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    if parser.debug:
        raise error
    if isinstance(error, UserError):
        status = error.status
        # All processes that torchrun starts on a machine have the same options, and one reports for all.
        if status == 2 and os.environ.get("LOCAL_RANK", "0") != "0":
            return status
    elif isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    elif type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        message = f"`torchcompile` failed: {str(error).splitlines()[0]}; `debug` shows the traceback"
    elif isinstance(error, RuntimeError) and "out of memory" in str(error):
        message = "the device is out of memory; use a smaller `batch_size` or `val_batch_size`"
    else:
        raise error
    print(f"{parser.prog}: error: {parser.spell(message)}", file=sys.stderr)
    return status

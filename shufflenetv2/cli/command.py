"""The training command: read its options, run it, and turn the way it ended into an exit status."""

import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import terminal
from ..config import GROUPS, VALIDATION_FOLDERS, Config
from ..errors import UserError, printable
from ..files import describe_error, nearest_path
from .config_files import Layer, merge, read_layers
from .parser import OptionParser

SPIN_COUNT = "5000"  # beside busy processes larger values are at times far slower; see benchmarks/shared_cores.py
DESCRIPTION = "Train and evaluate ShuffleNetV2. Run the same command again after an interruption, and it continues."
EXAMPLES = """examples:
  train on the built-in digits:     {prog} --config configs/digits.yaml
  train on your own images:         {prog} --model-size 1.0x --train-dir DIR --val-dir DIR
  evaluate the resulting model:     {prog} --eval --eval-resume models/model.pkl --val-dir DIR
"""

# Messages of PyTorch about a GPU and about main memory, of oneDNN, and of the system when it loads a library
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|could not create a primitive|failed to map segment")


class TrainingParser(OptionParser):
    """Parser of the training command, which takes one folder without an option and knows the options of other trainers.

    Attributes:
        folder: the folder that was given without an option; '' if there was none.
    """

    folder = ""

    def is_argument(self, text: str) -> bool:
        return os.path.isdir(text)

    def answer(self, name: str) -> str:
        from . import peers

        return peers.answer(name)

    def take_arguments(self, arguments: Sequence[str]) -> None:
        """Accept a single folder, as `folder`."""
        from . import peers

        # Arguments beside name=value belong to the same foreign command line, and name=value explains more.
        for argument in sorted(arguments, key=lambda argument: "=" not in argument):
            if os.path.isdir(argument):
                continue
            if answer := peers.answer_argument(argument, self.options):
                raise UserError(f"{argument} on the command line: {answer}")
            reason = "is no folder of images" if os.path.exists(argument) else "does not exist"
            near = nearest_path(argument, is_folder=True)
            hint = f"; did you mean {near}?" if near else ""
            if os.path.isdir(spaced := " ".join(arguments)):
                hint = f"; did you mean {spaced!r}, in quotes?"
            raise UserError(f"unexpected argument {argument!r} on the command line, which {reason}{hint}")
        if len(arguments) > 1:
            raise UserError(f"{' '.join(arguments)} on the command line: give one folder, or `train_dir` and `val_dir`")
        self.folder = arguments[0]


def training_parser(prog: str = "train.py") -> TrainingParser:
    """Return the parser of the training command."""
    return TrainingParser(
        prog,
        *GROUPS.values(),
        description=DESCRIPTION,
        examples=EXAMPLES,
        usage="[--config FILE] [option ...] [DIR]",
    )


def parse(argv: Sequence[str], parser: TrainingParser | None = None) -> Config:
    """Return the options on a command line and in the YAML files that it names.

    Raises:
        UserError: for a name that is unknown, a value that is not accepted, a file that cannot be read, or options that
            contradict each other.
        SystemExit: after printing the help.
    """
    parser = parser or training_parser()
    return resolve(parser.parse(argv), parser)


def resolve(explicit: dict[str, Any], parser: TrainingParser) -> Config:
    """Return the options given explicitly, by name, and those in the YAML files that `config` among them names.

    Raises:
        UserError: see `parse`.
    """
    layers = [layer for path in explicit.get("config", ()) for layer in read_layers(Path(path), parser)]
    for layer in reversed(layers):
        parser.spellings = layer.spellings | parser.spellings
    if parser.folder:
        values, _ = merge([*layers, Layer("", explicit)])
        option = folder_option(parser.folder, values)
        if option in explicit:
            raise UserError(f"{parser.folder} on the command line would be `{option}`, which is given as well; leave one out")
        explicit[option] = parser.folder
    values, given_rates = merge([*layers, Layer("", explicit)])
    if "epochs" in values and "total_iters" not in values:  # from which the iterations follow
        parser.spellings["total_iters"] = f"{parser.spellings.get('epochs', '--epochs')} (in iterations)"
    return Config.from_values(values, explicit=explicit, given_rates=given_rates)


def folder_option(folder: str, values: Mapping[str, Any]) -> str:
    """Return the option that a folder of images is for.

    Args:
        values: the other options, by name.
    """

    def holds_folders(path: str) -> bool:
        return os.path.isdir(path) and any(entry.is_dir() for entry in os.scandir(path))

    evaluates = str(values.get("eval", False)).lower() == "true" and "val_fraction" not in values
    parts = VALIDATION_FOLDERS if evaluates else ("train",)
    if values.get("dataset", "folder") != "folder" or any(holds_folders(os.path.join(folder, part)) for part in parts):
        return "data_dir"
    return "val_dir" if evaluates else "train_dir"


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


def _limit_spinning() -> None:
    """Let OpenMP's threads (libgomp) sleep sooner when they wait for others, unless the user has chosen how they wait.

    By default they spin 300,000 times first, at each of the hundreds of barriers in an iteration: where other processes use
    the cores, for nothing. libgomp reads the variable when it is loaded, with torch.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def run_command(parser: OptionParser, run: Callable[[], int | None]) -> int:
    """Run a command and return its exit status; all commands pass here before they import torch.

    Args:
        parser: of the command; an error names options as the user typed them.
        run: the command; it returns the exit status, or None for 0.
    """
    _limit_spinning()
    terminal.open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal may lack the characters of a table, and names of files need not be text.
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\b")  # about images that it decodes nevertheless, two lines for each
    try:
        try:
            _require_current_folder()
            return run() or 0
        except SystemExit:
            terminal.write_result()  # the rest of the help
            raise
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        return 0
    except (Exception, KeyboardInterrupt) as error:
        terminal.clear()
        return _report(error, parser)


def _require_current_folder() -> None:
    """Refuse to run in a folder that was deleted, where libraries cannot be loaded."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current folder was deleted; change to another folder", status=1) from error


def print_line(text: str) -> None:
    """Print a text that may contain names of files or classes, on one line."""
    terminal.write_result(printable(text))


def _report(error: Exception | KeyboardInterrupt, parser: OptionParser) -> int:
    """Print one line about the error that ended a command.

    Returns:
        The exit status.

    Raises:
        Exception: the error itself, if the user cannot fix it or asked for tracebacks.
    """
    status, message = 1, str(error)
    if isinstance(error, KeyboardInterrupt):
        terminal.write_error(f"{parser.prog}: interrupted")
        return 130
    if parser.debug:
        raise error
    if isinstance(error, UserError):
        status = error.status
        # All processes that torchrun starts on a machine have the same options, and one reports for all.
        is_other = status == 2 and os.environ.get("LOCAL_RANK", "0") != "0"
        if is_other if error.is_repeated is None else error.is_repeated:
            return status
    elif isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {describe_error(error)}"
    elif type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        message = f"`torchcompile` failed: {str(error).splitlines()[0]}; `debug` shows the traceback"
    elif isinstance(error, ImportError) and OUT_OF_MEMORY.search(message):
        message = f"out of memory before the start ({message}); raise the limit of this process (ulimit -v)"
    elif isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(message)):
        message = "out of memory; use a smaller `batch_size` or `val_batch_size`"
    else:
        raise error
    terminal.write_error(f"{parser.prog}: error: {parser.spell(message)}")
    return status

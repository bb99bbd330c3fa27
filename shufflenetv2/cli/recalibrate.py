"""The command `shufflenetv2 recalibrate`: recompute the batch-norm statistics of a weight file."""

import dataclasses
from collections.abc import Sequence

from .. import terminal
from ..config import RecalibrateConfig
from .command import run_command
from .parser import OptionParser

DESCRIPTION = """\
Recompute the batch-norm statistics of a weight file as plain averages over training images; the weights do not change. Training
does the same after its last iteration. Images are augmented as in the recipe that the file records, or as in the published
recipe for a file of another project. The result is a file of this trainer, with everything else that the source file contains.
The source may be a weight file of any project that `shufflenetv2 convert` reads.
"""
EXAMPLES = """\
examples:
  {prog} models/model.pkl recalibrated.pkl --train-dir DIR --val-dir DIR
  {prog} torchvision.pth model.pkl --data-dir DIR --images 10000      weights of another project
  {prog} models/model.pkl models/model.pkl      in place, on the named data set that the run was trained on
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 recalibrate") -> int:
    """Recalibrate a weight file.

    Returns:
        The exit status: 0 done; 1 failed; 2 wrong usage; 130 stopped by Ctrl-C.
    """
    parser = OptionParser(prog, RecalibrateConfig, description=DESCRIPTION, examples=EXAMPLES)

    def run() -> None:
        config = parser.parse_group(RecalibrateConfig, argv)
        from ..engine.recalibration import recalibrate  # here because torch takes seconds to import

        # An option that was left out has the value None or "", and `recalibrate` knows the default: the file's recipe.
        given = {name: value for name, value in dataclasses.asdict(config).items() if value not in (None, "")}
        terminal.configure(quiet=given.pop("quiet"))
        recalibrate(**given, log=terminal.show)
        terminal.show(f"written: {config.destination}", important=True)

    return run_command(parser, run)

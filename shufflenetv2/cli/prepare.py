"""The command `shufflenetv2 prepare`: shrinks a data set once, so that every epoch has less to read and to decode."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..config.declaration import COUNT, PIXELS, QUALITY, Parser, parse_value
from .command import exit_status

DEFAULT_QUALITY = 95  # why: see shrinking.py

DESCRIPTION = """\
Shrinks a folder of class folders with images in them into another, DST, with the same paths, to train or to validate on.
Images whose short side is above PIXELS are made smaller; the result is JPEG. JPEGs that are small enough are copied as
they are. Run the same command again after an interruption, and it goes on.

Random crops are then cut from images of fewer pixels, and validation resizes with another filter: accuracy can differ
from that on the images themselves. By how much has not been measured.
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 prepare") -> int:
    """Shrinks the data set that the arguments name.

    Returns:
        The exit status: 0 done, 1 failed (also where no image is readable), 2 wrong use, 130 stopped by Ctrl-C.
        Whatever the user can mend is one line on the standard error, and so is every image left out.
    """
    try:
        given = parser(prog).parse_args(argv)
        short_side = parse_value(PIXELS, "--short-side", given.short_side)
        quality = parse_value(QUALITY, "--quality", given.quality)
        workers = parse_value(COUNT, "--workers", given.workers) if given.workers is not None else None
        from ..data.shrinking import shrink  # OpenCV and torch take seconds to load: not for help, nor for a mistyped option

        outcome = shrink(given.source, given.destination, short_side=short_side, quality=quality, workers=workers)
    except (Exception, KeyboardInterrupt) as error:
        return exit_status(error, prog)
    for reason in outcome.unreadable:
        print(f"{prog}: left out: {reason}", file=sys.stderr)
    print(
        f"{outcome.images:,} images: {outcome.encoded:,} encoded anew, {outcome.copied:,} copied as they are, "
        f"{outcome.existing:,} there already, {len(outcome.unreadable):,} unreadable"
    )
    return 1 if len(outcome.unreadable) == outcome.images else 0


def parser(prog: str) -> argparse.ArgumentParser:
    """The arguments and their help."""
    found = Parser(
        prog=prog,
        allow_abbrev=False,
        description=DESCRIPTION,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110),
    )
    found.add_argument("source", metavar="SRC", type=Path, help="folder of one folder of images per class")
    found.add_argument("destination", metavar="DST", type=Path, help="where to: a new folder, or that of an interrupted run")
    found.add_argument(
        "--short-side", metavar="PIXELS", required=True,
        help="of the images to come; at least the --resize-size of the training to come, which is 256 for 224 pixels",
    )  # fmt: skip
    found.add_argument("--quality", metavar="Q", default=DEFAULT_QUALITY, help="of the JPEGs, 1 to 100 (default: %(default)s)")
    found.add_argument("-j", "--workers", metavar="N", help="threads; default: the usable cores")
    return found

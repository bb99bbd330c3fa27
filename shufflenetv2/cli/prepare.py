"""The command `shufflenetv2 prepare`: shrink a data set once, so that every epoch reads and decodes less."""

from collections.abc import Sequence
from pathlib import Path

from .. import terminal
from ..config import PrepareConfig
from .command import run_command
from .parser import OptionParser

DESCRIPTION = """\
Shrink a folder of class folders with images into another folder with the same paths, for training or validation. Images whose
short side is longer than --short-side are resized and saved as JPEG. JPEG files that are small enough are copied unchanged.
After an interruption, run the same command again, and it continues.

Training then crops from images with fewer pixels, and validation images are resized with another filter, so the accuracy can
differ from that with the original images. The difference has not been measured.
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 prepare") -> int:
    """Shrink a data set and print how many images were encoded and copied.

    Returns:
        The exit status: 0 done; 1 failed, also if no image is readable; 2 wrong usage; 130 stopped by Ctrl-C.
    """
    parser = OptionParser(prog, PrepareConfig, description=DESCRIPTION)

    def run() -> int:
        config = parser.parse_group(PrepareConfig, argv)
        from ..data import limit_pixels  # here because torch and OpenCV take seconds to import
        from ..data.shrinking import shrink

        terminal.configure(quiet=config.quiet)
        limit_pixels(config.max_image_pixels)
        outcome = shrink(
            Path(config.source),
            Path(config.destination),
            short_side=config.short_side,
            quality=config.quality,
            workers=config.workers,
        )
        for reason in outcome.unreadable:
            terminal.write_error(f"{prog}: skipped: {parser.spell(reason)}")
        terminal.show(
            f"{outcome.images:,} images in {config.destination}: {outcome.encoded:,} encoded, {outcome.copied:,} copied "
            f"unchanged, {outcome.existing:,} already there, {len(outcome.unreadable):,} unreadable",
            important=True,
        )
        return 1 if len(outcome.unreadable) == outcome.images else 0

    return run_command(parser, run)

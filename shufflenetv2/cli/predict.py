"""The command `shufflenetv2 predict`: what a model says of images."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from ..config.declaration import COUNT, TEXT, Parser, parse_value
from .command import exit_status

DESCRIPTION = """\
Prints the likeliest classes of images, one line per image, in the order given; those in a folder sorted, at any depth.

MODEL is a file of weights (this program's, the original's, torchvision's, mmpretrain's), or what `export` wrote: .onnx, .pte,
.pt (TorchScript) or .pt2 (torch's exported program). The last two are programs, which this runs: give it only those that
you would run. All others are data, and cannot execute anything.

Images are read and resized as for validation. Unreadable ones are named on the standard error, and the rest goes on.
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 predict") -> int:
    """Prints what a model says of the images that the arguments name.

    Returns:
        The exit status: 0 done, 1 failed (also where no image is readable), 2 wrong use, 130 stopped by Ctrl-C.
        Whatever the user can mend is one line on the standard error, and so is every unreadable image.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text

    def complain(reason: str) -> None:
        print(f"{prog}: left out: {reason}", file=sys.stderr)

    readable = 0
    try:
        given = parser(prog).parse_args(argv)
        top, batch_size = parse_value(COUNT, "--top", given.top), parse_value(COUNT, "--batch-size", given.batch_size)
        workers = parse_value(COUNT, "--workers", given.workers) if given.workers is not None else None
        device = parse_value(TEXT, "--device", given.device)

        from ..data import ImageFiles
        from ..export.prediction import DIGITS, image_paths, images_of, open_model, predict

        model = open_model(given.model, device)
        if given.images == [DIGITS]:
            images = images_of(DIGITS, "val", "IMAGE_OR_FOLDER")
        else:
            images = ImageFiles(image_paths(given.images, complain))
        for prediction in predict(model, images, top=top, batch_size=batch_size, workers=workers, complain=complain):
            print(prediction.to_json() if given.json else prediction, flush=True)
            readable += 1
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the exit
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return exit_status(error, prog)
    if not readable:
        print(f"{prog}: error: no image was readable", file=sys.stderr)
    return 0 if readable else 1


def parser(prog: str) -> argparse.ArgumentParser:
    """The arguments and their help."""
    found = Parser(
        prog=prog,
        allow_abbrev=False,
        description=DESCRIPTION,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=120),
    )
    found.add_argument("model", metavar="MODEL", help="file of weights, or exported file")
    found.add_argument("images", metavar="IMAGE_OR_FOLDER", nargs="+", help="image files, and folders of them; or digits")
    found.add_argument("--top", metavar="N", default=5, help="classes per image (default: %(default)s)")
    found.add_argument(
        "--json", action="store_true", help="one JSON object per line: path; predictions with label, class and probability"
    )
    found.add_argument("-b", "--batch-size", metavar="N", default=64, help="images at a time (default: %(default)s)")
    found.add_argument("-j", "--workers", metavar="N", help="threads that load images; default: the usable cores")
    found.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:N or mps; for weights alone")
    return found

"""The command `shufflenetv2 predict`: print the most likely classes of images."""

from collections.abc import Sequence

from .. import terminal
from ..config import PredictConfig
from ..errors import UserError
from .command import print_line, run_command
from .parser import OptionParser

DESCRIPTION = """\
Print the most likely classes of images, one line per image, in the given order. Folders are searched at any depth, and their
images are sorted by path. Images are read and resized as in validation. Unreadable images are reported on standard error and
skipped.

The model is a weight file of this trainer, the original, torchvision or mmpretrain, or a file that `shufflenetv2 export` wrote:
.onnx, .pte, .pt (TorchScript) or .pt2 (torch's exported program). Files in .pt and .pt2 are programs, which this command
executes: use only files that you trust. Code in files of other types is not executed.
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 predict") -> int:
    """Print the most likely classes of images.

    Returns:
        The exit status: 0 done; 1 failed, also if no image is readable; 2 wrong usage; 130 stopped by Ctrl-C.
    """
    parser = OptionParser(prog, PredictConfig, description=DESCRIPTION)

    def warn(reason: str) -> None:
        terminal.write_error(f"{prog}: skipped: {parser.spell(reason)}")

    def run() -> None:
        config = parser.parse_group(PredictConfig, argv)
        # Imported here, because importing torch takes seconds.
        from ..data import ImageFiles, limit_pixels
        from ..export import load, predict
        from ..export.images import DIGITS, image_paths, open_images

        limit_pixels(config.max_image_pixels)
        classifier = load(config.model, config.device, use_ema=config.use_ema)
        if config.images == (DIGITS,):
            images = open_images(DIGITS, "val", "images")
        else:
            images = ImageFiles(image_paths(config.images, warn))
        predictions = predict(
            classifier, images, top=config.top, batch_size=config.batch_size, workers=config.workers, warn=warn
        )
        count = 0
        for prediction in predictions:
            print_line(prediction.to_json() if config.json else str(prediction))
            count += 1
        if not count:
            raise UserError("no image is readable", status=1)

    return run_command(parser, run)

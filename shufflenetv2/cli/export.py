"""The command `shufflenetv2 export`: weights become a file that phones and servers run, checked before it is there."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..config.declaration import OptionsError, Parser
from .command import exit_status

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "exported": ".pt2", "executorch": ".pte"}
INPUTS = ("bgr-nchw", "bgr-nhwc", "rgb-nchw", "rgb-nhwc")
CALIBRATED_ON, COMPARED_ON = 256, 16  # images
BATCH_SIZE = 16

DESCRIPTION = """\
Writes the model in MODEL, a file of weights (this program's, the original's, torchvision's, mmpretrain's), in a format that
other programs run: ONNX, TorchScript (.pt), torch's exported program (.pt2) or ExecuTorch for phones (.pte).

The file takes images of the model's size, BGR, float32, 0..255, (N, 3, H, W), and gives logits; the mean and std of the
weights, where they want any, are in it. With --uint8-input it takes bytes in the order and layout that you say. Class names
and preprocessing are in the file's metadata, and `predict` reads them there.

Before it is there under its name, it is run beside the weights on real images. Where the logits differ by more than 0.0001
of the largest, that is an error, and nothing is written.
"""

EPILOG = """\
examples:
  {prog} models/model.pkl
  {prog} models/model.pkl phone.onnx --uint8-input rgb-nhwc --int8 --calibrate data/train --val-dir data/val
  {prog} models/model.pkl --int8 --calibrate digits --val-dir digits      the built-in digits
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 export") -> int:
    """Exports the model that the arguments name.

    Returns:
        The exit status: 0 done, 1 failed (also where the file computes something else), 2 wrong use, 130 stopped by
        Ctrl-C. Whatever the user can mend is one line on the standard error.
    """
    try:
        given = parser(prog).parse_args(argv)
        by_suffix = {suffix: name for name, suffix in SUFFIXES.items()}
        given.format = given.format or by_suffix.get(given.out.suffix if given.out else "", "onnx")
        if given.int8 and given.format != "onnx":
            raise OptionsError(f"--int8 is for --format onnx, not {given.format}")
        if given.format == "onnx" and not given.fold_bn:
            raise OptionsError("--no-fold-bn: torch's ONNX exporter folds them in any case; leave it out")
        if given.int8 and not given.calibrate:
            raise OptionsError("--int8 needs --calibrate: a folder of images to measure ranges on")
        if given.calibrate and not given.int8:
            raise OptionsError("--calibrate is for --int8; add that, or leave it out")
        if given.val_dir and not given.int8:
            raise OptionsError("--val-dir compares the accuracy of int8 with that of the weights; add --int8")
        given.out = given.out or given.model.with_suffix("").with_name(
            given.model.stem + "-int8" * given.int8 + SUFFIXES[given.format]
        )
        if given.out.suffix != SUFFIXES[given.format]:
            raise OptionsError(f"{given.out}: a file of the format {given.format} is named *{SUFFIXES[given.format]}")
        _export(given)
    except (Exception, KeyboardInterrupt) as error:
        return exit_status(error, prog)
    return 0


def _export(given: argparse.Namespace) -> None:
    # Here, since torch takes seconds to load: not for help, nor for a mistyped option.
    import torch

    from .. import files
    from ..data import Dataset, FolderDataset, build_evaluation_transform, evaluation_batches
    from ..errors import UserError
    from ..export.formats import TOLERANCE, ExportError, export, largest_difference, open_program
    from ..export.prediction import DIGITS, accuracy, images_of, selection
    from ..export.quantize import quantized
    from ..weights import Preprocessing, read_weights

    weights = read_weights(given.model)
    use = weights.preprocessing or Preprocessing()
    network = weights.network(use)
    transform = build_evaluation_transform(use)
    # What is wrong with the folders is better known before minutes have passed.
    calibrated = selection(images_of(given.calibrate, "train", "--calibrate"), CALIBRATED_ON) if given.int8 else None
    compared = selection(images_of(given.images or given.calibrate or DIGITS, "val", "--images"), COMPARED_ON)
    val_set: Dataset | None = None
    if given.val_dir:
        if given.val_dir == DIGITS and not Path(DIGITS).exists():
            val_set = images_of(DIGITS, "val", "--val-dir")
        else:
            val_set = FolderDataset(given.val_dir, weights.class_names)
        if len(val_set.class_names) != weights.n_class:
            raise UserError(
                f"{weights.path} knows {weights.n_class} classes, and --val-dir {given.val_dir} has {len(val_set.class_names)}"
            )
    images = torch.cat([images for images, _ in evaluation_batches(compared, transform, BATCH_SIZE)])

    content = export(
        weights, given.format, fold_bn=given.fold_bn, uint8_input=given.uint8_input, dynamic_batch=given.dynamic_batch
    )
    with torch.inference_mode():
        expected = network(images)
    program = open_program(given.format, content, str(given.out))
    difference = largest_difference(program(images), expected)
    print(f"largest difference between the logits on {len(images)} images: {difference:.1e} of the largest logit", flush=True)
    if not difference <= TOLERANCE:
        raise ExportError(f"{given.out} is not written: what it computes differs by {difference:.1e}, more than {TOLERANCE:g}")
    description = program.description
    if calibrated is not None:
        batches = (images for images, _ in evaluation_batches(calibrated, transform, BATCH_SIZE))
        content = quantized(full := content, description, batches)
        program = open_program(given.format, content, str(given.out))
        difference = largest_difference(program(images), expected)
        print(f"int8: {difference:.1e}; {len(content) / len(full):.2f} times the size, calibrated on {len(calibrated)} images")
        if val_set is not None:
            for name, model in (("float32", network), ("int8", program)):
                top1, top5 = accuracy(model, evaluation_batches(val_set, transform, BATCH_SIZE))
                print(f"{name:8} top-1 {top1:.2%}, top-5 {top5:.2%} of {len(val_set):,} images", flush=True)
    files.write_bytes(given.out, content)
    print(f"{given.out}: {len(content) / 1e6:.2f} MB; takes {description}")


def parser(prog: str) -> argparse.ArgumentParser:
    """The arguments and their help."""
    found = Parser(
        prog=prog,
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=EPILOG.format(prog=prog),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=124),
    )
    found.add_argument("model", metavar="MODEL", type=Path, help="file of weights")
    found.add_argument(
        "out", metavar="OUT", type=Path, nargs="?", help="file to write; default: MODEL with the suffix of the format"
    )
    found.add_argument("--format", choices=SUFFIXES, help="default: by the suffix of OUT, else onnx")
    found.add_argument(
        "--fold-bn", action=argparse.BooleanOptionalAction, default=True,
        help="let the convolutions do what the batch norms after them do (the default; in ONNX always so)",
    )  # fmt: skip
    found.add_argument(
        "--uint8-input",
        choices=INPUTS,
        default="",
        help="take bytes in this order of channels and layout, as cameras give them",
    )
    found.add_argument(
        "--dynamic-batch", action="store_true", help="take any number of images, not one; TorchScript always does"
    )
    found.add_argument(
        "--images", metavar="DIR",
        help="folder of images, at any depth, to compare on; default: that of --calibrate, else the built-in digits",
    )  # fmt: skip
    found.add_argument("--int8", action="store_true", help="quantize, for ONNX; the file is a quarter of the size")
    found.add_argument(
        "--calibrate", metavar="DIR",
        help=f"for --int8: folder of images like those to come, of which {CALIBRATED_ON}, evenly spread, are taken; or digits",
    )  # fmt: skip
    found.add_argument(
        "--val-dir", metavar="DIR",
        help="for --int8: folder of one folder of images per class, to print the accuracy of both on; or digits",
    )  # fmt: skip
    return found

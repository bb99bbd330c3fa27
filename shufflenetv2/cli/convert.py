"""The command `shufflenetv2 convert`: convert weights between projects."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..config.declaration import Parser
from .command import exit_status

FORMATS = ("original", "torchvision", "mmpretrain", "shufflenetv2", "safetensors")

DESCRIPTION = """\
Convert weights between this trainer, the original, torchvision and mmpretrain. The content of IN decides which project it
belongs to. Only the order of channels and the names of tensors change: weights converted to another format and back are the
same bit for bit.

  original      state dict under 'state_dict', with 'module.' before the names, as the original's trainer reads it
  torchvision   state dict that torchvision.models.shufflenet_v2_x* loads with strict=True
  mmpretrain    'state_dict' and 'meta', for an ImageClassifier with backbone ShuffleNetV2 and head LinearClsHead
  shufflenetv2  file of this trainer, with model size, classes and preprocessing
  safetensors   the same in a .safetensors file, with model size, classes and preprocessing in its metadata
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 convert") -> int:
    """Convert a weight file and print which input the other project's network expects.

    Returns:
        The exit status: 0 done; 1 failed; 2 wrong usage, or weights that the other project's network cannot represent.
    """
    try:
        args = parser(prog).parse_args(argv)
        from ..weights import convert, input_description  # here because torch takes seconds to import

        weights = convert(args.source, args.destination, args.to)
        print(f"{args.destination}: ShuffleNetV2 {weights.model_size}, {weights.n_class} classes, from {weights.origin}")
        print(f"its network expects {input_description(weights.preprocessing, args.to)}")
    except (Exception, KeyboardInterrupt) as error:
        return exit_status(error, prog)
    return 0


def parser(prog: str) -> argparse.ArgumentParser:
    """Declare the arguments and their help."""
    parser = Parser(
        prog=prog, allow_abbrev=False, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", metavar="IN", type=Path, help="weight file of this trainer, the original, torchvision or mmpretrain"
    )
    parser.add_argument("destination", metavar="OUT", type=Path, help="file to write; an existing file is replaced")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format of OUT")
    return parser

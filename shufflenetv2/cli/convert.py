"""The command `shufflenetv2 convert`: convert weights between projects."""

from collections.abc import Sequence

from .. import terminal
from ..config import ConvertConfig
from .command import run_command
from .parser import OptionParser

DESCRIPTION = """\
Convert weights between this trainer, the original, torchvision and mmpretrain. The content of the source file decides which
project it belongs to. Only the order of channels and the names of tensors change: weights converted to another format and back
are the same bit for bit.

  original      state dict under 'state_dict', with 'module.' before the names, as the original's trainer reads it
  torchvision   state dict that torchvision.models.shufflenet_v2_x* loads with strict=True
  mmpretrain    'state_dict' and 'meta', for an ImageClassifier with backbone ShuffleNetV2 and head LinearClsHead
  shufflenetv2  file of this trainer, with model size, classes and preprocessing
  safetensors   the same as a .safetensors file, with model size, classes and preprocessing in its metadata
"""
EXAMPLES = """\
examples:
  {prog} models/model.pkl torchvision.pth --to torchvision
  {prog} ShuffleNetV2.1.5x.pth.tar model.pkl --to shufflenetv2      the original's published weights
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 convert") -> int:
    """Convert a weight file and print which input the other project's network expects.

    Returns:
        The exit status: 0 done; 1 failed; 2 wrong usage, or weights that the other project's network cannot represent.
    """
    parser = OptionParser(prog, ConvertConfig, description=DESCRIPTION, examples=EXAMPLES)

    def run() -> None:
        config = parser.parse_group(ConvertConfig, argv)
        from ..weights import convert, input_description  # here because torch takes seconds to import

        weights = convert(
            config.source, config.destination, config.to, use_ema=config.use_ema, check_weights=config.check_weights
        )
        terminal.show(f"its network expects {input_description(weights.preprocessing_or_default(), config.to)}")
        network = f"ShuffleNetV2 {weights.model_size}, {weights.n_class} classes"
        terminal.show(f"{config.destination}: {network}, from {weights.origin}")

    return run_command(parser, run)

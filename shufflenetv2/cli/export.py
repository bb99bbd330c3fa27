"""The command `shufflenetv2 export`: write weights in a format that other programs execute."""

from collections.abc import Sequence

from .. import terminal
from ..config import ExportConfig
from .command import run_command
from .parser import OptionParser

DESCRIPTION = """\
Write weights as ONNX, TorchScript (.pt), torch's exported program (.pt2) or ExecuTorch (.pte).

The exported file takes images of the model's input size, BGR or grey, float32, 0..255, (N, C, H, W), and returns logits. It
normalizes images itself if the weights need that. With --uint8-input it takes uint8 images in the given order of channels and
layout. Class names and preprocessing are in the metadata of the file, from which `shufflenetv2 predict` reads them.

Before the file is written, its logits are compared with those of the weights on real images. If they differ by more than
0.0001 of the largest logit, the command fails and writes nothing.
"""

EXAMPLES = """\
examples:
  {prog} models/model.pkl
  {prog} models/model.pkl phone.onnx --uint8-input rgb-nhwc --int8 --calibrate data/train --val-dir data/val
  {prog} models/model.pkl --int8 --calibrate digits --val-dir digits      the built-in digits
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 export") -> int:
    """Export a weight file.

    Returns:
        The exit status: 0 done; 1 failed, also if the logits of the file differ; 2 wrong usage; 130 stopped by Ctrl-C.
    """
    parser = OptionParser(prog, ExportConfig, description=DESCRIPTION, examples=EXAMPLES)

    def run() -> None:
        config = parser.parse_group(ExportConfig, argv)
        config.check()
        from ..export import export_file  # here because torch takes seconds to import

        terminal.configure(quiet=config.quiet)
        terminal.show(export_file(config, log=terminal.show), important=True)

    return run_command(parser, run)

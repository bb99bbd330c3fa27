"""The command `shufflenetv2 convert`: weights of any origin, for any of the projects that have this network."""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.declaration import Parser
from .command import exit_status

if TYPE_CHECKING:
    from ..weights import Preprocessing, Weights

FORMATS = ("original", "torchvision", "mmpretrain", "shufflenetv2", "safetensors")

DESCRIPTION = """\
Converts weights between this trainer, the original's, torchvision's and mmpretrain's. Whose IN is, is seen from what is
in it. Only the order of channels and the names change, so there and back every tensor is the same bit for bit.

  original      state dict under 'state_dict', 'module.' before the names: what the original trainer evaluates
  torchvision   state dict that torchvision.models.shufflenet_v2_x* loads with strict=True
  mmpretrain    'state_dict' and 'meta', for backbone ShuffleNetV2 and head LinearClsHead
  shufflenetv2  ours, which knows its size, classes and preprocessing
  safetensors   ours in a .safetensors file, that knowledge in its metadata
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 convert") -> int:
    """Converts the file that the arguments name, and says what the other side must feed the network.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong use, also where the other network cannot hold the weights.
    """
    try:
        given = parser(prog).parse_args(argv)
        weights = convert(given.source, given.destination, given.to)
        print(f"{given.destination}: ShuffleNetV2 {weights.model_size}, {weights.n_class} classes, from {weights.origin}")
        print(f"its network wants {wanted(weights.preprocessing, given.to)}")
    except (Exception, KeyboardInterrupt) as error:
        return exit_status(error, prog)
    return 0


def parser(prog: str) -> argparse.ArgumentParser:
    """The arguments and their help."""
    found = Parser(prog=prog, allow_abbrev=False, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("source", metavar="IN", type=Path, help="weight file of any origin")
    found.add_argument("destination", metavar="OUT", type=Path, help="file to write; one that is there is replaced")
    found.add_argument("--to", required=True, choices=FORMATS, help="whose format OUT is to have")
    return found


def convert(source: str | Path, destination: str | Path, to: str) -> "Weights":
    """Reads weights of any origin and writes them for another project; OUT is complete, or as it was before.

    Args:
        to: one of FORMATS.

    Returns:
        The weights, as `read_any` gives them for either file.

    Raises:
        WeightsError: for a file that cannot be read, and where the other network cannot hold the weights.
        UserError: where OUT cannot be written.
        ValueError: for a format that is none.
    """
    import torch  # here, as what follows: torch takes seconds to load, not for help, nor for a mistyped option

    from .. import files
    from ..weights.convert import content_for, read_any
    from ..weights.file import safetensors

    if to not in FORMATS:
        raise ValueError(f"to is one of {', '.join(FORMATS)}, not {to!r}")
    weights, destination = read_any(source), Path(destination)
    if to in ("shufflenetv2", "safetensors"):
        weights.network()  # refuses what is not complete, as the others do by themselves
    if to == "shufflenetv2":
        files.write(destination, weights.record())
    elif to == "safetensors":
        files.write_bytes(destination, safetensors(weights))
    else:
        buffer = io.BytesIO()  # not `files.write`: nothing but what torch writes, for readers of any kind
        torch.save(content_for(to, weights), buffer)
        files.write_bytes(destination, buffer.getvalue())
    return weights


def wanted(preprocessing: "Preprocessing | None", to: str) -> str:
    """What must be fed to a network with converted weights, in words."""
    from ..weights import Preprocessing
    from ..weights.convert import rgb_normalisation

    use = preprocessing or Preprocessing()
    size = f"images resized to a short side of {use.resize_size}, central {use.input_size} x {use.input_size} pixels"
    if to in ("shufflenetv2", "safetensors"):
        return f"{size}, BGR, 0..255; load_model normalises by itself"
    if to == "original":
        plain = use.mean == (0.0, 0.0, 0.0) and use.std == (1.0, 1.0, 1.0)
        normalised = "" if plain else f", less {_shown(use.mean)}, divided by {_shown(use.std)}, which the original does not do"
        return f"{size}, BGR, 0..255{normalised}"
    mean, std = rgb_normalisation(use)
    if to == "mmpretrain":  # whose data preprocessor works on 0..255
        mean, std = ([255 * value for value in values] for values in (mean, std))
        return f"{size}; data_preprocessor = dict(mean=[{_shown(mean)}], std=[{_shown(std)}], to_rgb=True)"
    return f"{size}, RGB, 0..1, then torchvision's Normalize(mean=[{_shown(mean)}], std=[{_shown(std)}])"


def _shown(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)

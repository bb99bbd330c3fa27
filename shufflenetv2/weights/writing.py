"""Write weight files for every supported project: original, torchvision, mmpretrain, shufflenetv2."""

import io
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..errors import UserError
from .conversion import rgb_normalization, to_mmpretrain, to_original, to_torchvision
from .file import METADATA_KEY, Preprocessing, Weights, to_safetensors
from .reading import read_weights


def convert(
    source: str | Path, destination: str | Path, to: str, *, use_ema: bool = False, check_weights: bool = True
) -> Weights:
    """Convert a weight file of one supported project to the format of another.

    Args:
        source: file to read, of this trainer, the original, torchvision or mmpretrain.
        destination: file to write. If an error occurs, an existing file is unchanged.
        to: 'original', 'torchvision', 'mmpretrain', 'shufflenetv2', or 'safetensors' for the weights and metadata of
            this trainer in a .safetensors file.
        use_ema: take the averaged weights (EMA) of a checkpoint.
        check_weights: see `read_weights`.

    Returns:
        The weights, as `read_weights` reads them from `source`.

    Raises:
        UserError: if `source` cannot be read, `destination` cannot be written, `to` is unknown, or the network of the target
            project cannot represent the weights.

    Example:
        >>> convert("models/model.pkl", "torchvision.pth", "torchvision")
    """
    if to not in WRITERS:
        raise UserError(f"`to` must be one of {', '.join(WRITERS)}, not {to!r}")
    weights = read_weights(source, use_ema=use_ema, check_weights=check_weights)
    WRITERS[to](weights, Path(destination))
    return weights


def input_description(preprocessing: Preprocessing | None, to: str) -> str:
    """Describe in one line the images that the network of a project expects after conversion with `convert`.

    Args:
        preprocessing: preprocessing of the weights; None means `Preprocessing()`.
        to: format, as for `convert`.
    """
    preprocessing = preprocessing or Preprocessing()
    images = f"images {preprocessing.describe_geometry()}"
    if to in ("shufflenetv2", "safetensors"):
        channels = "grey" if preprocessing.channels == 1 else "BGR"
        return f"{images}, {channels}, 0..255; load_model normalizes them"
    if to == "original":
        normalized = ""
        if (preprocessing.mean, preprocessing.std) != (Preprocessing.mean, Preprocessing.std):
            mean, std = _join(preprocessing.mean), _join(preprocessing.std)
            normalized = f", minus {mean}, divided by {std}, which the original's code does not do"
        return f"{images}, BGR, 0..255{normalized}"
    mean_rgb, std_rgb = rgb_normalization(preprocessing)
    if to == "mmpretrain":  # its data preprocessor works on the scale 0..255
        mean, std = (_join([255 * value for value in values]) for values in (mean_rgb, std_rgb))
        return f"{images}; data_preprocessor = dict(mean=[{mean}], std=[{std}], to_rgb=True)"
    return f"{images}, RGB, 0..1, then torchvision's Normalize(mean=[{_join(mean_rgb)}], std=[{_join(std_rgb)}])"


def _join(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _write_shufflenetv2(weights: Weights, path: Path) -> None:
    weights.network()  # raises a UserError for incomplete weights
    files.write(path, weights.record())


def _write_safetensors(weights: Weights, path: Path) -> None:
    weights.network()  # raises a UserError for incomplete weights
    files.write_bytes(path, to_safetensors(weights))


def _write_original(weights: Weights, path: Path) -> None:
    # The original's trainer expects names with the prefix of DataParallel, which it removes for an evaluation.
    state_dict = {f"module.{name}": tensor for name, tensor in to_original(weights).items()}
    _write_torch(path, {"state_dict": state_dict, METADATA_KEY: weights.metadata()})


def _write_torchvision(weights: Weights, path: Path) -> None:
    state_dict = OrderedDict(to_torchvision(weights))
    # load_state_dict(strict=True) accepts no further entries. torch.save keeps this attribute, in which torch stores versions.
    vars(state_dict)["_metadata"] = {METADATA_KEY: weights.metadata()}
    _write_torch(path, state_dict)


def _write_mmpretrain(weights: Weights, path: Path) -> None:
    meta = {"dataset_meta": {"classes": weights.class_names}} if weights.class_names else {}
    _write_torch(path, {"state_dict": to_mmpretrain(weights), "meta": meta, METADATA_KEY: weights.metadata()})


def _write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write the bytes of torch.save alone. `files.write` would append a checksum, which other programs may not expect."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    files.write_bytes(path, buffer.getvalue())


WRITERS: dict[str, Callable[[Weights, Path], None]] = {
    "original": _write_original,
    "torchvision": _write_torchvision,
    "mmpretrain": _write_mmpretrain,
    "shufflenetv2": _write_shufflenetv2,
    "safetensors": _write_safetensors,
}

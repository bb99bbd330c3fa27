"""Read and write the content of a weight file: tensors, and metadata about the network and its input."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..config import Size, describe_size
from ..errors import UserError, one_line
from ..network import ShuffleNetV2
from .filetypes import describe_unreadable, identify, is_safetensors
from .schema import Metadata, check_metadata

# Names of the metadata that describe how the weights were trained
TRAINING_DETAILS = (
    "accuracy", "averaged", "recalibrated", "history", "stop_reason", "options", "samples", "version", "host", "time"
)  # fmt: skip
# Key of the metadata that `convert` adds to the files of other projects, which ignore it
METADATA_KEY = "shufflenetv2"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network. The image is resized and cropped; the network itself normalizes.

    Attributes:
        input_size: of the central crop, in pixels: its side, or (height, width).
        resize_size: rectangle that decides the size after resizing, in pixels: (height, width), or the side of a square.
        mean: mean that the network subtracts, in BGR order on the scale 0..255. A single number is that of grey images.
        std: standard deviation by which the network then divides, in BGR order on the scale 0..255.
        interpolation: interpolation used to resize: 'bilinear', 'bicubic', ...
        crop_mode: 'center': the resized image covers `resize_size`; 'squash': it has exactly this size; 'border': it fits into
            this size, and is padded to the input size.
    """

    input_size: Size = 224
    resize_size: Size = 256
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bilinear"
    crop_mode: str = "center"

    @classmethod
    def default(cls, channels: int) -> "Preprocessing":
        """Return the original's preprocessing for images with this number of channels."""
        return cls(mean=(0.0,) * channels, std=(1.0,) * channels)

    @property
    def channels(self) -> int:
        """The number of channels of the network's input: 3, or 1 for grey images."""
        return len(self.mean)

    def normalization(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation for a number of channels: for grey images, the average of the three colours."""
        if channels == self.channels:
            return self.mean, self.std
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return (mean,) * channels, (std,) * channels

    @property
    def border_color(self) -> tuple[float, ...]:
        """The colour of padding, BGR, 0..255: the mean, which becomes 0 when the network normalizes; black without padding."""
        return tuple(float(round(value)) for value in self.mean) if self.crop_mode == "border" else (0.0,) * self.channels

    def describe_geometry(self) -> str:
        """Describe resizing and cropping in one phrase about images."""
        if self.crop_mode == "squash":
            resized = f"resized to {describe_size(self.resize_size)} without keeping the aspect ratio"
        elif self.crop_mode == "border":
            resized = f"resized to fit into {describe_size(self.resize_size)}, padded with the mean colour"
        elif isinstance(self.resize_size, int):
            resized = f"resized to a short side of {self.resize_size} pixels"
        else:
            resized = f"resized to cover {describe_size(self.resize_size)}"
        return f"{resized}, central {describe_size(self.input_size)}"


@dataclass
class Weights:
    """The weights of a ShuffleNetV2, and the metadata in their file.

    Attributes:
        path: the file, for error messages.
        state_dict: tensors with the original's names, in the original's order of channels.
        model_size: '0.5x', '1.0x', '1.5x' or '2.0x'.
        n_class: number of classes.
        class_names: in the order of the logits; None if the file does not contain them.
        preprocessing: None if the file does not contain it.
        iteration: number of the training iteration after which the weights were saved; 0 if the file does not contain it.
        architecture: further arguments of ShuffleNetV2; see `ShuffleNetV2.architecture`.
        origin: the project that trained the weights: 'shufflenetv2', 'original', 'torchvision' or 'mmpretrain'.
        details: metadata about the training, with the names in TRAINING_DETAILS.
    """

    path: Path
    state_dict: dict[str, Tensor]
    model_size: str
    n_class: int
    class_names: list[str] | None = None
    preprocessing: Preprocessing | None = None
    iteration: int = 0
    architecture: dict[str, Any] = field(default_factory=dict)
    origin: str = "shufflenetv2"
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """The number of channels of the network's input: 3, or 1 for grey images."""
        channels: int = self.architecture.get("in_chans", 3)
        return channels

    def preprocessing_or_default(self) -> Preprocessing:
        """Return the preprocessing in the file, or else the original's."""
        return self.preprocessing or Preprocessing.default(self.channels)

    def metadata(self) -> dict[str, Any]:
        """Return everything but the tensors as plain values that JSON can represent."""
        preprocessing = {"preprocessing": asdict(self.preprocessing)} if self.preprocessing else {}
        return {
            **self.details,
            **preprocessing,
            "model_size": self.model_size,
            "class_names": self.class_names,
            "iteration": self.iteration,
            "architecture": self.architecture,
            "origin": self.origin,
        }

    def record(self) -> dict[str, Any]:
        """Return the content of a weight file of this trainer."""
        return {**self.metadata(), "state_dict": self.state_dict}

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Set the attributes to values that `metadata` returned, except for the model size and the architecture.

        Raises:
            UserError: if a value has another type than the schema, or does not fit the tensors.
        """
        record = check_metadata(self.path, Metadata, metadata)
        if "preprocessing" in record:
            self.preprocessing = Preprocessing(**record["preprocessing"])
        self.details = {name: value for name, value in record.items() if name in TRAINING_DETAILS}
        self.origin = record.get("origin", self.origin)
        self.class_names = record.get("class_names") or None
        self.iteration = record.get("iteration", 0)
        self._check_agreement(record)

    def _check_agreement(self, record: Metadata) -> None:
        """Raise a UserError if metadata do not fit the tensors."""
        normalization = self.preprocessing_or_default()
        numbers = {len(normalization.mean), len(normalization.std)}
        for disagrees, reason in (
            (
                record.get("model_size", self.model_size) != self.model_size,
                f"its metadata are those of a {record.get('model_size')} model, its tensors those of a {self.model_size} model",
            ),
            (
                self.class_names is not None and len(self.class_names) != self.n_class,
                f"it has names for {len(self.class_names or ())} classes, and its classifier has {self.n_class}",
            ),
            (
                numbers != {self.channels},
                f"its mean and std are not {self.channels} number{'s' * (self.channels > 1)} each, one for each channel",
            ),
        ):
            if disagrees:
                raise UserError(f"{self.path} cannot be used: {reason}; save the file again, or its state dict alone")

    def network(self, preprocessing: Preprocessing | None = None) -> ShuffleNetV2:
        """Build the network with these weights, in eval mode on the CPU.

        Args:
            preprocessing: used instead of the preprocessing in the file.

        Raises:
            UserError: if a tensor is missing, unknown or of another shape.
        """
        preprocessing = preprocessing or self.preprocessing_or_default()
        network = ShuffleNetV2(
            preprocessing.input_size,
            self.n_class,
            self.model_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            **self.architecture,
        )
        if mismatch := describe_mismatch(network.state_dict(), self.state_dict):
            raise UserError(f"{self.path} does not fit ShuffleNetV2 {self.model_size}: {mismatch}")
        network.load_state_dict(self.state_dict, strict=False)
        return network.eval()


def model_record(
    network: ShuffleNetV2, *, class_names: list[str], preprocessing: Preprocessing, iteration: int
) -> dict[str, Any]:
    """Return the entries about the model that every checkpoint and model file contains; `read_weights` reads them."""
    return {
        "state_dict": network.state_dict(),
        "model_size": network.model_size,
        "class_names": class_names,
        "preprocessing": asdict(preprocessing),
        "iteration": iteration,
        "architecture": network.architecture,
    }


def describe_mismatch(expected: Mapping[str, Tensor], state_dict: Mapping[str, Any]) -> str:
    """Explain why a state dict does not fit a network.

    Args:
        expected: state dict of the network.

    Returns:
        The number of tensors that are missing, unknown or of another shape, and the first of them; '' if it fits.
    """
    names = sorted(expected.keys() ^ state_dict.keys())
    names += [
        name for name in expected if name in state_dict and expected[name].shape != getattr(state_dict[name], "shape", None)
    ]
    # Weights saved before torch 0.4.1 have no `num_batches_tracked`, and evaluation does not need these counters.
    names = [name for name in names if not (name in expected and name.endswith("num_batches_tracked"))]
    return f"{len(names)} tensors are missing, unknown or of another shape, {names[0]} first" if names else ""


def read_content(path: Path) -> Mapping[str, Any]:
    """Read a file of tensors, written by torch.save or as .safetensors, without executing code in it.

    Returns:
        The dict that was saved. For a .safetensors file: its tensors as 'state_dict', and the metadata of `Weights.metadata`
        if this trainer wrote it.

    Raises:
        UserError: if the file is missing, damaged, or not a file of tensors; the message says what the file is, if known.
    """
    try:
        if is_safetensors(path):
            return _read_safetensors(path)
        content = files.read(path)
    except files.DamagedFileError as error:
        raise UserError(f"{error}{_explain(path, error)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {describe_unreadable(path, error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not weights")
    return content


def to_safetensors(weights: Weights) -> bytes:
    """Return the content of a .safetensors file: the state dict, and `Weights.metadata` as JSON in its metadata."""
    from safetensors.torch import save

    metadata = {name: json.dumps(value) for name, value in weights.metadata().items()}
    # The format supports neither tensors that share memory nor memory formats other than contiguous.
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.state_dict.items()}
    content: bytes = save(tensors, {"format": "pt", **metadata})
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no dict)
            texts = file.metadata() or {}
        # Only files of this trainer have a model size. The metadata of other programs may not be JSON.
        metadata = {name: json.loads(texts[name]) for name in texts if name != "format"} if "model_size" in texts else {}
    except OSError:
        raise
    except Exception as error:  # of safetensors, and of JSON that is no JSON, or nested too deeply
        raise UserError(f"{path} is damaged: {one_line(error)}") from error
    return {**metadata, "state_dict": tensors}


def _explain(path: Path, error: files.DamagedFileError) -> str:
    """Return the rest of a message that begins with `error`: what the file contains instead of tensors, if that is known."""
    # torch's message names the function that a pickle would have called.
    if function := re.search(r"GLOBAL (\S+)", str(error.__cause__)):
        return f": loading it would call {function[1]}; save weights alone, with torch.save(model.state_dict(), ...)"
    kind = identify(path)
    return f"; it is {kind}" if kind else ""

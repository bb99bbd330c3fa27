"""Weight files: what is in one, whoever wrote it, and the network it belongs to."""

import codecs
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..errors import UserError
from ..network import SIZES, STEM_CHANNELS, ShuffleNetV2, published_name

# What else our files tell of how a model came about
DETAILS = ("origin", "accuracy", "options", "samples", "version", "host", "time")
# How files begin that are taken for weights: bytes, where they stand, what the file is
BEGINNINGS = (
    (b"\xff\xd8\xff", 0, "a JPEG image"),
    (b"\x89PNG", 0, "a PNG image"),
    (b"GIF8", 0, "a GIF image"),
    (b"WEBP", 8, "a WebP image"),
    (b"\x89HDF", 0, "an HDF5 file"),
    (b"TFL3", 4, "a TensorFlow Lite model"),
    (b"ET12", 4, "an ExecuTorch program"),
    (b"\x93NUMPY", 0, "a NumPy array"),
    (b"version https://git-lfs", 0, "what stands for it in git; `git lfs pull` fetches the file itself"),
)
# The same for zip archives, by the end of a name in them
MEMBERS = (
    ("/constants.pkl", "a TorchScript program"),
    ("archive_format", "a program of torch.export"),
    (".npy", "NumPy arrays"),
)
# An ONNX file begins with the version of its format, and goes on with whoever made it, or with the graph
ONNX = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x3a\x42]")


class WeightsError(UserError):
    """Weights that cannot be used; the text names the file, the reason and the remedy."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input: sizes in pixels, mean and std in BGR order on 0..255, and how it is resized."""

    input_size: int = 224
    resize_size: int = 256
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    interpolation: str = "bilinear"


@dataclass
class Weights:
    """The content of a weight file. What a file of another origin does not tell is None.

    Attributes:
        architecture: what else the network is built with; see ShuffleNetV2.architecture.
        origin: whose weights these were at first: 'shufflenetv2', 'original', 'torchvision' or 'mmpretrain'.
        details: what else a file of ours tells, by the names in DETAILS.
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

    def description(self) -> dict[str, Any]:
        """What a file of ours says beside the weights: plain values, which JSON can hold."""
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
        """The content of a file of ours with these weights."""
        return {**self.description(), "state_dict": self.state_dict}

    def network(self, preprocessing: Preprocessing | None = None) -> ShuffleNetV2:
        """The network with these weights, in eval mode; `preprocessing` replaces the file's own.

        Raises:
            WeightsError: where a tensor is missing, superfluous or of another shape.
        """
        use = preprocessing or self.preprocessing or Preprocessing()
        network = ShuffleNetV2(use.input_size, self.n_class, self.model_size, mean=use.mean, std=use.std, **self.architecture)
        if wrong := misfit(network.state_dict(), self.state_dict):
            raise WeightsError(f"{self.path} does not fit ShuffleNetV2 {self.model_size}: {wrong}")
        network.load_state_dict(self.state_dict, strict=False)
        return network.eval()


def misfit(expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> str:
    """Why a state dict cannot be loaded into a network with the expected one, in words; empty where it can."""
    wrong = sorted(expected.keys() ^ found.keys())
    wrong += [name for name in expected if name in found and expected[name].shape != getattr(found[name], "shape", None)]
    # Weights saved before torch 0.4.1 do not count batches, and evaluation does not need the count.
    wrong = [name for name in wrong if not (name in expected and name.endswith("num_batches_tracked"))]
    return f"{len(wrong)} tensors are missing, unknown or of another shape, {wrong[0]} first" if wrong else ""


def model_record(
    network: ShuffleNetV2, *, class_names: list[str], preprocessing: Preprocessing, iteration: int
) -> dict[str, Any]:
    """What every file of ours says of its model: the part of the content that `read_weights` understands."""
    return {
        "state_dict": network.state_dict(),
        "model_size": network.model_size,
        "class_names": class_names,
        "preprocessing": asdict(preprocessing),
        "iteration": iteration,
        "architecture": network.architecture,
    }


def read_weights(path: str | Path) -> Weights:
    """Reads the weights in a file: ours, or the original trainer's, under any name. (`conversion.read_any` reads others' too.)

    The original's files are a state dict, bare or under 'state_dict', with or without 'module.'
    before the names. The size and the number of classes are read off the shapes.

    Raises:
        WeightsError: for a file that is missing, damaged, or holds something else.
    """
    path = Path(path)
    return from_content(read_content(path), path)


def from_content(content: Mapping[str, Any], path: Path) -> Weights:
    """The weights in what `read_content` gave; else as `read_weights`."""
    state_dict = content.get("state_dict", content)
    if not isinstance(state_dict, Mapping):
        raise WeightsError(f"{path} holds no state dict")
    # Split batch norm's further statistics are for augmented images, which nobody evaluates on.
    state_dict = {
        published_name(str(name).removeprefix("module.")): tensor
        for name, tensor in state_dict.items()
        if ".aux_bn." not in str(name)
    }
    model_size = size_of(state_dict)
    if model_size is None:
        raise WeightsError(f"{path} does not hold weights of a ShuffleNetV2 of this layout")
    architecture = content.get("architecture") or architecture_of(state_dict)
    weights = Weights(path, state_dict, model_size, state_dict["classifier.0.weight"].shape[0], architecture=architecture)
    if "model_size" in content:
        take_description(weights, content)
    elif len(state_dict.get("features.0.branch_proj.2.weight", ())) == STEM_CHANNELS and not architecture["head_bias"]:
        weights.origin = "original"
    return weights


def take_description(weights: Weights, content: Mapping[str, Any]) -> None:
    """Takes over what `Weights.description` gave, but for the size and the architecture.

    Raises:
        WeightsError: where that does not fit.
    """
    try:
        if "preprocessing" in content:
            weights.preprocessing = Preprocessing(**_with_tuples(content["preprocessing"]))
        weights.details = {name: content[name] for name in DETAILS if name in content}
        if "options" in content:
            weights.details["options"] = _with_tuples(content["options"])
        weights.origin = weights.details.pop("origin", weights.origin)
    except (TypeError, AttributeError) as error:
        raise WeightsError(f"{weights.path} describes its preprocessing in a way this version does not know") from error
    weights.class_names = content.get("class_names")
    weights.iteration = content.get("iteration", 0)


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    # JSON has lists alone
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def read_content(path: Path) -> Mapping[str, Any]:
    """What is in a file of tensors, torch's or .safetensors; nothing in it is executed.

    Returns:
        the dict that was saved; from .safetensors the 'state_dict' and, of files of ours, what else `Weights.description` gave.

    Raises:
        WeightsError: for a file that is missing, damaged, or holds something else, which is named where it is known.
    """
    try:
        if _is_safetensors(path):
            return _read_safetensors(path)
        with warnings.catch_warnings():  # of a TorchScript program, which is refused
            warnings.filterwarnings("ignore", message="'torch.load' received a zip file")
            content = files.read(path)
    except files.DamagedFileError as error:
        raise WeightsError(f"{error}{_explanation(path, error)}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not weights")
    return content


def safetensors(weights: Weights) -> bytes:
    """The content of a .safetensors file: our state dict, and what else our files tell as JSON in its metadata."""
    from safetensors.torch import save

    told = {name: json.dumps(value) for name, value in weights.description().items()}
    # Copies, since the format knows neither tensors that share memory nor another order in it than theirs.
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.state_dict.items()}
    content: bytes = save(tensors, {"format": "pt", **told})
    return content


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:  # the length of a header, which is JSON
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            told = file.metadata() or {}
        described = {name: json.loads(told[name]) for name in told if name != "format"} if "model_size" in told else {}
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    return {**described, "state_dict": tensors}


def _explanation(path: Path, error: files.DamagedFileError) -> str:
    """What a file is instead that could not be read, if that can be told."""
    if wanted := re.search(r"GLOBAL (\S+)", str(error.__cause__)):  # so torch names what a pickle would have called
        return f": loading it would call {wanted[1]}; weights alone are what torch.save(model.state_dict(), ...) writes"
    with open(path, "rb") as file:
        head = file.read(512)
    kind = next((kind for mark, place, kind in BEGINNINGS if head[place:].startswith(mark)), None)
    if kind is None and ONNX.match(head):
        kind = "an ONNX model"
    if kind is None and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            kind = next((kind for end, kind in MEMBERS if any(name.endswith(end) for name in archive.namelist())), None)
    elif head.startswith(b"PK"):
        kind = "an archive that lost its end"
    if kind is None and _is_text(head):
        kind = "a web page" if head.lstrip().startswith(b"<") else "text"
    return f"; it is {kind}" if kind else ""


def _is_text(head: bytes) -> bool:
    try:
        shown = codecs.getincrementaldecoder("utf-8")().decode(head)  # which may end within a letter
    except UnicodeDecodeError:
        return False
    return bool(shown) and all(letter.isprintable() or letter.isspace() for letter in shown)


def size_of(state_dict: Mapping[str, Any]) -> str | None:
    """The model size whose last convolution and classifier have the shapes found, if any."""
    shapes = [tuple(getattr(state_dict.get(name), "shape", ())) for name in ("conv_last.0.weight", "classifier.0.weight")]
    for size, (stages, last) in SIZES.items():
        if shapes[0] == (last, stages[-1], 1, 1) and shapes[1][1:] in ((last,), (2 * last,)):
            return size
    return None


def architecture_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """What the shapes tell of the architecture; see ShuffleNetV2.architecture."""
    last, pooled = state_dict["conv_last.0.weight"].shape[0], state_dict["classifier.0.weight"].shape[1]
    made = {len(state_dict.get(f"features.0.{name}.weight", ())) for name in ("branch_proj.2", "branch_main.5")}
    return {
        "pooling": "catavgmax" if pooled == 2 * last else "avg",
        "layout": "torchvision" if len(made) == 1 and 0 not in made else "original",
        "head_bias": "classifier.0.bias" in state_dict,
    }

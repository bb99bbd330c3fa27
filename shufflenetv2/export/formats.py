"""What a network leaves as, and how such a file is run: ONNX, TorchScript, torch's exported program, ExecuTorch.

Every file says in its metadata what its images and its classes are, so that whoever has the file needs nothing else.
"""

import copy
import io
import itertools
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import __version__
from ..blocks import ShuffleV2Block
from ..errors import UserError
from ..network import ShuffleNetV2
from ..weights import Preprocessing, Weights

TOLERANCE = 1e-4  # of the largest logit
KEYS = ("shufflenetv2", "model_size", "class_names", "preprocessing", "input")

Forward = Callable[[Tensor], Tensor]  # images as the file takes them -> logits


class ExportError(UserError):
    """An export that failed, or an exported file that cannot be run; the text says which and why."""

    status = 1


class MissingPackageError(UserError):
    """A package that only exported files need is not there; the text names it."""


@dataclass(frozen=True)
class Description:
    """What an exported file says of itself.

    Args:
        class_names: None where the weights did not tell.
        preprocessing: what becomes of an image before the file sees it. The file normalises by itself.
        channels: 'bgr' or 'rgb'.
        layout: 'nchw' or 'nhwc'.
        dtype: of the images, which are 0..255: 'float32' or 'uint8'.
        batch_size: of every run; None where it may be any.
    """

    model_size: str
    class_names: list[str] | None
    preprocessing: Preprocessing
    channels: str = "bgr"
    layout: str = "nchw"
    dtype: str = "float32"
    batch_size: int | None = 1

    @property
    def shape(self) -> list[int | None]:
        """Of the images."""
        size = self.preprocessing.input_size
        return [self.batch_size, 3, size, size] if self.layout == "nchw" else [self.batch_size, size, size, 3]

    def __str__(self) -> str:
        sides = " x ".join("N" if side is None else str(side) for side in self.shape)
        return f"{self.channels.upper()} images, {self.dtype}, 0..255, {sides} ({self.layout.upper()})"

    def metadata(self) -> dict[str, str]:
        """JSON by key. Mean and std are left out: somebody would apply them a second time."""
        use = self.preprocessing
        values = {
            "shufflenetv2": __version__,
            "model_size": self.model_size,
            "class_names": self.class_names,
            "preprocessing": {
                "resize_short_side": use.resize_size, "interpolation": use.interpolation, "antialias": False,
                "center_crop": use.input_size,
                "normalize": "in the model",
            },
            "input": {
                "channels": self.channels, "layout": self.layout, "dtype": self.dtype, "range": [0, 255],
                "shape": self.shape,
            },
        }  # fmt: skip
        return {key: json.dumps(values[key], ensure_ascii=False) for key in KEYS}

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> "Description":
        """Raises KeyError, ValueError, TypeError or AttributeError for anything that `metadata` did not write."""
        size, names, steps, images = (json.loads(metadata[key]) for key in KEYS[1:])
        use = Preprocessing(steps["center_crop"], steps["resize_short_side"], interpolation=steps["interpolation"])
        return cls(size, names, use, images["channels"], images["layout"], images["dtype"], images["shape"][0])

    def images(self, images: Tensor) -> Tensor:
        """Images, uint8 (N, 3, H, W), BGR, as the file takes them."""
        if self.channels == "rgb":
            images = images.flip(1)
        if self.layout == "nhwc":
            images = images.permute(0, 2, 3, 1)
        return images.to(getattr(torch, self.dtype)).contiguous()

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """The same, as many at a time as it takes."""
        size = self.batch_size or len(images)
        return (self.images(images[start : start + size]) for start in range(0, len(images), size))


@dataclass(frozen=True)
class Program:
    """An exported file that can be run: uint8 (N, 3, H, W), BGR -> logits (N, n_class), float32, on the CPU."""

    description: Description
    forward: Forward

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self.forward(part) for part in self.description.batches(images)]).float()


def export(weights: Weights, format: str, *, fold_bn: bool = True, uint8_input: str = "", dynamic_batch: bool = False) -> bytes:
    """The file of a format that computes what the network computes. Nothing has compared the two yet; see `largest_difference`.

    Args:
        format: 'onnx', 'torchscript', 'exported' or 'executorch'.
        fold_bn: whether the convolutions do what the batch norms after them do. In ONNX they always do: torch's
            exporter sees to it.
        uint8_input: 'bgr-nchw', 'bgr-nhwc', 'rgb-nchw' or 'rgb-nhwc', for a file that takes bytes in this form;
            otherwise it takes float32, BGR, NCHW. Both are 0..255.
        dynamic_batch: whether it takes any number of images, and not one. TorchScript always does.

    Raises:
        UserError: where the weights do not fit their network.
        MissingPackageError: where a package that the format needs is not there.
        ExportError: for ExecuTorch with a dynamic batch.
    """
    channels, layout = (uint8_input or "bgr-nchw").split("-")
    if format == "executorch" and dynamic_batch:
        raise ExportError("--dynamic-batch: ExecuTorch plans its memory for one number of images; leave it out")
    description = Description(
        weights.model_size,
        weights.class_names,
        weights.preprocessing or Preprocessing(),
        channels,
        layout,
        "uint8" if uint8_input else "float32",
        None if dynamic_batch or format == "torchscript" else 1,
    )
    network = weights.network(description.preprocessing)
    deployed = Deployed(folded(network) if fold_bn else network, description)
    size = description.preprocessing.input_size
    # Two, since torch takes one for a constant.
    example = description.images(torch.full((1 if description.batch_size else 2, 3, size, size), 128, dtype=torch.uint8))
    with torch.no_grad(), quiet():
        return _WRITERS[format](deployed, example, description)


def open_program(format: str, content: bytes, name: str) -> Program:
    """An exported file, ready to run. TorchScript and exported programs are code: only open those you would run.

    Raises:
        ExportError: for a file that is damaged, of another format, or not made by `export`; `name` is what to call it.
        MissingPackageError: where a package that the format needs is not there.
    """
    try:
        with quiet():
            forward, metadata = _READERS[format](content)
    except MissingPackageError:
        raise
    except Exception as error:  # each of the four raises what it likes
        raise ExportError(f"{name} is damaged, or no file of the format {format}: {_first_line(error)}") from error
    try:
        return Program(Description.parse(metadata), forward)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ExportError(f"{name} does not say what its images and classes are; export it with this program") from error


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Between two tensors of logits, as a share of the largest one expected; not a number where one of them has such."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def folded(network: ShuffleNetV2) -> ShuffleNetV2:
    """A copy, for inference, in which each convolution does the batch norm after it."""
    network = copy.deepcopy(network).eval()
    for sequence in network.modules():
        if isinstance(sequence, nn.Sequential):
            for index, (layer, following) in enumerate(itertools.pairwise(list(sequence))):
                if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                    sequence[index], sequence[index + 1] = fuse_conv_bn_eval(layer, following), nn.Identity()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    return network


class Deployed(nn.Module):
    """A network as other runtimes like it: images as described in, logits out.

    RGB costs nothing: the first convolution is told its channels in that order. (Reversed in the graph they would
    be a Gather, or a slice that runs backwards, which not every runtime has.)
    """

    def __init__(self, network: ShuffleNetV2, description: Description) -> None:
        super().__init__()
        self.network = network = copy.deepcopy(network)
        self.interleaved = description.layout == "nhwc"
        if description.channels == "rgb":
            first: nn.Conv2d = network.first_conv[0]  # type: ignore[assignment]
            first.weight = nn.Parameter(first.weight.detach().flip(1))
            network.input_mean, network.input_std = network.input_mean.flip(1), network.input_std.flip(1)
        for index, unit in enumerate(network.features):
            if isinstance(unit, ShuffleV2Block) and unit.branch_proj is None:
                network.features[index] = _Unit(unit.branch_main)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if self.interleaved:
            images = images.permute(0, 3, 1, 2)
        logits: Tensor = self.network(images)
        return logits


class _Unit(nn.Module):
    """A unit of stride 1 whose even and odd channels are told apart without a step of two, Gather or Transpose.

    In memory an even channel and the odd one after it are one picture of twice the height: its upper half and its
    lower half. So a reshape, which moves nothing, and two contiguous slices do it. Measured with the 1.0x at 224 pixels:
    ONNX Runtime takes as long for slices with a step of two, for a 5-D transpose and split, and for this; but ncnn's
    converter (pnnx) leaves a slice with a step in the network as an unknown layer, and XNNPACK does not take it either.
    """

    def __init__(self, branch_main: nn.Sequential) -> None:
        super().__init__()
        self.branch_main = branch_main

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        pairs = x.reshape(n, channels // 2, 2 * height, width)
        passing, entering = pairs[:, :, :height], pairs[:, :, height:]
        return torch.cat((passing, self.branch_main(entering)), dim=1)


# ---- the formats


def _write_onnx(network: Deployed, example: Tensor, description: Description) -> bytes:
    optional("--format onnx", "onnx", "onnxscript", "onnxruntime")
    shapes = None if description.batch_size else ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        network, (example,), input_names=["images"], output_names=["logits"], dynamic_shapes=shapes, dynamo=True, verbose=False
    )
    assert program is not None
    model = program.model_proto
    # Where each node was in whose Python files: a third of the file, and nobody's business.
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer,
                 *model.graph.input, *model.graph.output):  # fmt: skip
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for key, value in description.metadata().items():
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return content


def _read_onnx(content: bytes) -> tuple[Forward, Mapping[str, str]]:
    (runtime,) = optional("an ONNX file", "onnxruntime")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    session = runtime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    (name,) = (images.name for images in session.get_inputs())
    return (
        lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0]),
        session.get_modelmeta().custom_metadata_map,
    )


def _write_torchscript(network: Deployed, example: Tensor, description: Description) -> bytes:
    buffer = io.BytesIO()
    traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, buffer, _extra_files=description.metadata())
    return buffer.getvalue()


def _read_torchscript(content: bytes) -> tuple[Forward, Mapping[str, str]]:
    extra = dict.fromkeys(KEYS, "")
    module = torch.jit.load(io.BytesIO(content), map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
    return module, {key: text.decode() if isinstance(text, bytes) else text for key, text in extra.items()}


def _write_exported(network: Deployed, example: Tensor, description: Description) -> bytes:
    shapes = None if description.batch_size else ({0: torch.export.Dim("batch")},)
    buffer = io.BytesIO()
    torch.export.save(
        torch.export.export(network, (example,), dynamic_shapes=shapes), buffer, extra_files=description.metadata()
    )
    return buffer.getvalue()


def _read_exported(content: bytes) -> tuple[Forward, Mapping[str, str]]:
    extra: dict[str, Any] = dict.fromkeys(KEYS, "")
    return torch.export.load(io.BytesIO(content), extra_files=extra).module(), extra


def _write_executorch(network: Deployed, example: Tensor, description: Description) -> bytes:
    exir, xnnpack = optional(
        "--format executorch", "executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner"
    )
    lowered = exir.to_edge_transform_and_lower(
        torch.export.export(network, (example,)),
        partitioner=[xnnpack.XnnpackPartitioner()],
        constant_methods=description.metadata(),
    )
    return bytes(lowered.to_executorch().buffer)


def _read_executorch(content: bytes) -> tuple[Forward, Mapping[str, str]]:
    (runtime,) = optional("an ExecuTorch file", "executorch.runtime")
    program = runtime.Runtime.get().load_program(content)
    method = program.load_method("forward")
    metadata = {key: program.load_method(key).execute([])[0] for key in KEYS if key in program.method_names}
    return lambda images: method.execute([images])[0].clone(), metadata


_WRITERS: dict[str, Callable[[Deployed, Tensor, Description], bytes]] = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "exported": _write_exported,
    "executorch": _write_executorch,
}
_READERS: dict[str, Callable[[bytes], tuple[Forward, Mapping[str, str]]]] = {
    "onnx": _read_onnx,
    "torchscript": _read_torchscript,
    "exported": _read_exported,
    "executorch": _read_executorch,
}


def optional(what: str, *modules: str) -> list[Any]:
    """Modules of packages that are no requirement.

    Raises:
        MissingPackageError: naming `what` needs them, where one is not there.
    """
    found, missing = [], []
    for name in modules:
        try:
            found.append(import_module(name))
        except ImportError as error:
            missing.append((error.name or name).split(".")[0])
    if missing:
        names = " ".join(dict.fromkeys(missing))
        raise MissingPackageError(f"{what} needs {names}, not installed here; pip install {names}")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporters say of themselves, their progress and what they will do without in some later version."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

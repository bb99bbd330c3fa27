"""Export of weights as ONNX, TorchScript, torch's exported program or ExecuTorch.

An exported file contains everything that is needed to use it: the normalization of the input is part of the network, and
the metadata describe classes, preprocessing and input format (see metadata.py).
"""

import io
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import OPSETS, height_width
from ..errors import UserError
from ..weights import Weights
from .deployment import DeployedNetwork, fold_batch_norms
from .metadata import UNSEALED, ExportMetadata, seal
from .opset import restate_for_opset
from .packages import import_optional, silenced

# Version of the ONNX operator set that torch's exporter writes, the oldest it has; `restate_for_opset` lowers it.
EXPORTER_OPSET = 18


def export(
    weights: Weights,
    format: str,
    *,
    fold_bn: bool = True,
    uint8_input: str | None = None,
    dynamic_batch: bool = False,
    opset: int = OPSETS[0],
) -> bytes:
    """Export weights to a format that other programs execute, and return the content of the file.

    The result is not compared with the weights here; `largest_difference` and `open_program` do that, and the command
    `shufflenetv2 export` always does.

    Args:
        weights: from `read_weights`.
        format: 'onnx', 'torchscript', 'exported' (torch's exported program) or 'executorch'.
        fold_bn: make each batch norm part of the convolution before it. torch's ONNX exporter does so in any case.
        uint8_input: 'bgr-nchw', 'bgr-nhwc', 'rgb-nchw' or 'rgb-nhwc', or for grey images 'grey-nchw' or 'grey-nhwc': the file
            takes uint8 images with this order of channels and layout. By default it takes float32, BGR or grey, NCHW. Values
            are 0..255 in both cases.
        dynamic_batch: the file accepts any batch size instead of 1. TorchScript always does.
        opset: version of the ONNX operator set. Runtimes support older versions more widely.

    Raises:
        UserError: if the weights do not fit their network, a package that the format needs is not installed, or a dynamic
            batch is requested of ExecuTorch.

    Example:
        >>> content = export(read_weights("models/model.pkl"), "onnx", uint8_input="rgb-nhwc")
        >>> Path("model.onnx").write_bytes(content)
    """
    if format not in WRITERS:
        raise UserError(f"`format` must be one of {', '.join(WRITERS)}, not {format!r}")
    channels, layout = (uint8_input or ("grey-nchw" if weights.channels == 1 else "bgr-nchw")).split("-")
    if (channels == "grey") != (weights.channels == 1):
        kind, example = ("grey", "grey") if weights.channels == 1 else ("colour", "bgr")
        raise UserError(f"`uint8_input` {uint8_input}: {weights.path} takes {kind} images; use {example}-{layout}")
    if format == "executorch" and dynamic_batch:
        raise UserError("`dynamic_batch`: ExecuTorch plans its memory for one batch size; leave it out", status=1)
    metadata = ExportMetadata(
        weights.model_size,
        weights.class_names,
        weights.preprocessing_or_default(),
        channels,
        layout,
        dtype="uint8" if uint8_input else "float32",
        batch_size=None if dynamic_batch or format == "torchscript" else 1,
    )
    network = weights.network(metadata.preprocessing)
    deployed = DeployedNetwork(fold_batch_norms(network) if fold_bn else network, metadata)
    size = height_width(metadata.preprocessing.input_size)
    # Trace a variable batch size with 2 images: torch.export specializes a dimension of size 1. torch.jit.trace does not, and
    # ncnn's converter (pnnx) reads the batch size of the example from a TorchScript file and takes 1 only.
    examples = 1 if metadata.batch_size or format == "torchscript" else 2
    images = torch.full((examples, weights.channels, *size), 128, dtype=torch.uint8)
    with torch.no_grad(), silenced():
        content = WRITERS[format](deployed, metadata.to_input(images), metadata)
    return restate_for_opset(content, opset) if format == "onnx" else content


def largest_difference(logits: Tensor, expected: Tensor) -> float:
    """Return the largest difference between logits relative to the largest expected logit; NaN if a logit is NaN."""
    return ((logits - expected).abs().max() / expected.abs().max()).item()


def _dynamic_shapes(metadata: ExportMetadata) -> tuple[dict[int, torch.export.Dim]] | None:
    return None if metadata.batch_size else ({0: torch.export.Dim("batch")},)


def _write_onnx(network: DeployedNetwork, example: Tensor, metadata: ExportMetadata) -> bytes:
    import_optional("`format=onnx`", "onnx", "onnxscript", "onnxruntime")
    program = torch.onnx.export(
        network,
        (example,),
        input_names=["images"],
        output_names=["logits"],
        opset_version=EXPORTER_OPSET,
        dynamic_shapes=_dynamic_shapes(metadata),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    # The exporter records stack traces with the paths of Python files: a third of the file, and of no use elsewhere.
    graph = model.graph
    annotated = [model, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output]
    for message in annotated:
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    for key, value in metadata.to_strings().items():
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return content


def _write_torchscript(network: DeployedNetwork, example: Tensor, metadata: ExportMetadata) -> bytes:
    buffer = io.BytesIO()
    traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, buffer, _extra_files=metadata.to_strings())
    return buffer.getvalue()


def _write_exported(network: DeployedNetwork, example: Tensor, metadata: ExportMetadata) -> bytes:
    buffer = io.BytesIO()
    program = torch.export.export(network, (example,), dynamic_shapes=_dynamic_shapes(metadata))
    torch.export.save(program, buffer, extra_files=metadata.to_strings())
    return buffer.getvalue()


def _write_executorch(network: DeployedNetwork, example: Tensor, metadata: ExportMetadata) -> bytes:
    exir, xnnpack = import_optional(
        "`format=executorch`", "executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner"
    )
    lowered = exir.to_edge_transform_and_lower(
        torch.export.export(network, (example,)),
        partitioner=[xnnpack.XnnpackPartitioner()],
        constant_methods=metadata.to_strings() | {"checksum": UNSEALED},
    )
    return seal(bytes(lowered.to_executorch().buffer))


WRITERS: dict[str, Callable[[DeployedNetwork, Tensor, ExportMetadata], bytes]] = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "exported": _write_exported,
    "executorch": _write_executorch,
}

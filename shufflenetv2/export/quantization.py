"""Quantization of an exported ONNX file from float32 to int8, by ONNX Runtime's static quantization."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .metadata import ExportMetadata
from .packages import import_optional, silenced


def quantize(content: bytes, metadata: ExportMetadata, batches: Iterable[Tensor]) -> bytes:
    """Quantize an ONNX file to int8: weights with a scale per output channel, activations with a scale per tensor.

    Weights use seven of the eight bits. On a processor without VNNI instructions, ONNX Runtime adds two products in sixteen
    bits, which overflow with eight-bit weights: with the digits on a machine of this kind, accuracy fell by 5 points of top-1
    with eight bits and by none with seven. Quantized values stand between QuantizeLinear and DequantizeLinear nodes, which
    runtimes with int8 support recognize.

    Args:
        content: of the file in float32.
        metadata: of the same file.
        batches: typical images, uint8 (N, C, H, W), BGR or grey. The smallest and largest value of each activation define its
            scale.

    Raises:
        UserError: if a package that quantization needs is not installed.
    """
    onnx, quantization = import_optional("`int8`", "onnx", "onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder, silenced():
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(content)
        quantization.quantize_static(
            source,
            target,
            CalibrationReader(metadata, batches),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,
        )
        model = onnx.load(target)
    _compact(model.graph, int32=onnx.TensorProto.INT32)
    model.ClearField("metadata_props")
    for key, value in metadata.to_strings().items():
        model.metadata_props.add(key=key, value=value)
    quantized: bytes = model.SerializeToString()
    return quantized


class CalibrationReader:
    """Images in the form in which ONNX Runtime's calibration reads them: a batch per call, and None at the end."""

    def __init__(self, metadata: ExportMetadata, batches: Iterable[Tensor]) -> None:
        self._inputs = (images for batch in batches for images in metadata.input_batches(batch))

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self._inputs, None)
        return None if images is None else {"images": images.numpy()}


def _compact(graph: Any, int32: int) -> None:
    """Remove redundant zero points and shorten all names; together they are a tenth of the file of a small network."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        # The zero point of a bias is always 0, which is the default. (Without the zero points of weights, ONNX Runtime does
        # not recognize the nodes that it could fuse.)
        if node.op_type == "DequantizeLinear" and getattr(initializers.get(node.input[0]), "data_type", None) == int32:
            del node.input[2:]
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)

    names = {tensor.name: tensor.name for tensor in (*graph.input, *graph.output)} | {"": ""}

    def shorten(name: str) -> Any:
        return names.setdefault(name, np.base_repr(len(names), 36))

    for node in graph.node:
        node.name = ""
        node.input[:], node.output[:] = map(shorten, node.input), map(shorten, node.output)
    for tensor in graph.initializer:
        tensor.name = shorten(tensor.name)

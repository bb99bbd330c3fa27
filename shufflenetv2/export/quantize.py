"""From an ONNX file in float32 to one in int8, by ONNX Runtime's static quantization."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .formats import Description, optional, quiet


def quantized(content: bytes, description: Description, batches: Iterable[Tensor]) -> bytes:
    """The file in int8: a scale for each output channel of the weights, and for each tensor in between one.

    Weights use seven of their eight bits: where a processor has no VNNI, ONNX Runtime adds two products in sixteen
    bits, which overflow otherwise. (Measured with the digits on such a machine: 5 points of top-1, and with seven bits
    none.) What is quantized stands between nodes QuantizeLinear and DequantizeLinear, which runtimes with int8 know.

    Args:
        content: the file in float32.
        description: of the same.
        batches: uint8 (N, 3, H, W), BGR, to measure the ranges of the tensors in between on. Their smallest and
            largest values count.

    Raises:
        MissingPackageError: where a package that this needs is not there.
    """
    onnx, tools = optional("--int8", "onnx", "onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(content)
        tools.quantize_static(
            source,
            target,
            _Reader(description, batches),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QInt8,
            weight_type=tools.QuantType.QInt8,
            reduce_range=True,
        )
        model = onnx.load(target)
    _shorten(model.graph, onnx.TensorProto.INT32)
    model.ClearField("metadata_props")
    for key, value in description.metadata().items():
        model.metadata_props.add(key=key, value=value)
    result: bytes = model.SerializeToString()
    return result


def _shorten(graph: Any, int32: int) -> None:
    """Leaves out what says nothing: a small network has a tenth of its bytes in names, and in the zeros of its biases."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        # A bias is symmetric, and 0 is what is left out. (Without a weight's zeros ONNX Runtime does not see what to fuse.)
        if node.op_type == "DequantizeLinear" and getattr(initializers.get(node.input[0]), "data_type", None) == int32:
            del node.input[2:]
    used = {name for node in graph.node for name in node.input}
    left = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(left)

    names = {tensor.name: tensor.name for tensor in (*graph.input, *graph.output)} | {"": ""}

    def short(name: str) -> Any:
        return names.setdefault(name, np.base_repr(len(names), 36))

    for node in graph.node:
        node.name = ""
        node.input[:], node.output[:] = map(short, node.input), map(short, node.output)
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)


class _Reader:
    """Images in the form that ONNX Runtime's calibration asks for them: a batch per call, and None at the end."""

    def __init__(self, description: Description, batches: Iterable[Tensor]) -> None:
        self._parts = (part for batch in batches for part in description.batches(batch))

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self._parts, None)
        return None if images is None else {"images": images.numpy()}

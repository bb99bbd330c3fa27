"""Restate an ONNX file for an older operator set, which more runtimes read.

torch's exporter writes operator set 18 or newer, which ONNX Runtime before 1.17, OpenCV 4.6 and OpenVINO 2023 do not read, or
not fully. The network needs none of its new features.
"""

from typing import Any

import numpy as np

from .packages import import_optional

GLOBAL_POOLINGS = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
MIN_IR_VERSION = 8  # of the file format


def restate_for_opset(content: bytes, opset: int) -> bytes:
    """Return an ONNX file, written by torch's exporter for a network of this package, for another operator set.

    Means and maxima over height and width become global poolings, and reshapes lose an attribute: both then have the same
    meaning in every operator set from 13 on.

    Raises:
        onnx.checker.ValidationError: the result is not valid, because the network has an operator that `opset` lacks.
    """
    onnx, helper = import_optional("`format=onnx`", "onnx", "onnx.helper")
    model = onnx.load_from_string(content)
    graph = model.graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type in GLOBAL_POOLINGS:
            nodes += _global_pooling(helper, node, constants[node.input[1]])
        else:
            if node.op_type == "Reshape" and 0 not in constants[node.input[1]]:
                # `allowzero`, which is new in operator set 14, concerns shapes with a zero.
                del node.attribute[:]
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    (imported,) = model.opset_import
    imported.version = opset
    model.ir_version = max(MIN_IR_VERSION, helper.find_min_ir_version_for([imported]))
    onnx.checker.check_model(model, full_check=True)
    restated: bytes = model.SerializeToString()
    return restated


def _global_pooling(helper: Any, node: Any, axes: np.ndarray) -> list[Any]:
    """Return the nodes that pool over height and width as a reduction over these axes does."""
    assert sorted(axis % 4 for axis in axes) == [2, 3]
    keeps_axes = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
    pooled = node.output[0] if keeps_axes else f"{node.output[0]}_pooled"
    nodes = [helper.make_node(GLOBAL_POOLINGS[node.op_type], [node.input[0]], [pooled])]
    return nodes if keeps_axes else [*nodes, helper.make_node("Flatten", [pooled], [node.output[0]], axis=1)]

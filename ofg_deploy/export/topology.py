"""The shape of an ONNX graph without its weights: the same for two networks that cost the same to run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

FLOATING = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
QUANTISATION = {"QuantizeLinear", "DequantizeLinear"}  # their inputs: integer weights and biases, scales, zero points


@dataclass(frozen=True)
class Topology:
    """What a graph computes, weights left out.

    Attributes:
        sha256: digest of nodes, attributes, wiring, and shapes and types of inputs, outputs and weights.
        nodes: operator of each node in order.
        parameters: number of stored weights.
    """

    sha256: str
    nodes: tuple[str, ...]
    parameters: int


def weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The stored floating-point and quantised tensors that are not the scales of a resize."""
    scales = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input[1:]}
    quantised = {name for node in model.graph.node if node.op_type in QUANTISATION for name in node.input}
    return [
        t for t in model.graph.initializer if t.name not in scales and (t.data_type in FLOATING or t.name in quantised)
    ]


def topology(model: onnx.ModelProto) -> Topology:
    """Names do not count: values are numbered in the order in which they appear.

    Weights count by shape and type. Constants (integers, and the scales of a resize) decide what is computed, so they
    count by value.
    """
    graph = model.graph
    trained = {tensor.name for tensor in weights(model)}
    number: dict[str, int] = {"": -1}
    record: list[Any] = []
    parameters = 0
    for value in graph.input:
        number[value.name] = len(number)
        record.append(["input", value.name, str(value.type)])
    for tensor in graph.initializer:
        number[tensor.name] = len(number)
        is_weight = tensor.name in trained
        parameters += int(np.prod(tensor.dims)) if is_weight else 0
        content = None if is_weight else onnx.numpy_helper.to_array(tensor).tolist()
        record.append(["weight", list(tensor.dims), tensor.data_type, content])
    for node in graph.node:
        for name in node.output:
            number[name] = len(number)
        attributes = sorted((a.name, str(onnx.helper.get_attribute_value(a))) for a in node.attribute)
        wiring = [[number[n] for n in node.input], [number[n] for n in node.output]]
        record.append(["node", node.domain, node.op_type, attributes, wiring])
    record.append(["output", [[number[v.name], v.name, str(v.type)] for v in graph.output]])
    digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return Topology(digest, tuple(node.op_type for node in graph.node), parameters)

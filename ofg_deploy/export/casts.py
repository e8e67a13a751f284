"""A float32 graph with its arithmetic in a lower type: casts at the borders, islands that stay float32.

TensorRT 11 and ONNX Runtime take precision from the graph's types alone. Each node computes either in the lower type or
in float32; where a value crosses, one Cast, shared by all that read it. Weights are stored in the type that reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from onnx import NodeProto, TensorProto

from ofg_deploy.model_file import OPSET, OPSETS

LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
TORCH: dict[int, torch.dtype] = {TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16}
# Sums of many values, exponentials and coordinates: what 8 or 11 bits of mantissa are too few for.
ISLANDS = frozenset(
    {"LayerNormalization", "InstanceNormalization", "BatchNormalization", "Softmax", "GridSample"}
    | {"ReduceMean", "ReduceSum", "Sqrt", "Pow", "Exp", "Log"}
)
# What TensorRT cannot build in a type: tensorrt_rtx 1.7 has no transposed convolution of volumes in bfloat16.
NOT_BUILT = {"fp16": frozenset[str](), "bf16": frozenset({"ConvTranspose"})}


def lower(model: onnx.ModelProto, precision: str, keep: Iterable[str] = ()) -> onnx.ModelProto:
    """A copy of a float32 graph that computes in ``fp16`` or ``bf16``; inputs and outputs stay float32.

    Float32 remain: ``ISLANDS``; ``NOT_BUILT``; the flow head (the last convolution before each output) and all that
    follows it, hence coordinates and the integration of a velocity; what ``keep`` names.

    Args:
        keep: first outputs of nodes that stay float32.
    """
    low = LOW[precision]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    floats, kept = float_values(copy), set(keep)
    lowered = [node for node in lowerable(copy, precision) if node.output[0] not in kept]
    changed = {name for node in lowered for name in node.output if name in floats}
    crossing = _Crossing({t.name: t for t in graph.initializer}, changed, low)
    computed = {node.output[0] for node in lowered}
    nodes: list[NodeProto] = []
    for node in graph.node:
        for place in _data_inputs(node):
            if node.input[place] in floats:
                node.input[place] = crossing.read(node.input[place], node.output[0] in computed, nodes)
        nodes.append(node)
    _replace(graph.node, nodes)
    used = {name for node in nodes for name in node.input}
    _replace(graph.initializer, [t for t in [*graph.initializer, *crossing.stored.values()] if t.name in used])
    for info in graph.value_info:
        if info.name in changed:
            info.type.tensor_type.elem_type = low
    # Convolutions take bfloat16 from 22 on; besides their types no operator of ours changed in between.
    copy.opset_import[0].version = OPSETS[precision]
    onnx.checker.check_model(copy, full_check=True)
    return copy


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """A lowered graph in float32 arithmetic that rounds what each node gives to its type, for any runtime.

    ONNX Runtime's CPU provider has no bfloat16, and runs float16 with float32 between its layers wherever it can leave
    out a rounding: its errors were about half of those that arithmetic in float16 makes.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    lowered = {t.name: t.data_type for t in graph.initializer if t.data_type in TORCH}
    for tensor in graph.initializer:
        if tensor.name in lowered:
            value = _decoded(tensor).float().numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    nodes: list[NodeProto] = []
    for node in graph.node:
        given = [lowered[name] for name in (node.input[place] for place in _data_inputs(node)) if name in lowered]
        target = next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
        low = target if target in TORCH else given[0] if given and node.op_type not in ("Cast", "Shape") else None
        if node.op_type == "Cast" and low is not None:
            nodes += _rounding(node.input[0], node.output[0], low)
        else:
            nodes.append(node)
        for place, name in enumerate(node.output):
            if low is None:
                continue
            lowered[name] = low
            if node.op_type != "Cast":
                node.output[place] = f"{name}/exact"
                nodes += _rounding(node.output[place], name, low)
    _replace(graph.node, nodes)
    graph.ClearField("value_info")
    copy.opset_import[0].version = OPSET
    return copy


def float_values(model: onnx.ModelProto) -> set[str]:
    """Names of all float32 values of a graph, stored ones included."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    typed = [*graph.value_info, *graph.input, *graph.output]
    types = {v.name: v.type.tensor_type.elem_type for v in typed} | {t.name: t.data_type for t in graph.initializer}
    return {name for name, kind in types.items() if kind == TensorProto.FLOAT}


def lowerable(model: onnx.ModelProto, precision: str) -> list[NodeProto]:
    """The nodes that ``lower`` takes to the lower type."""
    floats, head, islands = float_values(model), _head(model.graph), ISLANDS | NOT_BUILT[precision]
    candidates = (node for node in model.graph.node if node.op_type not in islands | {"Cast"})
    return [
        node
        for node in candidates
        if node.output[0] in floats - head and any(node.input[place] in floats for place in _data_inputs(node))
    ]


def _head(graph: onnx.GraphProto) -> set[str]:
    """First outputs of the nodes between each output of the graph and the nearest convolutions, these included."""
    made_by = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    ahead = [value.name for value in graph.output]
    while ahead:
        node = made_by.get(ahead.pop())
        if node is not None and node.output[0] not in found:
            found.add(node.output[0])
            ahead += [] if node.op_type == "Conv" else node.input
    return found


def _data_inputs(node: NodeProto) -> range:
    """Places of the inputs that share the type of what is computed; a Resize has scales, float32 in any case."""
    return range(1 if node.op_type == "Resize" else 0 if node.op_type == "Shape" else len(node.input))


def _rounding(given: str, name: str, low: int) -> list[NodeProto]:
    """``given`` -> the nearest values of a lower type -> float32 again, as ``name``."""
    between = f"{name}/rounded"
    down = onnx.helper.make_node("Cast", [given], [between], f"{name}/round", to=low)
    return [down, onnx.helper.make_node("Cast", [between], [name], f"{name}/widen", to=TensorProto.FLOAT)]


@dataclass(eq=False)
class _Crossing:
    """Values in the type their reader wants: a stored tensor rounded once, a computed value cast once."""

    initializers: dict[str, TensorProto]
    changed: set[str]
    low: int
    stored: dict[str, TensorProto] = field(default_factory=dict)
    casts: set[str] = field(default_factory=set)

    def read(self, name: str, lowered: bool, nodes: list[NodeProto]) -> str:
        """Name under which a reader of this type finds it; appends the Cast in front of its first reader."""
        if lowered == (name in self.changed):
            return name
        kind = self.low if lowered else TensorProto.FLOAT
        wanted = f"{name}/{TensorProto.DataType.Name(kind).lower()}"
        if name in self.initializers:
            self.stored.setdefault(wanted, _rounded(self.initializers[name], wanted, kind))
        elif wanted not in self.casts:
            self.casts.add(wanted)
            nodes.append(onnx.helper.make_node("Cast", [name], [wanted], f"{wanted}/cast", to=kind))
        return wanted


def _rounded(tensor: TensorProto, name: str, low: int) -> TensorProto:
    value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()).to(TORCH[low])
    return onnx.helper.make_tensor(name, low, tensor.dims, value.view(torch.int16).numpy().tobytes(), raw=True)


def _decoded(tensor: TensorProto) -> torch.Tensor:
    bits = torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.int16)
    return bits.view(TORCH[tensor.data_type]).reshape(tuple(tensor.dims))


def _replace(repeated: Any, values: list[Any]) -> None:
    kept = [type(value).FromString(value.SerializeToString()) for value in values]
    repeated.clear()
    repeated.extend(kept)

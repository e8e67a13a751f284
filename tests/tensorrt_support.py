"""What TensorRT's ONNX parser takes, for the operators of our graphs: a table of our own, and who is beyond it.

Sources: the operator support matrix of the parser (onnx-tensorrt, docs/operators.md) as of TensorRT 10.15, opset 9 to
24; of that of 10.0 only the opsets, 9 to 20; the release notes of 11.0 (weak typing is gone, so types must be right as
they stand in the graph) and of 11.2 (GridSample of volumes in float32, float16, bfloat16). The matrix of 11.2 ends at
opset 24 as that of 10.15 does, so 11.0 in between does too. Types and ranks are those of ONNX's own inference.

Nobody could try it: the real parser in the tests is that of TensorRT-RTX, which takes all that 11.2 takes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Version = tuple[int, int]
VERSIONS: dict[Version, int] = {(10, 0): 20, (10, 15): 24, (11, 0): 24, (11, 2): 24}  # the newest opset of each
SAMPLES_VOLUMES: Version = (11, 2)

F32, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
I32, I64, I8, U8, BOOL = TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL
FLOATS = frozenset({F32, F16, BF16})
NUMBERS = FLOATS | {I32, I64}
ANY = NUMBERS | {BOOL}
TYPES: dict[str, frozenset[int]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "MatMul", "Gemm", "MaxPool", "AveragePool", "Resize"), FLOATS),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "Softmax", "LeakyRelu", "PRelu"), FLOATS),
    **dict.fromkeys(("Sqrt", "Erf", "Exp", "Tanh", "Sigmoid"), FLOATS),
    **dict.fromkeys(("Abs", "Add", "Sub", "Mul", "Div", "Pow", "Relu", "Gelu", "Pad"), NUMBERS),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), NUMBERS),
    **dict.fromkeys(("Concat", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"), ANY),
    **dict.fromkeys(("Shape", "Expand", "Identity", "Where", "Tile"), ANY),
    "Cast": ANY | {U8},
    "GridSample": FLOATS,
    "QuantizeLinear": FLOATS,
    "DequantizeLinear": frozenset({I8}),  # of the quantised side
}
RESIZE = {
    "coordinate_transformation_mode": {"half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"},
    "mode": {"nearest", "linear"},
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
    "keep_aspect_ratio_policy": {"stretch"},
    "antialias": {0},
}
# Inputs that must have one type where a network is strongly typed; TensorRT inserts no cast any more.
ALIKE = {"Conv": 3, "ConvTranspose": 3, "MatMul": 2, "Gemm": 3, "Concat": None, "PRelu": 2}
ALIKE |= dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow"), 2)
ALIKE |= {"LayerNormalization": 3, "InstanceNormalization": 3, "GridSample": 2}


def refusals(model: onnx.ModelProto, version: Version) -> list[str]:
    """What that version would not take, a line for each node; none if it builds."""
    opset = {entry.domain: entry.version for entry in model.opset_import}[""]
    found = [] if 9 <= opset <= VERSIONS[version] else [f"opset {opset}: 9 to {VERSIONS[version]} are supported"]
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.graph.ClearField("value_info")
    graph = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
    kinds = {value.name: value.type.tensor_type for value in [*graph.value_info, *graph.input, *graph.output]}
    types = {name: kind.elem_type for name, kind in kinds.items()} | {t.name: t.data_type for t in graph.initializer}
    ranks = {name: len(kind.shape.dim) for name, kind in kinds.items()}
    ranks |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        found += [f"{node.name} ({node.op_type}): {why}" for why in _of_node(node, types, ranks, stored, version)]
    return found


def _of_node(
    node: NodeProto, types: dict[str, int], ranks: dict[str, int], stored: dict[str, TensorProto], version: Version
) -> list[str]:
    if node.domain or node.op_type not in TYPES:
        return ["not in the table of supported operators"]
    given = [name for name in node.input if name]
    found = [f"nothing is known of {name}" for name in [*given, *node.output] if name and name not in types]
    if found:
        return found
    kind = types[given[0]]
    if kind not in TYPES[node.op_type]:
        found.append(f"{TensorProto.DataType.Name(kind)} is not supported")
    if node.op_type == "Cast" and types[node.output[0]] not in TYPES["Cast"]:
        found.append(f"to {TensorProto.DataType.Name(types[node.output[0]])} is not supported")
    if node.op_type in ALIKE and len({types[name] for name in given[: ALIKE[node.op_type]]}) > 1:
        found.append("its inputs have several types, and a strongly typed network has no casts but its own")
    if any(ranks[name] > 8 for name in [*given, *[o for o in node.output if o]]):
        found.append("a tensor has more than 8 dimensions")
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    settings = {name: v.decode() if isinstance(v, bytes) else v for name, v in settings.items()}
    return found + _of_settings(node, settings, given, ranks, stored, version)


def _of_settings(
    node: NodeProto,
    settings: dict[str, object],
    given: list[str],
    ranks: dict[str, int],
    stored: dict[str, TensorProto],
    version: Version,
) -> list[str]:
    kind, rank, found = node.op_type, ranks[given[0]], []
    if kind == "GridSample" and rank != 4 and not (rank == 5 and version >= SAMPLES_VOLUMES):
        found.append(f"input of rank {rank}: only 4" + " or 5" * (version >= SAMPLES_VOLUMES))
    if kind == "Resize":
        wrong = [f"{n} {v}" for n, v in settings.items() if n in RESIZE and v not in RESIZE[n]]
        found += [f"{what} is not supported" for what in wrong]
        if "axes" in settings and list(settings["axes"]) != list(range(rank)):  # type: ignore[call-overload]
            found.append("axes must be all of them, in order")
    if kind in ("Conv", "ConvTranspose", "MaxPool", "AveragePool") and rank not in (4, 5):
        found.append(f"input of rank {rank}: 2 or 3 spatial axes are supported")
    if kind in ("MaxPool", "AveragePool") and any(d != 1 for d in settings.get("dilations", [])):  # type: ignore[attr-defined]
        found.append("dilations are not supported")
    if kind in ("MaxPool", "LayerNormalization") and sum(map(bool, node.output)) > 1:
        found.append("only the first output is supported")
    if kind.startswith("Reduce") and len(given) > 1 and given[1] not in stored:
        found.append("axes must be stored")
    if kind in ("QuantizeLinear", "DequantizeLinear") and len(given) > 2:
        zero = stored.get(given[2])
        if zero is None or np.any(numpy_helper.to_array(zero)):
            found.append("the zero point must be zero")
        if zero is not None and zero.data_type != I8:
            found.append(f"{TensorProto.DataType.Name(zero.data_type)} is not supported")
    return found

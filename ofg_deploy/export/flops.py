"""What one run of an ONNX graph computes, counted from the graph alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import onnx

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Shape

ELEMENTWISE = frozenset(
    {
        "Abs",
        "Add",
        "And",
        "Cast",
        "Clip",
        "Cos",
        "DequantizeLinear",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
    }
    | {"Greater", "GreaterOrEqual", "HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul"}
    | {"Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin"}
    | {"Softplus", "Sqrt", "Sub", "Tanh", "Where"}
)
NORMALISATION = frozenset(
    {"AveragePool", "BatchNormalization", "GlobalAveragePool", "GroupNormalization", "InstanceNormalization"}
    | {"LayerNormalization", "LogSoftmax", "MaxPool", "RMSNormalization", "ReduceL2", "ReduceMax", "ReduceMean"}
    | {"ReduceMin", "ReduceSum", "ReduceSumSquare", "Softmax"}
)
RESAMPLING = frozenset({"GridSample", "Resize"})
MOVES = frozenset(
    {
        "Concat",
        "Constant",
        "ConstantOfShape",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
    }
    | {"Identity", "Pad", "Range", "Reshape", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth"}
    | {"Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True)
class Flops:
    """One pair through a graph.

    Attributes:
        products: floating-point operations of convolutions (transposed too) and matrix products, two for each
            multiply-add; biases are left out, as in torch's own counter.
        elementwise: values written by operators that treat values one by one; each counts as one, whatever the
            function.
        normalisation: values read by normalisations, softmax, pooling and reductions; each counts as one.
        resampling: values written by interpolation; each counts as one.
        uncounted: operators that none of these knows, by name. Those that only move values cost no operation.
    """

    products: int
    elementwise: int
    normalisation: int
    resampling: int
    uncounted: tuple[str, ...]


def count_flops(model: onnx.ModelProto, grid: Shape) -> Flops:
    """Operations of one pair (a batch of 1) on ``grid``.

    Raises:
        InputError: the shape of a value does not follow from the shapes of the inputs.
    """
    shapes = _shapes(model, grid)
    count: Counter[str] = Counter()
    unknown = set()

    def size(name: str) -> int:
        return prod(_known(shapes, name))

    for node in model.graph.node:
        kind = node.op_type
        if kind in ("Conv", "ConvTranspose"):
            # A kernel is applied once for each value written; the transpose of a convolution, for each value read.
            at = node.output[0] if kind == "Conv" else node.input[0]
            _, second, *kernel = _known(shapes, node.input[1])
            count["products"] += 2 * size(at) * second * prod(kernel)
        elif kind == "MatMul":
            count["products"] += 2 * size(node.output[0]) * _known(shapes, node.input[0])[-1]
        elif kind == "Gemm":
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            count["products"] += 2 * size(node.output[0]) * _known(shapes, node.input[0])[0 if transposed else 1]
        elif kind in ELEMENTWISE:
            count["elementwise"] += size(node.output[0])
        elif kind in NORMALISATION:
            count["normalisation"] += size(node.input[0])
        elif kind in RESAMPLING:
            count["resampling"] += size(node.output[0])
        elif kind not in MOVES:
            unknown.add(kind)
    return Flops(
        products=count["products"],
        elementwise=count["elementwise"],
        normalisation=count["normalisation"],
        resampling=count["resampling"],
        uncounted=tuple(sorted(unknown)),
    )


def _known(shapes: dict[str, tuple[int, ...] | None], name: str) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise InputError(f"the graph does not say which shape {name!r} has: its operations cannot be counted")
    return shape


def _shapes(model: onnx.ModelProto, grid: Shape) -> dict[str, tuple[int, ...] | None]:
    """By name; inferred anew for these inputs, since the graph itself leaves the batch open."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in copy.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        for dimension, n in zip(dimensions, (1, 1, *grid), strict=True):
            dimension.Clear()
            dimension.dim_value = n
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise InputError(f"the graph does not take {'x'.join(map(str, grid))}: {str(error).splitlines()[0]}") from error
    shapes: dict[str, tuple[int, ...] | None] = {t.name: tuple(t.dims) for t in inferred.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        tensor = value.type.tensor_type
        known = tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)
        shapes[value.name] = tuple(d.dim_value for d in tensor.shape.dim) if known else None
    return shapes

"""Exported graphs against what TensorRT's parser supports; ``test_networks`` and others ask where they make theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tensorrt_support import TYPES, refusals

torch = pytest.importorskip("torch")

from parity_sources import make_source  # noqa: E402
from traced import trace_once  # noqa: E402

from ofg_deploy.export.casts import lower  # noqa: E402
from ofg_deploy.train.networks import NETWORKS, build_network  # noqa: E402

GRID = (16, 32, 48)


def test_the_table_has_every_operator_that_a_network_may_export() -> None:
    grids = {"vit-v-net": (32, 32, 64), **{name: (32, 32, 64) for name in NETWORKS if "transmorph" in name}}
    for name in ("voxelmorph", "voxelmorph-2", "voxelmorph-half", "lku-net", "vit-v-net", "transmorph-small"):
        network = build_network(name, grids.get(name, GRID), diffeomorphic=True)
        assert network.onnx_ops <= set(TYPES), name


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_diffeomorphic_network_with_the_warped_image(precision: str) -> None:
    """It samples volumes, which TensorRT does from 11.2 on; nothing else of it is refused by an older one."""
    network = make_source(diffeomorphic=True).network.inference_copy(with_warp=True)
    model = trace_once(network, GRID)
    model = lower(model, precision) if precision != "fp32" else model
    samplers = [node.op_type for node in model.graph.node].count("GridSample")
    assert samplers == 8
    assert refusals(model, (11, 2)) == []
    for version in ((10, 15), (11, 0)):
        found = refusals(model, version)
        assert len(found) == samplers
        assert all("(GridSample): input of rank 5: only 4" in line for line in found)
    oldest = [line for line in refusals(model, (10, 0)) if "GridSample" not in line]
    assert oldest == (["opset 22: 9 to 20 are supported"] if precision == "bf16" else [])


def test_int8_is_refused_for_its_zero_points() -> None:
    """As ``ofg export --trt`` refuses it: activations have a zero point and no sign."""
    pytest.importorskip("onnxruntime")
    from ofg_deploy.export.quantise import quantise

    source = make_source()
    model = quantise(trace_once(source.network.inference_copy(), GRID), source.pairs)
    found = refusals(model, (11, 2))
    assert found
    kinds = {line.split("(", 1)[1].split(")")[0] for line in found}
    assert kinds == {"QuantizeLinear", "DequantizeLinear"}
    assert {line.split(": ", 1)[1] for line in found} <= {"the zero point must be zero", "UINT8 is not supported"}


def graph(nodes: list[Any], stored: dict[str, np.ndarray], shape: tuple[int, ...] = (1, 1, 8, 6, 4)) -> onnx.ModelProto:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    made = helper.make_graph(
        nodes,
        "g",
        [given],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)  # the type of ``y``


def node(kind: str, *inputs: str, out: str = "y", **settings: Any) -> Any:
    return helper.make_node(kind, list(inputs), [out], name="n", **settings)


SCALES = {"scales": np.array([1, 1, 2, 2, 2], np.float32)}
FAULTS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "operator": (lambda: graph([node("Selu", "x")], {}), "not in the table of supported operators"),
    "type": (
        lambda: graph([node("Cast", "x", out="d", to=TensorProto.DOUBLE), node("Abs", "d")], {}),
        "to DOUBLE is not supported",
    ),
    "resize": (
        lambda: graph([node("Resize", "x", "", "scales", mode="cubic")], SCALES),
        "mode cubic is not supported",
    ),
    "antialias": (
        lambda: graph([node("Resize", "x", "", "scales", mode="linear", antialias=1)], SCALES),
        "antialias 1 is not supported",
    ),
    "sampler": (
        lambda: graph(
            [node("GridSample", "x", "grid", mode="linear")], {"grid": np.zeros((1, 8, 6, 4, 3), np.float32)}
        ),
        "input of rank 5: only 4",
    ),
    "dilation": (
        lambda: graph([node("MaxPool", "x", kernel_shape=[2, 2, 2], dilations=[2, 1, 1])], {}),
        "dilations are not supported",
    ),
    "axes": (
        lambda: graph([node("Shape", "x", out="s"), node("ReduceMean", "x", "s")], {}),
        "axes must be stored",
    ),
    "zero point": (
        lambda: graph(
            [node("QuantizeLinear", "x", "scale", "zero")],
            {"scale": np.array(0.1, np.float32), "zero": np.array(3, np.uint8)},
        ),
        "the zero point must be zero",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_table_sees_what_a_parser_would_refuse(fault: str) -> None:
    make, expected = FAULTS[fault]
    assert expected in "\n".join(refusals(make(), (10, 15)))


def test_what_the_real_parser_says() -> None:
    """TensorRT-RTX's, of the same faults: it samples volumes as 11.2 does, knows operators that we have no use for, and
    takes double precision down to single; all else it refuses as the table does."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="parsed by tensorrt_rtx (pip install ofg-deploy[rtx])")
    taken = set()
    for fault, (make, _) in FAULTS.items():
        logger = rtx.Logger(rtx.Logger.INTERNAL_ERROR)
        builder = rtx.Builder(logger)
        network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = rtx.OnnxParser(network, logger)
        if parser.parse(make().SerializeToString()):
            taken.add(fault)
    assert taken == {"sampler", "operator", "type"}

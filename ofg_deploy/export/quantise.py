"""int8: a float32 graph whose convolutions and matrix products compute in 8 bits, calibrated on pairs (QDQ form)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ofg_deploy.errors import UsageError
from ofg_deploy.export.loggers import errors_only
from ofg_deploy.preprocess import PreparedPair
from ofg_deploy.serve.openvino import VELOCITY
from ofg_deploy.telemetry import quiet

HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def quantise(model: onnx.ModelProto, pairs: list[PreparedPair]) -> onnx.ModelProto:
    """Put QuantizeLinear and DequantizeLinear on both inputs of every convolution and product with stored weights.

    Weights: signed, symmetric, a scale for each output channel. Activations: unsigned with a zero point, one scale,
    from the smallest and largest value over all pairs, which takes no more memory than running the network. What reads
    the images and what makes the field stays float32, as do biases, sums and norms.

    TensorRT takes signed activations without a zero point alone, and from those OpenVINO 2026.4 computes fields that
    are wrong by half a millimetre (benchmarks/NOTES.md): such a file is for the CPU runtimes.

    Args:
        model: of ``export.onnx.trace``; not changed.
        pairs: on the model's grid, from the training set.

    Raises:
        UsageError: no pairs.
    """
    if not pairs:
        raise UsageError("int8 is calibrated on training pairs: export a run folder, or give `pairs` with a checkpoint")
    with quiet():
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    own = onnx.ModelProto()
    own.CopyFrom(model)  # the tool changes what it is given
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        with errors_only():  # it recommends a preparation that the exporter has done
            quantize_static(
                own,
                out,
                _Pairs(pairs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(HEAVY),
                nodes_to_quantize=_inner(model),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    # An activation is rounded once, behind its nonlinearity, where the next operator reads it.
                    "OpTypesToExcludeOutputQuantization": list(HEAVY),
                    "MatMulConstBOnly": True,
                },
            )
        quantised: onnx.ModelProto = onnx.load(out)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


class _Pairs:
    """Pairs as ONNX Runtime's calibration reads them: one a call, then None."""

    def __init__(self, pairs: list[PreparedPair]) -> None:
        self._rest: Iterator[PreparedPair] = iter(pairs)

    def get_next(self) -> dict[str, Any] | None:
        """Inputs of the next run."""
        pair = next(self._rest, None)
        if pair is None:
            return None
        given = {"moving": pair.moving, "fixed": pair.fixed}
        return {k: np.ascontiguousarray(v, np.float32)[None, None] for k, v in given.items()}


def _inner(model: onnx.ModelProto) -> list[str]:
    """Names of the heavy nodes with stored weights that neither read the images nor make the field or the velocity."""
    stored = {tensor.name for tensor in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type in HEAVY and n.input[1] in stored]
    raw = {value.name for value in model.graph.input}
    for node in model.graph.node:  # the images, and what is made of nothing else by anything light
        given = set(node.input) - stored - {""}
        if node not in nodes and given and given <= raw:
            raw.update(node.output)
    computed = {name for node in model.graph.node for name in node.output}
    final = {VELOCITY if VELOCITY in computed else "field"}
    for node in reversed(model.graph.node):
        if node not in nodes and final.intersection(node.output):
            final.update(node.input)
    return [n.name for n in nodes if n.input[0] not in raw and n.output[0] not in final]

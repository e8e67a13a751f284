"""A record as `ofg export --trt` writes it, of no particular engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ofg_deploy.model_file import Contract
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.serve.cuda import Gpu
from ofg_deploy.serve.engine_file import EngineRecord, Tensor

GPU = Gpu("NVIDIA RTX A6000", "sm86")


def engine_record(**changes: Any) -> EngineRecord:
    """Of an engine built on ``GPU``; ``changes`` by field."""
    grid = (6, 8, 10)
    contract = Contract("tiny", NetworkInput(grid, (1.0, 1.0, 2.0), Intensity(), "none"), 2, "ab" * 32, {"seed": 1})
    one = (1, 1, *grid)
    record = EngineRecord(
        engine_sha256="12" * 32,
        onnx="model.onnx",
        onnx_sha256="34" * 32,
        module="tensorrt",
        module_version="11.2.1",
        gpu=GPU.name,
        capabilities=("sm86",),
        precision="fp32",
        profile={"moving": (one, one, one), "fixed": (one, one, one)},
        tensors=(
            Tensor("moving", "input", "float32", (-1, 1, *grid)),
            Tensor("fixed", "input", "float32", (-1, 1, *grid)),
            Tensor("field", "output", "float32", (-1, 3, *grid)),
        ),
        layers=5,
        build_s=1.25,
        parity={"field_mm_max": 1e-3, "dice_difference": None},
        compared_with="eager float32 network, validation pairs of the run",
        contract=contract,
        version="0.1.0",
        command=("ofg", "export"),
    )
    return replace(record, **changes)

"""Which runtime ``runtime=auto`` takes: the one that was measured to be faster."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ofg_deploy.model_file import read_model

if TYPE_CHECKING:
    from ofg_deploy.options.words import Device, Runtime

# Network and precision -> how many times faster than ONNX Runtime OpenVINO is on a CPU (benchmarks/runtimes.py). Absent
# in float32: networks whose field OpenVINO changed by more than a thousandth of a voxel.
OPENVINO_FASTER = {
    ("lku-net", "fp32"): 1.6,
    ("lku-net", "int8"): 3.3,
    ("transmorph", "int8"): 6.2,
    ("voxelmorph", "fp32"): 2.8,
    ("voxelmorph", "int8"): 5.8,
    ("voxelmorph-half", "fp32"): 3.1,
    ("voxelmorph-half", "int8"): 4.4,
}
MEASURED = "benchmarks/results/runtimes.json"


@dataclass(frozen=True)
class Choice:
    """What was taken, and why in a few words; no reason where there was no choice."""

    runtime: Runtime
    reason: str | None


def choose(path: Path, device: Device) -> Choice:
    """The runtime for a model or an engine.

    Raises:
        InputError: an ``.onnx`` file that is not a model of ours.
    """
    if path.suffix != ".onnx":
        return Choice("tensorrt", None)
    if device == "cuda" or (device == "auto" and _offers_cuda()):
        return Choice("onnxruntime", "it runs models on CUDA")
    contract = read_model(path).contract
    what = f"{contract.network} {contract.precision}"
    ratio = OPENVINO_FASTER.get((contract.network, contract.precision), 0)
    measured = f"openvino is {ratio:g}x ONNX Runtime for {what} in {MEASURED}"
    if ratio > 1:
        faster: str | None = measured
    elif contract.precision == "bf16":
        faster = "ONNX Runtime does not run bf16 on a CPU"
    else:
        faster = None if _installed("onnxruntime") else "ONNX Runtime is not installed"
    if faster and _installed("openvino"):
        return Choice("openvino", faster)
    if faster:
        return Choice("onnxruntime", f"{faster}; openvino is not installed: pip install ofg-deploy[openvino]")
    return Choice("onnxruntime", f"openvino is not known to be faster for {what}")


def _offers_cuda() -> bool:
    from ofg_deploy.serve.onnx_runtime import offers_cuda

    return offers_cuda()


def _installed(package: str) -> bool:
    return find_spec(package) is not None

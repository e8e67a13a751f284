"""OpenVINO on the CPU: the only module that imports it."""

from __future__ import annotations

import io
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import DeviceError, InputError
from ofg_deploy.extras import not_installed
from ofg_deploy.field import Field
from ofg_deploy.kernels.integration import Integration
from ofg_deploy.model_file import SealedModel, read_model
from ofg_deploy.serve.interrupts import interruptible
from ofg_deploy.telemetry import quiet

if TYPE_CHECKING:
    from ofg_deploy.options.words import Device

VELOCITY = "velocity"  # what export calls the tensor that a diffeomorphic graph integrates


class OpenVinoEngine:
    """See ``serve.engine.Engine``. Compiled for the contract's grid; what is float32 in the file stays float32.

    OpenVINO has no sampling of volumes. A diffeomorphic model runs up to its velocity, which compiled kernels
    integrate; an output ``warped`` is not computed.

    Raises:
        InputError: not a model of ours, or not one that OpenVINO reads.
        DeviceError: no OpenVINO, or CUDA asked.
    """

    def __init__(self, path: Path, device: Device, threads: int) -> None:
        sealed = read_model(path)
        if device == "cuda":
            raise DeviceError("OpenVINO runs on the CPU here: give `device=cpu`, or `runtime=onnxruntime` for CUDA")
        try:
            with quiet():
                import openvino
        except ImportError as error:
            raise not_installed("openvino") from error
        self.contract = sealed.contract
        self.model_sha256 = sealed.sha256
        self.runtime = f"openvino {openvino.__version__.split('-')[0]}"
        self._integration = Integration.from_training(sealed.contract.training)
        self._threads = threads
        self._core = _core()
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if sealed.contract.precision == "bf16" and "BF16" not in capabilities:
            raise DeviceError(f"{path} is bf16, which this CPU does not compute in: use `runtime=onnxruntime`")
        self._options = {
            # Left to itself it takes bfloat16 for float32 where the CPU has it.
            "INFERENCE_PRECISION_HINT": "bf16" if sealed.contract.precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
            **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
        }
        self._sealed = sealed
        try:
            compiled = self._compile_for(sealed.contract.expects.shape)
        except Exception as error:  # its exception types share no base class
            raise InputError(f"{path} cannot be loaded by OpenVINO: {_reason(error)}") from error
        self.provider = f"CPU ({_arithmetic(compiled)})"

    def _compile_for(self, shape: tuple[int, ...]) -> Any:
        """For one grid: what is compiled for any runs slower."""
        model, self._velocity = _network_part(self._sealed)
        model.reshape({name: (1, 1, *shape) for name in ("moving", "fixed")})
        merge_upsampling(model)
        compiled = self._core.compile_model(model, "CPU", self._options)
        self._request, self._shape = compiled.create_infer_request(), shape
        return compiled

    def predict(self, moving: npt.NDArray[np.float32], fixed: npt.NDArray[np.float32]) -> Field:
        """See ``Engine.predict``."""
        if moving.shape != self._shape:
            self._compile_for(self.contract.on_grid(moving.shape).shape)
        given = {"moving": moving, "fixed": fixed}
        shared = {k: np.ascontiguousarray(v, dtype=np.float32)[None, None] for k, v in given.items()}
        try:
            interruptible(partial(self._request.infer, shared, share_inputs=True), self.stop)
        except Exception as error:  # its exception types share no base class
            raise DeviceError(f"{self.runtime} failed on {self.provider}: {_reason(error)}") from error
        predicted: Field = self._request.get_output_tensor(0).data[0]
        if not self._velocity:
            return predicted.copy()  # the next run writes there
        from ofg_deploy.kernels.compiled import most_threads, threads
        from ofg_deploy.kernels.velocity import integrate

        with threads(min(self._threads, most_threads())):
            return integrate(predicted, self._integration, self._shape)

    def stop(self) -> None:
        """End what runs now, with a DeviceError."""
        with suppress(Exception):  # what has failed cannot be stopped
            self._request.cancel()


@cache
def _core() -> Any:
    """One for the process, never destroyed.

    OpenVINO 2026.4's CPU plugin gives the thread an alternate stack for signals and takes it back in its destructor;
    of two that are destroyed in the order in which they were made, the second puts back the first one's, which is gone,
    and the next Ctrl-C is a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _network_part(sealed: SealedModel) -> tuple[Any, bool]:
    """The graph up to ``velocity`` where there is one, otherwise up to ``field``; and whether it is the former."""
    from openvino.frontend import FrontEndManager

    reader = FrontEndManager().load_by_framework("onnx")
    graph = reader.load(io.BytesIO(sealed.content))
    velocity = graph.get_place_by_tensor_name(VELOCITY)
    graph.override_all_outputs([velocity or graph.get_place_by_tensor_name("field")])
    return reader.convert(graph), velocity is not None


def merge_upsampling(model: Any) -> None:
    """Convolve before upsampling instead of after, where a float network doubles by nearest neighbour.

    A 3x3x3 convolution of [upsampled, skip] is a transposed convolution of what was upsampled (4x4x4, stride 2, the
    kernel convolved with a box of two voxels) plus a 3x3x3 convolution of skip: zeros outside included, and 8
    multiplications for an output voxel and channel instead of 27.

    It is done here and not in the file because ONNX Runtime computes a transposed convolution through a matrix of 64
    values for each voxel and channel: 7 GB at 160x192x224.

    Args:
        model: an ``openvino.Model`` of fixed shapes, changed in place.
    """
    from openvino import opset13 as ops

    for conv in model.get_ordered_ops():
        found = _doubled_and_skip(conv)
        if found is None:
            continue
        low, skip, kernel = found
        kind = conv.get_element_type()
        channels = low.shape[1]
        doubled = kernel[:, :channels]
        for axis in (2, 3, 4):
            before, after = ([(0, 0)] * 5 for _ in range(2))
            before[axis], after[axis] = (1, 0), (0, 1)
            doubled = np.pad(doubled, before) + np.pad(doubled, after)
        # A transposed convolution scatters: its kernel is mirrored, input channels first.
        transposed = np.ascontiguousarray(doubled[:, :, ::-1, ::-1, ::-1].swapaxes(0, 1))
        pads = {"pads_begin": [1] * 3, "pads_end": [1] * 3, "dilations": [1] * 3}
        from_low = ops.convolution_backprop_data(low, ops.constant(transposed, kind), strides=[2] * 3, **pads)
        rest = ops.constant(np.ascontiguousarray(kernel[:, channels:]), kind)
        from_skip = ops.convolution(skip, rest, strides=[1] * 3, **pads)
        total = ops.add(from_low, from_skip)
        total.set_friendly_name(conv.get_friendly_name())
        conv.output(0).replace(total.output(0))


def _doubled_and_skip(conv: Any) -> tuple[Any, Any, npt.NDArray[np.float32]] | None:
    """What is doubled, what is joined to it, and the kernel: of a convolution that ``merge_upsampling`` rewrites."""
    if conv.get_type_name() != "Convolution":
        return None
    how = conv.get_attributes()
    joined, weights = (conv.input_value(i).get_node() for i in range(2))
    same = all(list(how[key]) == [1] * 3 for key in ("strides", "dilations", "pads_begin", "pads_end"))
    plain = same and how["auto_pad"] == "explicit" and weights.get_type_name() == "Constant"
    if not plain or list(weights.shape[2:]) != [3] * 3:
        return None
    if joined.get_type_name() != "Concat" or joined.get_input_size() != 2 or joined.get_attributes()["axis"] != 1:
        return None
    upsampling = joined.input_value(0).get_node()
    if upsampling.get_type_name() != "Interpolate":
        return None
    how, low = upsampling.get_attributes(), upsampling.input_value(0)
    rule = (how["mode"], how["nearest_mode"], how["coordinate_transformation_mode"])
    doubles = list(upsampling.shape) == [*low.shape[:2], *(2 * n for n in low.shape[2:])]
    if rule != ("nearest", "floor", "asymmetric") or not doubles:
        return None
    # As float32: numpy has no bfloat16, and would be given its bits as float16.
    return low, joined.input_value(1), weights.get_data(dtype=np.float32)


def _arithmetic(compiled: Any) -> str:
    """What convolutions and matrix products really compute in, by the compiled graph: "f32", "int8 and f32"."""
    heavy = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    read = [{key: node[key].astype(str) for key in ("layerType", "runtimePrecision")} for node in nodes]
    found = {node["runtimePrecision"] for node in read if node["layerType"] in heavy}
    names = {"int8" if name in ("u8", "i8") else name for name in found}
    return " and ".join(sorted(names, reverse=True)) or str(compiled.get_property("INFERENCE_PRECISION_HINT"))


def _reason(error: BaseException) -> str:
    """The line that names the operator, or the first that is not about OpenVINO's own files."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "operations:" in line or "node '" in line]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (named or said or lines or [type(error).__name__])[0]

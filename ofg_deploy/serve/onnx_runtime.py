"""ONNX Runtime, on CPU or CUDA: the only module that imports it."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import DeviceError, InputError, UsageError
from ofg_deploy.extras import not_installed
from ofg_deploy.field import Field
from ofg_deploy.model_file import read_model
from ofg_deploy.serve.interrupts import interruptible
from ofg_deploy.telemetry import quiet

if TYPE_CHECKING:
    from ofg_deploy.options.words import Device

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeEngine:
    """See ``serve.engine.Engine``."""

    def __init__(self, path: Path, device: Device, threads: int, gpu: int = 0) -> None:
        sealed = read_model(path)
        try:
            with quiet():
                import onnxruntime
        except ImportError as error:
            raise not_installed("onnxruntime") from error
        offered = onnxruntime.get_available_providers()
        if device == "auto":
            device = "cuda" if PROVIDERS["cuda"] in offered else "cpu"
        wanted = PROVIDERS[device]
        if wanted not in offered:
            raise DeviceError(f"`device` {device}: this ONNX Runtime offers only {', '.join(offered)}")
        complaint = _load_cuda_libraries(onnxruntime) if device == "cuda" else ""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                sealed.content, options, providers=[(wanted, _cuda_options(gpu) if device == "cuda" else {})]
            )
        except Exception as error:  # its exception types share no base class
            if device == "cpu" and sealed.contract.precision == "bf16":
                raise DeviceError(
                    f"{path} is bf16, which ONNX Runtime does not run on a CPU: give `runtime=openvino`, "
                    "build a TensorRT engine from it, or export fp32 or fp16"
                ) from error
            raise InputError(f"{path} cannot be loaded by ONNX Runtime: {_first_line(error)}") from error
        # It falls back to the CPU in silence when CUDA libraries are missing: compare what runs with what was asked.
        used = self._session.get_providers()
        if used[0] != wanted:
            why = f": {complaint}" if complaint else ""
            raise DeviceError(
                f"`device` {device}: ONNX Runtime could not start {wanted} and offers {', '.join(used)}{why}"
            )
        self._run_options = onnxruntime.RunOptions
        self._under_way: list[Any] = []
        self._stopped = False
        self._changing = threading.Lock()
        self.contract = sealed.contract
        self.model_sha256 = sealed.sha256
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.provider = used[0]

    def predict(self, moving: npt.NDArray[np.float32], fixed: npt.NDArray[np.float32]) -> Field:
        """See ``Engine.predict``."""
        return self.run(moving, fixed)["field"]

    def predict_several(self, moving: npt.NDArray[np.float32], fixed: npt.NDArray[np.float32]) -> Field:
        """(N, X, Y, Z) twice -> (N, 3, X, Y, Z). UsageError: a model of one pair at a time, or not on this grid."""
        if self._session.get_inputs()[0].shape[0] == 1:
            raise UsageError("this model takes one pair at a time: leave `batch_size` out, or export it again")
        self.contract.on_grid(moving.shape[1:])
        return self._outputs(["field"], {"moving": moving[:, None], "fixed": fixed[:, None]})[0]

    def run(self, moving: npt.NDArray[np.float32], fixed: npt.NDArray[np.float32]) -> dict[str, Field]:
        """Every output of the contract by name, as (channels, X, Y, Z). UsageError: a grid it does not take."""
        for image in (moving, fixed):
            self.contract.on_grid(image.shape)
        inputs = {"moving": moving[None, None], "fixed": fixed[None, None]}
        names = self.contract.outputs
        return {name: found[0] for name, found in zip(names, self._outputs(names, inputs), strict=True)}

    def _outputs(self, names: Sequence[str], inputs: dict[str, npt.NDArray[np.float32]]) -> list[Field]:
        """DeviceError: on a grid it takes, a network fails for reasons that are no pair's own."""
        options = self._run_options()
        with self._changing:
            options.terminate = self._stopped
            self._under_way.append(options)
        try:
            found: list[Field] = interruptible(
                partial(self._session.run, names, inputs, options), partial(setattr, options, "terminate", True)
            )
        except Exception as error:  # its exception types share no base class
            raise DeviceError(f"{self.runtime} failed on {self.provider}: {_first_line(error)}") from error
        finally:
            with self._changing:
                self._under_way.remove(options)
        return found

    def stop(self) -> None:
        """End what runs now and whatever would run later, each with a DeviceError."""
        with self._changing:
            self._stopped = True
            for options in self._under_way:
                options.terminate = True


def offers_cuda() -> bool:
    """The ONNX Runtime that is installed was built for CUDA; false without any."""
    found = find_spec("onnxruntime")
    folders = (found.submodule_search_locations or ()) if found else ()
    if not any(list(Path(folder).glob("capi/*onnxruntime_providers_cuda*")) for folder in folders):
        return False  # the import, which would say the same, takes a sixth of a second
    try:
        with quiet():
            import onnxruntime
    except ImportError:
        return False
    return PROVIDERS["cuda"] in onnxruntime.get_available_providers()


def _cuda_options(gpu: int) -> dict[str, str]:
    """Float32 is float32: on its own the provider rounds the inputs of convolutions to 10 bits (TF32)."""
    return {"device_id": str(gpu), "use_tf32": "0"}


def _load_cuda_libraries(onnxruntime: ModuleType) -> str:
    """Load CUDA and cuDNN from NVIDIA's packages, where torch's installation puts them; else the system's are taken.

    Returns:
        What it could not load, on one line; empty where there was nothing to say.
    """
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:
        return ""
    printed = io.StringIO()
    with redirect_stdout(printed):  # it prints what is missing, and raises nothing
        preload()
    return (printed.getvalue().strip().splitlines() or [""])[0]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

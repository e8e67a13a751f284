"""TensorRT and TensorRT-RTX, one code path: the only module that imports them.

Both have the same API under two module names. Builder and runtime ask ``TensorRT`` for what differs.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import DeviceError
from ofg_deploy.field import Field
from ofg_deploy.serve.cuda import Gpu, Session, present_gpu, use_gpu
from ofg_deploy.serve.engine_file import (
    CHANNELS,
    EngineRecord,
    Range,
    Tensor,
    content_mismatches,
    file_mismatches,
    place_mismatches,
    read_record,
)

if TYPE_CHECKING:
    from ofg_deploy.options.words import Device

NAMES = ("tensorrt", "tensorrt_rtx")
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32", "INT64": "int64"}

Rebuild = Callable[[Path, EngineRecord, list[str]], None]  # the engine, and why it does not fit


@dataclass(frozen=True)
class TensorRT:
    """One of the two modules, and what it can do."""

    name: str
    module: Any

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process imports the module itself."""
        return _import, (self.name,)

    @property
    def version(self) -> str:
        """As the module gives it."""
        return str(self.module.__version__)

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities (``sm86``) it builds for without a GPU; none where it needs the GPU itself."""
        offered = getattr(self.module, "ComputeCapability", None)
        if offered is None or not hasattr(self.module.IBuilderConfig, "set_compute_capability"):
            return ()
        found = [name[2:] for name in offered.__members__ if name.startswith("SM") and name[2:].isdigit()]
        return tuple(f"sm{number}" for number in sorted(found, key=int))

    @property
    def times_tactics(self) -> bool:
        """It measures kernels while building; TensorRT-RTX compiles at load time and deprecates its timing cache."""
        return self.name == "tensorrt"

    @property
    def captures_itself(self) -> bool:
        """It makes CUDA graphs on its own, and must not be captured from outside."""
        return hasattr(self.module, "CudaGraphStrategy")

    @cached_property
    def log(self) -> Any:
        """A logger of the module that keeps what went wrong in ``log.errors`` instead of printing it."""
        base: Any = self.module.ILogger

        class Log(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity in (base.ERROR, base.INTERNAL_ERROR):
                    self.errors.append(" ".join(message.split()))

        return Log()


def find_module(name: str) -> TensorRT | None:
    """The module of that name, or None where it is not installed."""
    try:
        return _import(name)
    except ImportError:  # also a wheel without its libraries
        return None


def _import(name: str) -> TensorRT:
    return TensorRT(name, importlib.import_module(name))


def installed() -> list[TensorRT]:
    """Those of both that are there."""
    return [found for name in NAMES if (found := find_module(name))]


class TensorRTEngine:
    """See ``serve.engine.Engine``. Runs pairs one by one; buffers are allocated once.

    From the second pair on, a runtime that does not make CUDA graphs itself is captured into one: a single pair
    would pay for the capture and gain nothing.

    Args:
        rebuild: builds the engine again for this place from the ONNX beside it; None refuses one that does not fit.
        gpu: which of those that CUDA shows.

    Raises:
        InputError: no engine of ours.
        DeviceError: no GPU, no TensorRT, or an engine that does not fit and may not or cannot be rebuilt.
    """

    def __init__(self, path: Path, device: Device, rebuild: Rebuild | None = None, gpu: int = 0) -> None:
        record = read_record(path)
        if device == "cpu":
            raise DeviceError(f"{path} runs on CUDA alone: give `device=cuda`, or the .onnx model for `device=cpu`")
        self._gpu = gpu
        here = present_gpu(gpu)
        plan = path.read_bytes()
        problems = self._problems(path, plan, record, here)
        if problems and rebuild:
            rebuild(path, record, problems)
            record, plan = read_record(path), path.read_bytes()
            problems = self._problems(path, plan, record, here)
        if problems:
            raise DeviceError(
                f"{path} is incompatible with this GPU or TensorRT: {'; '.join(problems)}: add `rebuild=True` or "
                "export it again"
            )
        trt = find_module(record.module)
        assert trt is not None  # place_mismatches named it otherwise
        self.contract = record.contract
        self.model_sha256 = record.engine_sha256
        self.runtime = str(trt)
        self.provider = f"{here.name} ({here.capability})"
        self._open(trt, plan, path, record)

    @staticmethod
    def _problems(path: Path, plan: bytes, record: EngineRecord, gpu: Gpu) -> list[str]:
        versions = {trt.name: trt.version for trt in installed()}
        return file_mismatches(path, plan, record) + place_mismatches(record, versions, gpu)

    def _open(self, trt: TensorRT, plan: bytes, path: Path, record: EngineRecord) -> None:
        module = trt.module
        self._runtime = module.Runtime(trt.log)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise DeviceError(f"{path} cannot be loaded by {trt}: {'; '.join(trt.log.errors) or 'no reason given'}")
        problems = content_mismatches(record, *describe(self._engine))
        if problems:
            raise DeviceError(f"{path} differs from its record: {'; '.join(problems)}: export it again")
        if trt.captures_itself:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._context = self._engine.create_execution_context(config)
        else:
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise DeviceError(f"{trt} has no room to run {path} on the GPU: {'; '.join(trt.log.errors)}")
        grid = record.contract.expects.shape
        names = ("moving", "fixed", *record.contract.outputs)  # warped stays on the GPU: nothing here reads it
        self._shapes = {name: (1, CHANNELS[name], *grid) for name in names}
        self._session = Session({name: 4 * int(np.prod(shape)) for name, shape in self._shapes.items()})
        self._finalizer = weakref.finalize(self, self._session.close)
        self._finalizer.atexit = False  # the driver may be gone by then, and it frees a dead process's memory
        for name, shape in self._shapes.items():
            placed = self._context.set_tensor_address(name, self._session.address[name])
            is_input = name in ("moving", "fixed")
            if not placed or (is_input and not self._context.set_input_shape(name, shape)):
                raise DeviceError(f"{trt} refuses the tensor {name} {shape} of {path}")
        capturable = getattr(self._context, "is_stream_capturable", lambda stream: True)
        self._captures = not trt.captures_itself and bool(capturable(self._session.stream))
        self._runs = 0

    def predict(self, moving: npt.NDArray[np.float32], fixed: npt.NDArray[np.float32]) -> Field:
        """See ``Engine.predict``."""
        use_gpu(self._gpu)  # a setting of the thread, and pairs of a batch come from many
        given = {"moving": moving, "fixed": fixed}
        held = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in given.items()}
        for name, value in held.items():
            self.contract.on_grid(value.shape)
            self._session.upload(name, value)
        self._run()
        field: Field = np.empty(self._shapes["field"], dtype=np.float32)
        self._session.download("field", field)
        self._session.synchronise()
        self._runs += 1
        first: Field = field[0]
        return first

    def close(self) -> None:
        """Free the GPU memory."""
        self._finalizer()

    def _run(self) -> None:
        if self._captures and self._runs > 0:
            self._session.replay(self._enqueue)
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._session.stream):
            raise DeviceError(f"{self.runtime} could not run the network")


def describe(engine: Any) -> tuple[tuple[Tensor, ...], dict[str, Range]]:
    """Inputs and outputs of a loaded engine, and the shapes its first profile takes."""
    tensors, profile = [], {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        mode = engine.get_tensor_mode(name).name.lower()
        shape = tuple(engine.get_tensor_shape(name))
        tensors.append(Tensor(name, mode, dtype_name(engine.get_tensor_dtype(name)), shape))
        if mode == "input":
            low, best, high = (tuple(s) for s in engine.get_tensor_profile_shape(name, 0))
            profile[name] = (low, best, high)
    return tuple(tensors), profile


def dtype_name(dtype: Any) -> str:
    """TensorRT's ``DataType.FLOAT`` -> ``float32``."""
    name = str(dtype.name)
    return DTYPES.get(name, name.lower())

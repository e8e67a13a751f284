"""A GPU made of host memory: stand-ins for cuda-python and for TensorRT's runtime that really move and compute numbers.

Every name and number of arguments is checked against the real packages, so that a call they do not have fails here too.
"""

# ruff: noqa: N802
from __future__ import annotations

import ctypes
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorrt_rtx
from cuda.bindings import runtime as real_cuda


class Error(IntEnum):
    OK = 0
    OUT_OF_MEMORY = 2


class FakeCuda:
    """``cuda.bindings.runtime`` whose device memory is host memory; ``calls`` is what was called, in order."""

    cudaMemcpyKind = real_cuda.cudaMemcpyKind  # noqa: N815
    cudaStreamCaptureMode = real_cuda.cudaStreamCaptureMode  # noqa: N815

    def __init__(self, name: str = "Fake GPU", capability: tuple[int, int] = (8, 6), room: int = 1 << 30) -> None:
        self.calls: list[str] = []
        self.room = room
        self.memory: dict[int, Any] = {}
        self.pending: list[Any] | None = None
        self.properties = SimpleNamespace(name=name.encode(), major=capability[0], minor=capability[1])

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value

        def checked(*arguments: Any) -> Any:
            signature = getattr(real_cuda, name).__doc__.strip().splitlines()[0]
            inside = signature[signature.index("(") + 1 : signature.rindex(")")]
            assert len(arguments) == (inside.count(",") + 1 if inside else 0), signature
            self.calls.append(name)
            return value(*arguments)

        return checked

    def cudaGetErrorString(self, error):
        return Error.OK, b"out of memory"

    def cudaSetDevice(self, device):
        return (Error.OK,) if device == 0 else (Error.OUT_OF_MEMORY,)

    def cudaGetDevice(self):
        return Error.OK, 0

    def cudaGetDeviceProperties(self, device):
        return Error.OK, self.properties

    def cudaStreamCreate(self):
        return Error.OK, 77

    def cudaStreamDestroy(self, stream):
        return (Error.OK,)

    def cudaStreamSynchronize(self, stream):
        return (Error.OK,)

    def cudaMalloc(self, size):
        if size > self.room:
            return Error.OUT_OF_MEMORY, None
        self.room -= size
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return Error.OK, ctypes.addressof(buffer)

    def cudaFree(self, address):
        self.room += len(self.memory.pop(address))
        return (Error.OK,)

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        on_device = dst if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else src
        assert len(self.memory[on_device]) == count
        ctypes.memmove(dst, src, count)
        return (Error.OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.pending = []
        return (Error.OK,)

    def cudaStreamEndCapture(self, stream):
        captured, self.pending = self.pending, None
        return Error.OK, captured

    def cudaGraphInstantiate(self, graph, flags):
        return Error.OK, list(graph)

    def cudaGraphLaunch(self, executable, stream):
        for work in executable:
            work()
        return (Error.OK,)

    def cudaGraphDestroy(self, graph):
        return (Error.OK,)

    def cudaGraphExecDestroy(self, executable):
        return (Error.OK,)


class Checked:
    """A stand-in that only has methods the real class has."""

    real: type

    def __init_subclass__(cls) -> None:
        unknown = [name for name in vars(cls) if not name.startswith("_") and name not in ("real", "fake")]
        assert all(hasattr(cls.real, name) for name in unknown), unknown


class FakeContext(Checked):
    """Computes field = (moving, fixed, moving - 2 fixed) from device memory; a capture records it instead."""

    real = tensorrt_rtx.IExecutionContext

    def __init__(self, cuda: FakeCuda, grid: tuple[int, int, int]) -> None:
        self._cuda, self._grid, self._address, self._shape = cuda, grid, {}, {}

    def set_tensor_address(self, name, memory):
        self._address[name] = memory
        return True

    def set_input_shape(self, name, shape):
        self._shape[name] = tuple(shape)
        return tuple(shape) == (1, 1, *self._grid)

    def is_stream_capturable(self, stream):
        return True

    def execute_async_v3(self, stream_handle):
        assert stream_handle == 77
        self._cuda.calls.append("execute")
        if self._cuda.pending is not None:
            self._cuda.pending.append(self._compute)
        else:
            self._compute()
        return True

    def _compute(self) -> None:
        moving, fixed = (self._view(name, self._grid) for name in ("moving", "fixed"))
        self._view("field", (3, *self._grid))[:] = np.stack([moving, fixed, moving - 2 * fixed])
        if "warped" in self._address:
            self._view("warped", self._grid)[:] = -moving

    def _view(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(self._cuda.memory[self._address[name]], dtype=np.float32).reshape(shape)


class FakeEngine(Checked):
    """Says of itself what a plan of a model on ``grid`` would."""

    real = tensorrt_rtx.ICudaEngine

    def __init__(self, cuda: FakeCuda, grid: tuple[int, int, int], most: int = 1, warps: bool = False) -> None:
        self._cuda, self._grid, self._most = cuda, grid, most
        self.num_io_tensors = 4 if warps else 3

    num_io_tensors = 3

    def get_tensor_name(self, index):
        return ("fixed", "moving", "field", "warped")[index]

    def get_tensor_mode(self, name):
        is_input = name in ("fixed", "moving")
        return tensorrt_rtx.TensorIOMode.INPUT if is_input else tensorrt_rtx.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return tensorrt_rtx.DataType.FLOAT

    def get_tensor_shape(self, name):
        return (-1, 3 if name == "field" else 1, *self._grid)

    def get_tensor_profile_shape(self, name, profile_index):
        return [(n, 1, *self._grid) for n in (1, 1, self._most)]

    def create_runtime_config(self):
        return SimpleNamespace(cuda_graph_strategy=None)

    def create_execution_context(self, config=None):
        self._cuda.strategy = config and config.cuda_graph_strategy
        return FakeContext(self._cuda, self._grid)


def images(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Moving and fixed on (6, 8, 10), not contiguous."""
    moving, fixed = np.random.default_rng(seed).random((2, 10, 8, 6), dtype=np.float32)
    return moving.T, fixed.T


def fake_module(
    cuda: FakeCuda, grid: tuple[int, int, int], captures_itself: bool, most: int = 1, warps: bool = False
) -> SimpleNamespace:
    """``tensorrt`` or ``tensorrt_rtx`` that loads any plan as the stand-in engine."""

    class FakeRuntime(Checked):
        real = tensorrt_rtx.Runtime

        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, tensorrt_rtx.ILogger)

        def deserialize_cuda_engine(self, plan):
            return FakeEngine(cuda, grid, most, warps) if plan else None

    names = ["ILogger", "IBuilderConfig", "ComputeCapability", *(["CudaGraphStrategy"] if captures_itself else [])]
    same = {name: getattr(tensorrt_rtx, name) for name in names}
    return SimpleNamespace(__version__=tensorrt_rtx.__version__, Runtime=FakeRuntime, **same)

"""GPU memory and streams through cuda-python: the only module that imports it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ofg_deploy.errors import DeviceError
from ofg_deploy.extras import not_installed


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its name, and its compute capability as in ``sm86``."""

    name: str
    capability: str


def present_gpu(index: int = 0) -> Gpu:
    """The GPU of this number, which this thread uses from now on.

    Raises:
        DeviceError: there is none, or no driver, or no cuda-python.
    """
    api = _api()
    try:
        call(api, "cudaSetDevice", index)
        device = call(api, "cudaGetDevice")
        properties = call(api, "cudaGetDeviceProperties", device)
    except DeviceError as error:
        raise DeviceError(
            f"no usable GPU ({error}): use the .onnx model, or build for other machines with `cpu_build=True` `target`"
        ) from error
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name.rstrip("\0"), f"sm{properties.major}{properties.minor}")


def use_gpu(index: int) -> None:
    """What this thread does on CUDA happens on that GPU. DeviceError: there is none of that number."""
    call(_api(), "cudaSetDevice", index)


def visible_gpus() -> int:
    """How many GPUs CUDA shows (CUDA_VISIBLE_DEVICES), asked of the driver: no package is needed. 0 without one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def call(api: Any, name: str, *arguments: Any) -> Any:
    """The value of a CUDA runtime call, which returns (error, value) or (error,). Raises DeviceError on an error."""
    error, *values = getattr(api, name)(*arguments)
    if int(error) != 0:
        _, text = api.cudaGetErrorString(error)
        text = text.decode() if isinstance(text, bytes) else text
        raise DeviceError(f"{name}: {text}")
    return values[0] if values else None


class Session:
    """A stream, and one GPU buffer for each tensor, all allocated once.

    Args:
        bytes_of: size of each tensor's buffer.
        api: ``cuda.bindings.runtime``, or what stands in for it in a test.

    Raises:
        DeviceError: not enough GPU memory, or no GPU; nothing stays allocated.
    """

    def __init__(self, bytes_of: dict[str, int], api: Any = None) -> None:
        self._api = api or _api()
        self._graph: Any = None
        self._stream: Any = None
        self.address: dict[str, int] = {}
        try:
            self._stream = self._call("cudaStreamCreate")
            for name, size in bytes_of.items():
                self.address[name] = int(self._call("cudaMalloc", size))
        except DeviceError:
            self.close()
            raise

    @property
    def stream(self) -> int:
        """Handle for other libraries."""
        return int(self._stream)

    def upload(self, name: str, value: npt.NDArray[Any]) -> None:
        """Host array (contiguous) -> buffer; the array must live until ``synchronise``."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", self.address[name], value.ctypes.data, value.nbytes, kind, self._stream)

    def download(self, name: str, value: npt.NDArray[Any]) -> None:
        """Buffer -> host array (contiguous), complete after ``synchronise``."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", value.ctypes.data, self.address[name], value.nbytes, kind, self._stream)

    def synchronise(self) -> None:
        """Wait for everything on the stream."""
        self._call("cudaStreamSynchronize", self._stream)

    def replay(self, enqueue: Callable[[], None]) -> None:
        """Launch a CUDA graph of what ``enqueue`` puts on the stream, captured the first time.

        ``enqueue`` has run before outside a capture: a runtime's first run allocates, which a capture forbids.
        """
        if self._graph is None:
            mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._call("cudaStreamBeginCapture", self._stream, mode)
            try:
                enqueue()
            finally:  # a stream left in capture would fail every later call
                captured = self._call("cudaStreamEndCapture", self._stream)
            self._graph = self._call("cudaGraphInstantiate", captured, 0)
            self._call("cudaGraphDestroy", captured)
        self._call("cudaGraphLaunch", self._graph, self._stream)

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        if self._graph is not None:
            self._call("cudaGraphExecDestroy", self._graph)
        for address in self.address.values():
            self._call("cudaFree", address)
        if self._stream is not None:
            self._call("cudaStreamDestroy", self._stream)
        self._graph, self._stream, self.address = None, None, {}

    def _call(self, name: str, *arguments: Any) -> Any:
        return call(self._api, name, *arguments)


def _api() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise not_installed("cuda") from error
    return runtime

"""What every runtime looks like to the registration path, and how a model file finds its runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError, UsageError, check_count
from ofg_deploy.field import Field
from ofg_deploy.options.words import Device, Runtime

if TYPE_CHECKING:
    from ofg_deploy.serve.no_network import Promise
    from ofg_deploy.serve.tensorrt import Rebuild


class Engine(Protocol):
    """A loaded network, or what stands for it where there is none (``no_network``).

    Attributes:
        contract: what the model promises and expects.
        model_sha256: digest of the model file; None without one.
        runtime: name and version of what runs it.
        provider: what it really runs on, as the runtime reports it.
    """

    @property
    def contract(self) -> Promise:
        """See above, as the others."""
        ...

    @property
    def model_sha256(self) -> str | None:
        """Hex digits."""
        ...

    @property
    def runtime(self) -> str:
        """For people to read."""
        ...

    @property
    def provider(self) -> str:
        """For people to read; holds ``CPU`` where it is one."""
        ...

    def predict(self, moving: npt.NDArray[np.float32], fixed: npt.NDArray[np.float32]) -> Field:
        """(X, Y, Z) twice, 0..1 on the network's grid -> (3, X, Y, Z) float32 voxels."""
        ...


@dataclass(frozen=True)
class Served:
    """What an engine says of itself, for records: the model's contract and digest, runtime and provider."""

    contract: Promise
    model_sha256: str | None
    runtime: str
    provider: str

    @classmethod
    def of(cls, engine: Engine) -> Served:
        """As it is now."""
        return cls(engine.contract, engine.model_sha256, engine.runtime, engine.provider)


def check_threads(threads: int) -> None:
    """Raises UsageError for a negative number, which a runtime would take for its default in silence."""
    check_count("`threads`", threads, zero="the runtime's choice")


def open_engine(
    path: Path | str | None,
    device: Device = "auto",
    threads: int = 0,
    rebuild: Rebuild | None = None,
    runtime: Runtime | None = None,
    gpu: int = 0,
) -> Engine:
    """Load a model file.

    Args:
        path: None registers without a network.
        device: ``auto`` takes CUDA where the runtime offers it, otherwise the CPU; the engine says what it took.
        threads: CPU threads of the network; 0 leaves it to the runtime.
        rebuild: what to do with a TensorRT engine that does not fit this place; None refuses it.
        runtime: None takes TensorRT for an ``.engine`` and ONNX Runtime, in which exports are checked, for an
            ``.onnx``; ``auto`` is ``runtimes.choose``.
        gpu: which of those that CUDA shows.

    Raises:
        InputError: not a model of ours. DeviceError: the device or runtime is not there as asked.
        UsageError: a runtime that does not read such files, or a negative number of threads.
    """
    path = None if path is None else Path(path)
    check_threads(threads)
    if path is None:
        from ofg_deploy.serve.no_network import NoNetwork, WithoutNetwork

        return WithoutNetwork(NoNetwork.here())
    if path.suffix not in (".engine", ".onnx"):
        raise InputError(f"{path} is not an .onnx model or an .engine: make one with ofg export")
    if runtime == "auto":
        from ofg_deploy.serve.runtimes import choose

        runtime = choose(path, device).runtime
    if (path.suffix == ".engine") != (runtime == "tensorrt") and runtime is not None:
        reads = "an .engine, which ofg export builds with `trt=True`" if runtime == "tensorrt" else "an .onnx model"
        raise UsageError(f"`runtime` {runtime} runs {reads}: {path} is not one")
    if path.suffix == ".engine":
        from ofg_deploy.serve.tensorrt import TensorRTEngine

        return TensorRTEngine(path, device, rebuild, gpu)
    if runtime == "openvino":
        from ofg_deploy.serve.openvino import OpenVinoEngine

        return OpenVinoEngine(path, device, threads)
    from ofg_deploy.serve.onnx_runtime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, device, threads, gpu)

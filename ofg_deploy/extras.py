"""Packages that are not everywhere, what brings them, and the one line that says so where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from ofg_deploy.errors import DeviceError

# Module -> what people call it, and the extras that bring it; none: it comes with this package itself.
PACKAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("torch", ("train",)),
    "onnx": ("onnx", ("train",)),
    "onnxscript": ("onnxscript", ("train",)),
    "onnx_ir": ("onnxscript", ("train",)),
    "lightning_fabric": ("lightning-fabric", ("train",)),
    "tensorboard": ("TensorBoard", ("train",)),
    "filelock": ("filelock", ("train", "trt", "rtx")),
    "matplotlib": ("matplotlib", ("report", "train")),
    "onnxruntime": ("ONNX Runtime", ("cpu", "gpu")),
    "openvino": ("OpenVINO", ("openvino",)),
    "tensorrt": ("tensorrt", ("trt",)),
    "tensorrt_rtx": ("tensorrt_rtx", ("rtx",)),
    "cuda": ("cuda-python", ("trt", "rtx")),
    "ray": ("Ray", ("ray",)),
    "fastapi": ("FastAPI", ("serve",)),
    "uvicorn": ("uvicorn", ("serve",)),
    "pydantic": ("pydantic", ("serve",)),
    "python_multipart": ("python-multipart", ("serve",)),
    "prometheus_client": ("prometheus-client", ("serve",)),
    **{name: (name, ()) for name in ("numpy", "scipy", "nibabel", "SimpleITK", "numba", "isal", "typer", "rich")},
}


def need(*modules: str) -> None:
    """Find out before any work. Raises DeviceError for the first that is not installed."""
    for module in modules:
        if find_spec(module) is None:
            raise not_installed(module)


def not_installed(module: str) -> DeviceError:
    """What to say where a package is missing that is among ``PACKAGES``."""
    name, extras = PACKAGES[module]
    ways = [f"pip install ofg-deploy[{extra}]" for extra in extras] or ["pip install --force-reinstall ofg-deploy"]
    return DeviceError(f"{name} is not installed: {' or '.join(ways)}")


def explained(error: ImportError) -> DeviceError | None:
    """The same for an import that failed; None where the module is there, or is nothing of ``PACKAGES``."""
    module = (error.name or "").partition(".")[0]
    return not_installed(module) if isinstance(error, ModuleNotFoundError) and module in PACKAGES else None

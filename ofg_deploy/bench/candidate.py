"""What can be timed: a model in a runtime, the eager network, or optimisation of the field on the pair itself."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ofg_deploy.errors import DeviceError
from ofg_deploy.extras import explained
from ofg_deploy.field import Field
from ofg_deploy.geometry import Shape
from ofg_deploy.model_file import Contract
from ofg_deploy.passes import Image, Predict, in_passes
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.telemetry import quiet

if TYPE_CHECKING:
    from torch import nn

    from ofg_deploy.options.words import Runtime as EngineRuntime

Runtime = Literal["onnxruntime", "openvino", "tensorrt", "torch", "torch-channels-last", "torch-compile"]

EAGER: tuple[Runtime, ...] = ("torch", "torch-channels-last", "torch-compile")
FILES: dict[Runtime, str] = {"onnxruntime": ".onnx", "openvino": ".onnx", "tensorrt": ".engine"}
RUNTIMES: tuple[Runtime, ...] = (*FILES, *EAGER)
CASTS = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Candidate:
    """One thing to measure, opened in a process of its own.

    Attributes:
        source: the model, or the checkpoint of an eager network.
        precision: of an eager network; a model carries its own.
        threads: CPU threads of everything.
        contract, grid: of the network, for those that are built and not loaded.
        steps: of optimisation on the pair after the prediction; 0 for the network alone.
    """

    runtime: Runtime
    source: Path
    precision: str
    device: Literal["cpu", "cuda"]
    threads: int
    contract: Contract
    grid: Shape
    steps: int = 0

    def import_runtime(self) -> None:
        """Load the libraries, so that their size is not taken for the model's.

        Raises:
            DeviceError: they are not installed.
        """
        loaded = {"torch"} if self.runtime in EAGER or self.steps else set()
        loaded |= {str(self.runtime)} - {*EAGER, "tensorrt"}  # whose module has two names, chosen when it is opened
        loaded |= {"ofg_deploy.train.guidance"} if self.steps else set()
        try:
            with quiet():
                list(map(importlib.import_module, sorted(loaded)))
        except ImportError as error:
            raise explained(error) or DeviceError(f"{error.name} cannot be imported: {error}") from error

    def open(self) -> tuple[Predict, str]:
        """Ready to run, with all passes of the model, and what runs it.

        Raises:
            DeviceError: the runtime or the device is not there as asked.
        """
        if self.runtime in EAGER:
            predict, name = _eager(self)
            return in_passes(predict, self.contract.passes), name
        runtime = cast("EngineRuntime", self.runtime)
        engine = open_engine(self.source, self.device, self.threads, runtime=runtime)
        predict = in_passes(engine.predict, self.contract.passes)
        name = f"{engine.runtime} {engine.provider}"
        return (_with_optimiser(self, predict), name) if self.steps else (predict, name)


def _with_optimiser(candidate: Candidate, predict: Predict) -> Predict:
    """What the accuracy would cost without training for it: predict, then refine the field on the pair."""
    import torch

    from ofg_deploy.kernels.buffers import Buffers
    from ofg_deploy.train.guidance import refine

    torch.set_num_threads(candidate.threads)
    buffers = Buffers()  # kept, as somebody with many pairs would: fresh memory costs more than the steps

    def call(moving: Image, fixed: Image) -> Field:
        field = torch.from_numpy(predict(moving, fixed))[None]
        images = [torch.from_numpy(image)[None, None] for image in (moving, fixed)]
        refined: Field = refine(field, images[0], images[1], candidate.steps, lr=0.1, buffers=buffers)[0].numpy()
        return refined

    return call


def _eager(candidate: Candidate) -> tuple[Predict, str]:
    import torch

    device = candidate.device
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device: torch.cuda.is_available() is false here")
    torch.set_num_threads(candidate.threads)
    channels_last = candidate.runtime == "torch-channels-last"
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    network: Any = load_network(candidate.source, candidate.contract, candidate.grid).eval().to(device)
    network = network.to(memory_format=layout)
    if candidate.runtime == "torch-compile":
        network = torch.compile(network)
    cast = torch.autocast(
        device, getattr(torch, CASTS.get(candidate.precision, "float32")), candidate.precision in CASTS
    )

    def call(moving: Image, fixed: Image) -> Field:
        with torch.inference_mode(), cast:
            pair = [torch.from_numpy(i)[None, None].to(device, memory_format=layout) for i in (moving, fixed)]
            field: Field = network(*pair)[0].float().cpu().contiguous().numpy()
            return field

    return call, f"torch {torch.__version__} {device}"


def load_network(checkpoint: Path, contract: Contract, grid: Shape) -> nn.Module:
    """The eager network of an exported model, with the weights of a checkpoint, for a grid.

    Raises:
        UsageError: the weights are others than the model's, so their fields cannot be compared.
        InputError: not a checkpoint of this network.
    """
    from ofg_deploy.errors import UsageError
    from ofg_deploy.train.checkpoint import load_checkpoint, load_weights, weights_sha256
    from ofg_deploy.train.networks import fitting_class, recorded_form

    state = load_checkpoint(checkpoint).state
    architecture = fitting_class(contract.network, state, contract.training)
    network = architecture(grid, recorded_form(contract.training))
    load_weights(network, state, checkpoint)
    if weights_sha256(network.state_dict()) != contract.weights_sha256:
        raise UsageError(f"{checkpoint} holds other weights than the models: give the one they were exported from")
    return network

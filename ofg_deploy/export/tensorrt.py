"""Exported model -> TensorRT plan, by ``tensorrt`` or ``tensorrt_rtx``, for the GPU here or without one.

Nothing here needs torch or onnx, so that a place which only registers can rebuild an engine that does not fit it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ofg_deploy.child import GONE, Caller, Child
from ofg_deploy.errors import DeviceError, InputError, OfgError
from ofg_deploy.export.toolchain import Toolchain
from ofg_deploy.geometry import Shape
from ofg_deploy.model_file import SealedModel
from ofg_deploy.outputs import write_bytes
from ofg_deploy.serve.engine_file import CHANNELS, Range, Tensor
from ofg_deploy.serve.tensorrt import TensorRT, dtype_name

MAX_LISTED = 3
MAX_REASON = 300  # characters


class Progress(Protocol):
    """Who wants to know how a build goes; phases have names, contain each other and count their steps."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, inside ``parent``."""
        ...

    def step(self, phase: str, done: int) -> None:
        """So many of its steps are done."""
        ...

    def finish(self, phase: str) -> None:
        """It is over."""
        ...


@dataclass(frozen=True, eq=False)
class Built:
    """A plan and what is known of it."""

    plan: bytes
    tensors: tuple[Tensor, ...]
    profile: dict[str, Range]
    layers: int
    seconds: float


def build(model: SealedModel, path: Path, tools: Toolchain, timing: Path, progress: Progress | None) -> Built:
    """Parse, configure, build; in a process of its own, so that a crash of the builder is an error here.

    Args:
        path: of the model, for messages.
        timing: the timing cache, read and written where the module has one.

    Raises:
        InputError: the parser refuses the graph, or it is not a network of ours.
        DeviceError: TensorRT lacks what the graph needs, or could not build it, or crashed.
    """
    with Child(f"that built {path} with {tools.trt}", _build_there, model, path, tools, timing) as child:
        while not isinstance(told := child.receive(), Built):
            if progress:
                phase, *arguments = told
                getattr(progress, phase)(*arguments)
        return told


def _build_there(caller: Caller, model: SealedModel, path: Path, tools: Toolchain, timing: Path) -> None:
    def tell(*told: Any) -> bool:
        try:
            caller.send(told)
        except GONE:
            return False
        return True

    caller.send(build_here(model, path, tools, timing, tell))


def build_here(model: SealedModel, path: Path, tools: Toolchain, timing: Path, tell: Callable[..., bool]) -> Built:
    """``build`` in this process.

    Args:
        tell: takes the name of a method of ``Progress`` and its arguments; False stops the build.
    """
    start = time.perf_counter()
    trt, module = tools.trt, tools.trt.module
    builder = module.Builder(trt.log)
    # Needed by 10 and by RTX; 11 knows strong typing alone and ignores it.
    strongly_typed = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = module.OnnxParser(network, trt.log)
    if not parser.parse(model.content):
        raise refusal([parser.get_error(i) for i in range(parser.num_errors)], path, trt)
    tensors = _check_tensors(network, model, path)
    config = builder.create_builder_config()
    profile = _add_profile(builder, config, model.contract.expects.shape, tools.max_batch)
    _set_targets(config, tools)
    config.clear_flag(module.BuilderFlag.TF32)  # on by default; it would round inputs to 10 bits in silence
    if trt.times_tactics:
        stored = timing.read_bytes() if timing.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(stored), ignore_mismatch=False)
    config.progress_monitor = _monitor(module, tell)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DeviceError(f"{trt} could not build {path}: {_reason(trt.log.errors)}")
    if trt.times_tactics:
        write_bytes(timing, bytes(config.get_timing_cache().serialize()))
    return Built(bytes(plan), tensors, profile, network.num_layers, time.perf_counter() - start)


def refusal(errors: Sequence[Any], path: Path, trt: TensorRT) -> OfgError:
    """What the parser's errors mean: a graph that is wrong, or a TensorRT that is too old for it."""
    lines = [
        f"node {error.node_name() or error.node()} ({error.node_operator()}): {_reason([error.desc()])}"
        if error.node_operator()
        else _reason([error.desc()])
        for error in errors[:MAX_LISTED]
    ]
    said = "; ".join(lines) or _reason(trt.log.errors)
    if any(error.node_operator() == "GridSample" for error in errors):
        return DeviceError(
            f"{path} integrates a velocity field with a 5-D GridSample, which {trt} lacks (tensorrt has it from 11.2, "
            f"tensorrt_rtx has it): update it, or register with the .onnx model; an engine of this version takes "
            f"networks without integration alone. It says: {said}"
        )
    return InputError(f"{path} is refused by the ONNX parser of {trt}: {said}")


def _check_tensors(network: Any, model: SealedModel, path: Path) -> tuple[Tensor, ...]:
    """The parsed inputs and outputs must be those of the contract: parsers accept files without any."""
    found: list[Tensor] = []
    for mode, count, get in (
        ("input", network.num_inputs, network.get_input),
        ("output", network.num_outputs, network.get_output),
    ):
        values = map(get, range(count))
        found += [Tensor(value.name, mode, dtype_name(value.dtype), tuple(value.shape)) for value in values]
    contract = model.contract
    grid = contract.expects.shape if contract.sizes == "fixed" else (-1, -1, -1)
    expected = {Tensor(name, "input", "float32", (-1, 1, *grid)) for name in ("moving", "fixed")}
    expected |= {Tensor(name, "output", "float32", (-1, CHANNELS[name], *grid)) for name in contract.outputs}
    if set(found) != expected:
        given = ", ".join(f"{t.mode} {t.name} {t.dtype} {t.shape}" for t in found) or "none"
        raise InputError(
            f"{path} has tensors {given}; its contract says moving, fixed -> {', '.join(contract.outputs)} "
            f"in float32, (N, channels, X, Y, Z) with X, Y, Z {grid}: export it again"
        )
    return tuple(found)


def _add_profile(builder: Any, config: Any, grid: Shape, max_batch: int) -> dict[str, Range]:
    """The contract's grid alone, also where the graph would take others: kernels are chosen for it."""
    profile = builder.create_optimization_profile()
    one, most = (1, 1, *grid), (max_batch, 1, *grid)
    shapes: dict[str, Range] = {name: (one, one, most) for name in ("moving", "fixed")}
    for name, sizes in shapes.items():
        profile.set_shape(name, *sizes)
    config.add_optimization_profile(profile)
    return shapes


def _set_targets(config: Any, tools: Toolchain) -> None:
    if not tools.trt.targets:
        return  # builds for the GPU it runs on
    known = tools.trt.module.ComputeCapability
    wanted = ["CURRENT"] if tools.gpu else [f"SM{target[2:]}" for target in tools.capabilities]
    config.num_compute_capabilities = len(wanted)
    for index, name in enumerate(wanted):
        if not config.set_compute_capability(known.__members__[name], index):
            raise DeviceError(f"{tools.trt} refuses to build for {name}")


def _monitor(module: Any, tell: Callable[..., bool]) -> Any:
    base: Any = module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        """Called from inside the builder, where an exception is lost; a False stops the build."""

        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            tell("start", phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            return tell("step", phase, step + 1)

        def phase_finish(self, phase: str) -> None:
            tell("finish", phase)

    return Monitor()


def _reason(messages: Sequence[str]) -> str:
    """The first message about the network, on one line: a missing driver is noise in a build without GPU."""
    lines = [[line for line in message.splitlines() if "cudaError" not in line] for message in messages]
    told = [" ".join(kept) for kept in lines if kept] or list(messages)
    return told[0][:MAX_REASON] if told else "no reason given"

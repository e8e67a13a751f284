"""Step c: ONNX Runtime on CUDA against eager torch. Needs onnxruntime-gpu; its CUDA libraries come with torch.

Every figure is of a field from host memory to host memory, as registration needs it. Parity is to the eager float32
network on the CPU: field in mm (voxels of 1 mm), warped image, Dice, folding, with the bounds that ``ofg export`` has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from gpu_steps.context import Context, Figures
from gpu_steps.models import BRAIN, TINY, dice, make_network, make_pair, model_file, write_models
from gpu_steps.phantom import Shape
from ofg_deploy.bench.timing import Taken, interleaved, latency
from ofg_deploy.export.parity import BOUNDS, compare
from ofg_deploy.export.topology import topology
from ofg_deploy.field import Field
from ofg_deploy.model_file import read_model
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.train.validation import predict

Call = Callable[[Any, Any], Field]
NETWORKS = ("voxelmorph", "voxelmorph-half", "lku-net")
TINY_NETWORKS = ("voxelmorph-half",)
GATE = "within the bounds of ofg export; faster than eager torch"


def measure(context: Context) -> None:
    """A row for each network and runtime, then the zero-overhead pair; compiling, which may take long, goes last."""
    shape = TINY if context.dry else BRAIN
    networks = {name: make_network(name, shape) for name in (TINY_NETWORKS if context.dry else NETWORKS)}
    eager: dict[str, float] = {}
    for name, network in networks.items():
        rows = Rows(context, name, network, shape, eager)
        rows.add("eager torch", lambda n=network: torch_call(n, context.device))
        rows.add("torch, channels last", lambda n=network: torch_call(n, context.device, torch.channels_last_3d))
        for precision in ("fp32", "fp16"):
            rows.add_model(precision, lambda n=name, p=precision: model_file(context.work, n, shape, p))
        if context.device == "cuda":
            rows.add("onnxruntime fp32, TF32 allowed", lambda n=name: tf32_call(model_file(context.work, n, shape)))
    first = next(iter(networks))
    what = f"zero overhead: {first}, trained with guidance against never"
    context.attempt(what, lambda: zero_overhead(context, first, shape))
    for name, network in networks.items():
        rows = Rows(context, name, network, shape, eager)
        rows.add("torch.compile", lambda n=network: compiled_call(n, context))


class Rows:
    """The rows of one network. ``eager`` keeps the time of eager torch, which the others are compared with."""

    def __init__(self, context: Context, name: str, network: Any, shape: Shape, eager: dict[str, float]) -> None:
        self.context, self.name, self.shape, self.eager = context, name, shape, eager
        self.pair, self.labels = make_pair(shape)
        self._network, self._exact = network, None

    def add(self, runtime: str, open_it: Callable[[], Call], precision: str = "fp32") -> None:
        size = "x".join(map(str, self.shape))
        what = f"{self.name} {size}, {runtime}"
        self.context.attempt(what, lambda: self._figures(runtime, open_it, precision), GATE)

    def add_model(self, precision: str, path: Callable[[], Path]) -> None:
        """Of ONNX Runtime; what really runs it is in the row."""
        used: dict[str, str] = {}

        def open_it() -> Call:
            engine = open_engine(path(), self.context.device, runtime="onnxruntime")  # type: ignore[arg-type]
            used["provider"] = f"{engine.runtime}, {engine.provider}"
            return engine.predict

        size = "x".join(map(str, self.shape))
        what = f"{self.name} {size}, onnxruntime {precision}"
        self.context.attempt(what, lambda: self._figures("onnxruntime", open_it, precision) | used, GATE)

    def _figures(self, runtime: str, open_it: Callable[[], Call], precision: str) -> Figures:
        start = time.perf_counter()
        call = open_it()
        call(self.pair.moving, self.pair.fixed)
        first = time.perf_counter() - start
        taken = [clock(call, self.pair) for _ in range(3 if self.context.dry else 20)]
        p50, p95 = np.percentile(taken, [50, 95])
        if runtime == "eager torch":
            self.eager[self.name] = p50
        found: Figures = {"p50 ms": 1e3 * p50, "p95 ms": 1e3 * p95, "opened and first run s": first}
        if self.name in self.eager:
            found["times eager torch"] = self.eager[self.name] / p50
        return found | parity(self._reference, call, self.pair, self.labels, precision)

    def _reference(self, moving: Any, fixed: Any) -> Field:
        if self._exact is None:
            self._exact = predict(deepcopy(self._network).to("cpu"), moving, fixed, "cpu")
        return self._exact


def parity(reference: Call, call: Call, pair: Any, labels: Any, precision: str) -> Figures:
    """Differences, and whether ``ofg export`` would publish them."""
    found = compare(reference, call, [pair], [lambda field: dice(labels, field)])
    kept = ("field_mm_p99", "field_mm_max", "warped_difference_max", "dice_difference", "folding_difference_percent")
    beyond = found.beyond(BOUNDS[precision])
    return {**{k: v for k, v in asdict(found).items() if k in kept}, "gate": "; ".join(beyond) or "holds"}


def clock(call: Call, pair: Any) -> float:
    start = time.perf_counter()
    call(pair.moving, pair.fixed)
    return time.perf_counter() - start


def torch_call(network: Any, device: str, layout: torch.memory_format = torch.contiguous_format) -> Call:
    """Eager, from numpy to numpy."""
    network = deepcopy(network).to(device, memory_format=layout)

    def call(moving: Any, fixed: Any) -> Field:
        with torch.inference_mode():
            pair = (torch.from_numpy(i)[None, None].to(device, memory_format=layout) for i in (moving, fixed))
            field: Field = network(*pair)[0].float().cpu().contiguous().numpy()
        return field

    return call


def compiled_call(network: Any, context: Context) -> Call:
    """A dry run has no compiler's minutes: there the graph is captured and run as it is."""
    backend = "eager" if context.dry else "inductor"
    return torch_call(torch.compile(deepcopy(network).to(context.device), backend=backend), context.device)


def tf32_call(path: Path) -> Call:
    """ONNX Runtime as it is by default on CUDA, where convolutions round their inputs to 10 bits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        read_model(path).content, providers=[("CUDAExecutionProvider", {"use_tf32": "1"})]
    )
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError(f"ONNX Runtime could not start CUDAExecutionProvider and offers {session.get_providers()}")
    return lambda moving, fixed: session.run(["field"], {"moving": moving[None, None], "fixed": fixed[None, None]})[0][
        0
    ]


def zero_overhead(context: Context, name: str, shape: Shape) -> Figures:
    """A few training steps with guidance, exported; against the same network that never met it, timed in turns."""
    from gpu_steps.guided import trained

    pair = make_pair(shape)[0]
    network = trained(name, context.device, TINY if context.dry else (96, 96, 96), 1 if context.dry else 3)
    guided, plain = context.work / "zero-overhead.onnx", model_file(context.work, name, shape)
    graphs = [topology(write_models(network, name, shape, {"fp32": guided}, "ofg"))]
    graphs.append(topology(onnx.load_model_from_string(read_model(plain).content)))
    if graphs[0] != graphs[1]:
        raise AssertionError("the graphs with and without guidance differ")
    calls = {}
    for kind, path in (("ofg", guided), ("none", plain)):
        engine = open_engine(path, context.device, runtime="onnxruntime")  # type: ignore[arg-type]
        engine.predict(pair.moving, pair.fixed)
        calls[kind] = lambda e=engine: taken(e.predict, pair)
    values = interleaved(calls, 3 if context.dry else 20)
    found = latency(values["ofg"], values["none"])
    return {
        "with guidance p50 ms": 1e3 * found.p50_s,
        "times without": found.ratio.median,
        "interval low": found.ratio.low,
        "interval high": found.ratio.high,
        "same topology": graphs[0].sha256[:16],
    }


def taken(call: Call, pair: Any) -> Taken:
    busy = time.process_time()
    return Taken(clock(call, pair), time.process_time() - busy)

"""Step d: TensorRT-RTX. Needs tensorrt-rtx and cuda-bindings.

Its wheels offer compute capabilities 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1 and leave out 9.0, that of an H100. So the rows
are first of all what it says there, word for word: our own refusal, the builder's for the GPU at hand, and the
runtime's when it is given an engine for 8.0. Where an engine loads, it is run and compared with the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpu_steps.context import Context, Figures
from gpu_steps.models import BRAIN, TINY, make_pair, model_file
from gpu_steps.phantom import Shape
from ofg_deploy.export.engine import EngineJob, export_engine
from ofg_deploy.export.tensorrt import build_here
from ofg_deploy.export.toolchain import BuildOptions, Toolchain, choose_toolchain
from ofg_deploy.model_file import read_model
from ofg_deploy.serve.cuda import present_gpu
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.tensorrt import TensorRT, find_module

FALLBACK = "sm80"  # the offered capability that an H100 would be closest to
NETWORK = "voxelmorph-half"


def measure(context: Context) -> None:
    """What the module offers; an engine for this GPU; one for ``FALLBACK``."""
    shape: Shape = TINY if context.dry else BRAIN
    trt = find_module("tensorrt_rtx")
    if trt is None:
        raise ModuleNotFoundError("No module named 'tensorrt_rtx'", name="tensorrt-rtx")
    context.add("what is offered", {"module": str(trt), "targets": " ".join(trt.targets)})
    model = model_file(context.work, NETWORK, shape)
    here = context.work / "here.engine"
    context.attempt("ofg export --trt for this GPU", lambda: exported(model, here, BuildOptions("tensorrt_rtx")))
    if not here.exists():
        context.attempt("the builder itself, for this GPU", lambda: built(trt, model, context.work))
    else:
        context.attempt("the engine for this GPU", lambda: run(open_engine(here, "cuda").predict, model, shape))
    other = context.work / f"{FALLBACK}.engine"
    options = BuildOptions("tensorrt_rtx", targets=(FALLBACK,))
    context.attempt(f"ofg export --trt --cpu-build --target {FALLBACK}", lambda: exported(model, other, options))
    if other.exists():
        context.attempt(f"ofg register with the engine for {FALLBACK}", lambda: opened(other, model, shape))
        context.attempt(f"the runtime itself, the engine for {FALLBACK}", lambda: loaded(trt, other))


def exported(model: Path, out: Path, options: BuildOptions) -> Figures:
    """As ``ofg export``: built, and where there is a GPU for it loaded and compared."""
    job = EngineJob(choose_toolchain(options))
    made = export_engine(model, out, job, overwrite=True)
    found: Figures = {"seconds": made.record.build_s, "MB": out.stat().st_size / 1e6, "for": str(job.tools)}
    parity = made.record.parity
    return found | ({"field_mm_max": parity["field_mm_max"]} if parity else {"compared": made.record.compared_with})


def built(trt: TensorRT, model: Path, work: Path) -> Figures:
    """Past our own check of the capabilities: what does the builder say?"""
    gpu = present_gpu()
    tools = Toolchain(trt, gpu.name, (gpu.capability,), 1)
    made = build_here(read_model(model), model, tools, work / "timing", lambda *_: True)
    path = work / "past-our-check.plan"
    path.write_bytes(made.plan)
    return {"seconds": made.seconds, "MB": len(made.plan) / 1e6, "for": str(tools)} | loaded(trt, path)


def opened(engine: Path, model: Path, shape: Shape) -> Figures:
    return run(open_engine(engine, "cuda").predict, model, shape)


def loaded(trt: TensorRT, plan: Path) -> Figures:
    """Past our own check of the record: does the runtime take the plan, and if not, what does it say?"""
    trt.log.errors.clear()
    try:
        engine = trt.module.Runtime(trt.log).deserialize_cuda_engine(plan.read_bytes())
    except Exception as error:
        raise RuntimeError("; ".join([*trt.log.errors, str(error)])) from error
    if engine is None:
        raise RuntimeError("; ".join(trt.log.errors) or "the runtime gave no reason")
    return {"loaded": "yes", "inputs and outputs": engine.num_io_tensors}


def run(call: Callable[[Any, Any], Any], model: Path, shape: Shape) -> Figures:
    """Times, and the field against ONNX Runtime's on the CPU."""
    pair = make_pair(shape)[0]
    exact = open_engine(model, "cpu", runtime="onnxruntime").predict(pair.moving, pair.fixed)
    taken = []
    for _ in range(22):
        start = time.perf_counter()
        field = call(pair.moving, pair.fixed)
        taken.append(time.perf_counter() - start)
    p50, p95 = np.percentile(taken[2:], [50, 95])
    error = np.linalg.norm(field - exact, axis=0)
    return {
        "p50 ms": 1e3 * p50,
        "p95 ms": 1e3 * p95,
        "field_mm_max": error.max(),
        "field_mm_p99": np.percentile(error, 99),
    }

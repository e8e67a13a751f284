"""Step e: ``ofg register`` as somebody uses it, on whole heads. Needs SimpleITK and onnxruntime-gpu beside nibabel.

The heads are drawn there (``phantom``): one fixed, 20 moving. A batch is one command with all pairs; its seconds hold
the start of the command, reading, the affine start, the network, warping and writing. Busy is what nvidia-smi reports
as utilisation, the share of time in which some kernel ran, over the whole command.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from gpu_steps.busy import Busy
from gpu_steps.context import Context, Figures
from gpu_steps.models import BRAIN, TINY, model_file
from gpu_steps.phantom import write_heads

NETWORK = "voxelmorph-half"
OTHER = "voxelmorph"


def measure(context: Context) -> None:
    """One pair from a cold start; a batch on the GPU; two at once; the same machine's CPU."""
    shape, count = (TINY, 2) if context.dry else (BRAIN, 20)
    cores = os.cpu_count() or 1
    start = time.perf_counter()
    heads = write_heads(context.work / "heads", shape, range(count + 1), 1 if context.dry else cores)
    models = {name: model_file(context.work, name, shape) for name in ([NETWORK] if context.dry else [NETWORK, OTHER])}
    context.add("heads and models made", {"seconds": time.perf_counter() - start, "heads": len(heads)}, on="cpu")
    small = ["--init", "none"] if context.dry else []  # heads of 16 voxels have nothing to align
    gpu = ["--device", context.device, "--runtime", "onnxruntime", *small]
    if not context.dry:
        first = lambda: one_pair(context, heads, models[NETWORK], gpu)  # noqa: E731
        context.attempt("ofg register, one pair, kernels compiled for the first time", first)
    for name, model in models.items():
        cold = lambda m=model: one_pair(context, heads, m, gpu)  # noqa: E731
        context.attempt(f"ofg register, one pair, {name}, cold", cold)
        batch = lambda m=model: several(context, heads, m, [gpu])  # noqa: E731
        context.attempt(f"ofg register, batch of {count}, {name}", batch)
    model = models[NETWORK]
    context.attempt(
        f"ofg register, two batches of {count // 2} at once, {NETWORK}",
        lambda: several(context, heads, model, [gpu, gpu]),
    )
    for runtime in () if context.dry else ("onnxruntime", "openvino"):  # a dry run has run it already
        cpu = ["--device", "cpu", "--runtime", runtime, *small]
        context.attempt(
            f"ofg register, batch of {count}, {NETWORK}, {runtime} on {cores} cores",
            lambda given=cpu: several(context, heads, model, [given]),
            on="cpu",
        )


def one_pair(context: Context, heads: list[Path], model: Path, given: list[str]) -> Figures:
    """The whole command, and the stages that its record names."""
    out = context.work / "one"
    command = [*ofg(heads[0], heads[1], "-m", model, "-o", out, "--overwrite"), *given]
    start = time.perf_counter()
    wait_for(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True), context)
    found: Figures = {"seconds": time.perf_counter() - start}
    record = json.loads(next(out.glob("*.json")).read_text())
    return found | {f"{name} s": value for name, value in record["seconds"].items()} | record["runtime"]


def several(context: Context, heads: list[Path], model: Path, commands: list[list[str]]) -> Figures:
    """The commands at the same time, each with its share of the pairs."""
    fixed, moving = heads[0], heads[1:]
    start, processes = time.perf_counter(), []
    with Busy() as busy:
        for part, given in enumerate(commands):
            mine = moving[part :: len(commands)]
            pairs = context.work / f"pairs-{part}.csv"
            with pairs.open("w", newline="") as stream:
                csv.writer(stream).writerows([["fixed", "moving", "name"], *([fixed, m, m.name[:-7]] for m in mine)])
            command = [*ofg("--pairs", pairs, "-m", model, "-o", context.work / f"batch-{part}", "--overwrite"), *given]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        for process in processes:
            wait_for(process, context)
    seconds = time.perf_counter() - start
    found: Figures = {"pairs a second": len(moving) / seconds, "seconds": seconds}
    if "cpu" not in commands[0] and busy.share is not None:
        found["share of time the GPU is busy"] = busy.share
    return found


def ofg(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ofg_deploy", "register", *map(str, arguments)]


def wait_for(process: subprocess.Popen[str], context: Context) -> None:
    """Raises RuntimeError with what the command printed, or if it takes longer than the step has."""
    try:
        _, errors = process.communicate(timeout=max(context.left, 1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise RuntimeError(f"exit {process.returncode}: {' '.join(errors.split())[-300:]}")

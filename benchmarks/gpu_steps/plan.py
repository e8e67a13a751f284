"""Which steps there are, in which order and how long each may take; each runs in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parent
LEAST_S = 5.0  # a step is not begun with less
DRY_FACTOR = 5  # a dry run may meet a busy machine
GRACE_S = 10.0  # between asking a step's processes to end and killing them


@dataclass(frozen=True)
class Step:
    """``seconds`` is the most it gets; ``module`` has ``measure(context)``."""

    letter: str
    module: str
    title: str
    seconds: float


# The first two need nothing, or only small packages, beside what a machine for training has.
STEPS = (
    Step("a", "gpu_steps.inner", "inner steps: correctness, time, bandwidth", 100),
    Step("b", "gpu_steps.training", "a training step, with and without guidance", 150),
    Step("c", "gpu_steps.runtimes", "ONNX Runtime against torch", 120),
    Step("d", "gpu_steps.engines", "TensorRT-RTX engines", 45),
    Step("e", "gpu_steps.registering", "ofg register on the GPU", 100),
    Step("f", "gpu_steps.brain", "training of a run goes on", 540),
)


@dataclass(frozen=True)
class Settings:
    """What all steps are given, see ``context.Context``; ``packages`` is a folder of further packages, or None."""

    work: Path
    out: Path
    dry: bool
    run: Path | None
    packages: Path | None


def run_steps(
    steps: tuple[Step, ...], seconds: float, settings: Settings, finished: Callable[[Step, list[dict[str, Any]]], None]
) -> None:
    """One step after the other, whatever becomes of each.

    Args:
        seconds: of all steps together; those it does not reach become rows.
        finished: takes a step and its rows, after each step.
    """
    end = time.monotonic() + seconds
    for step in steps:
        limit = min(step.seconds * (DRY_FACTOR if settings.dry else 1), end - time.monotonic())
        if limit < LEAST_S:
            finished(step, [failure(step, f"no time left: {max(limit, 0):.0f} s of {seconds:.0f} s")])
        else:
            finished(step, run_step(step, limit, settings))


def run_step(step: Step, limit: float, settings: Settings) -> list[dict[str, Any]]:
    """The rows of one step; what went wrong with it is the last one."""
    settings.work.mkdir(parents=True, exist_ok=True)
    rows, log = (settings.work / f"step_{step.letter}.{kind}" for kind in ("jsonl", "log"))
    rows.write_text("")
    command = [sys.executable, "-m", "gpu_steps.one", step.module, "--step", step.letter, "--rows", rows]
    command += ["--seconds", f"{limit:.1f}", "--work", settings.work, "--out", settings.out]
    command += ["--dry-run"] if settings.dry else []
    command += ["--run", settings.run] if settings.run else []
    with log.open("wb") as stream:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment(settings),
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            problem = None if code == 0 else f"its process ended with {code}: {last_line(log)}"
        except subprocess.TimeoutExpired:
            problem = f"killed at its limit of {limit:.0f} s; rows before this one are whole"
        finally:
            end_all(process)
    found = [json.loads(line) for line in rows.read_text().splitlines() if line.endswith("}")]
    return [*found, *([failure(step, problem)] if problem else [])]


def environment(settings: Settings) -> dict[str, str]:
    """This repository and the further packages come before what is installed; caches lie in the work folder."""
    paths = [HERE, ROOT, *([settings.packages] if settings.packages else [])]
    inherited = os.environ.get("PYTHONPATH")
    own = {
        "PYTHONPATH": os.pathsep.join([*map(str, paths), *([inherited] if inherited else [])]),
        "TRITON_CACHE_DIR": str(settings.work.absolute() / "triton"),
        "OFG_CACHE": str(settings.work.absolute() / "cache"),
    }
    if settings.dry:
        own["TRITON_INTERPRET"] = "1"  # its kernels in Python, on a CPU
    return {**os.environ, **own}


def failure(step: Step, why_not: str) -> dict[str, Any]:
    """The row of a step as a whole."""
    return {"step": step.letter, "what": step.title, "on": "-", "figures": {}, "aim": None, "why_not": why_not}


def last_line(log: Path) -> str:
    """Of what a process printed."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it printed nothing"


def end_all(process: subprocess.Popen[bytes]) -> None:
    """The step's process and all that it started."""
    for sent, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()

"""Zero overhead, measured: graphs, latency and memory with and without guidance, next to optimising at test time."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ofg_deploy.bench.candidate import Candidate
from ofg_deploy.bench.models import ModelFile, check_same_network, read_files
from ofg_deploy.bench.timing import Latency, interleaved, latency
from ofg_deploy.bench.worker import Worker
from ofg_deploy.errors import ParityError, UsageError, check_count
from ofg_deploy.geometry import Shape
from ofg_deploy.version import __version__

MAX_MODELS = 2


@dataclass(frozen=True)
class ProofOptions:
    """How to measure.

    Attributes:
        repeats: turns, in each of which every candidate runs once.
        guidance_steps: K of the optimisation at test time that the network replaces.
        threads: CPU threads of everything timed; 0 for all cores.
        grid: another size than the models' own, for models that take any.

    Raises:
        UsageError: fewer than 2 repeats or 1 step, or a negative number of threads.
    """

    repeats: int = 20
    guidance_steps: int = 5
    threads: int = 0
    grid: Shape | None = None

    def __post_init__(self) -> None:
        check_repeats(self.repeats, self.threads)
        check_count("`guidance_steps`", self.guidance_steps)


def turns(models: int, repeats: int) -> int:
    """How often ``prove`` advances: everything but the first model takes its turns with it."""
    return repeats * (models + 1)


def check_repeats(repeats: int, threads: int) -> None:
    """Raises UsageError where there is no median, or no number of threads."""
    check_count("`repeats`", repeats, least=2)
    check_count("`threads`", threads, zero="all cores")


def prove(paths: Sequence[Path], options: ProofOptions, advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Compare one or two exported models and the K optimiser steps their training needed and their use does not.

    All run in ONNX Runtime on the CPU, each in a process of its own, on the same pair with the same number of threads:
    the first model and one other at a time, in random order within each turn. The first model is measured a second time
    as if it were another one: what its ratio is away from 1 is what this machine cannot resolve.

    Args:
        advance: called after every turn; there are ``turns`` of them.

    Raises:
        ParityError: two models of the same network whose graphs differ.
        UsageError: more than two models, or models for different networks, grids or precisions.
        InputError: a file that is missing, damaged or none of ours.
    """
    if not 1 <= len(paths) <= MAX_MODELS:
        raise UsageError(f"{len(paths)} models: give one or two; for a table of more, add `runtimes`")
    files = read_files(paths)
    _check_comparable(files)
    grid = files[0].contract.on_grid(options.grid).shape
    graph = _graph(files, grid)
    threads = options.threads or os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rows, runtime = _measure(files, grid, replace(options, threads=threads), advance)
    contract = files[0].contract
    return {
        "schema": 2,
        "version": __version__,
        "network": contract.network,
        "precision": contract.precision,
        "grid": list(grid),
        "runtime": runtime,
        "threads": threads,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": load,  # of the last minute before: others who compute here disturb the clock
        "repeats": options.repeats,
        "same_topology": len(files) == MAX_MODELS,
        **graph,
        "latency": rows,
    }


def _check_comparable(files: Sequence[ModelFile]) -> None:
    check_same_network(files)
    if any(file.path.suffix != ".onnx" for file in files):
        raise UsageError("the proof compares graphs: give .onnx models; for engines, add `runtimes=tensorrt`")
    precisions = [file.contract.precision for file in files]
    if len(set(precisions)) > 1:
        raise UsageError(f"{' and '.join(precisions)} have different graphs: add `runtimes` for a table of precisions")


def _graph(files: Sequence[ModelFile], grid: Shape) -> dict[str, Any]:
    """What both graphs hold, and cost."""
    import onnx

    from ofg_deploy.export.flops import count_flops
    from ofg_deploy.export.topology import topology
    from ofg_deploy.model_file import read_sealed

    models = [onnx.load_model_from_string(read_sealed(file.path)) for file in files]
    first, last = topology(models[0]), topology(models[-1])
    if first != last:
        names = f"{files[0].path} and {files[-1].path}"
        raise ParityError(f"the graphs of {names} differ: guidance left a trace in one of them")
    return {
        "topology_sha256": first.sha256,
        "nodes": len(first.nodes),
        "operators": {kind: first.nodes.count(kind) for kind in sorted(set(first.nodes))},
        "parameters": first.parameters,
        "flops": asdict(count_flops(models[0], grid)),
    }


def _measure(
    files: Sequence[ModelFile], grid: Shape, options: ProofOptions, advance: Callable[[], None]
) -> tuple[list[dict[str, Any]], str]:
    """A row for each candidate, and what ran the networks."""
    from ofg_deploy.export.parity import synthetic_pair

    contract = files[0].contract
    pair = synthetic_pair(replace(contract.expects, shape=grid))
    networks = [
        Candidate("onnxruntime", f.path, f.contract.precision, "cpu", options.threads, f.contract, grid) for f in files
    ]
    baseline, *others = networks
    rivals = {
        **({"model 2": others[0]} if others else {}),
        "model 1 again": baseline,
        f"model 1 and {options.guidance_steps} steps on the pair": replace(baseline, steps=options.guidance_steps),
    }
    rows: list[dict[str, Any]] = []
    with Worker(baseline, pair.moving, pair.fixed) as first:
        for name, candidate in rivals.items():  # two at a time: at brain size each holds gigabytes
            with Worker(candidate, pair.moving, pair.fixed) as worker:
                taken = interleaved({"first": first.run, "other": worker.run}, options.repeats, advance)
            if not rows:
                rows.append(_row("model 1", baseline, first, latency(taken["first"], taken["first"])))
            rows.append(_row(name, candidate, worker, latency(taken["other"], taken["first"])))
        return rows, first.ready.runtime


def _row(name: str, candidate: Candidate, worker: Worker, found: Latency) -> dict[str, Any]:
    return {
        "candidate": name,
        "model": str(candidate.source),
        "guidance": candidate.contract.training.get("guidance"),
        "steps_on_the_pair": candidate.steps,
        "peak_bytes": worker.ready.peak_bytes,
        **asdict(found),
    }

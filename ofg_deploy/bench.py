"""Zero overhead, measured: graphs and latency with and without guidance, next to optimising at test time."""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ofg_deploy import __version__
from ofg_deploy.errors import ParityError, UsageError
from ofg_deploy.export.source import synthetic_pair
from ofg_deploy.export.topology import Topology, read_topology
from ofg_deploy.outputs import check_writable, to_json
from ofg_deploy.serve.engine import Engine, open_engine

Timed = dict[str, Callable[[], Any]]


def bench(
    models: list[Path], repeats: int, guidance_steps: int, threads: int, json: Path | None, overwrite: bool
) -> dict[str, Any]:
    """Compare one or two exported models and the K optimiser steps their training needed and their use does not.

    All candidates run on the CPU on the same pair with the same number of threads, after one warm-up each: the
    networks interleaved in random order, the optimiser after them.

    Raises:
        ParityError: two models of the same network whose graphs differ.
        UsageError: more than two models, or models for different networks or grids.
    """
    if not 1 <= len(models) <= 2 or repeats < 2 or guidance_steps < 1:
        raise UsageError("give one or two models, --repeats of at least 2 and --guidance-steps of at least 1")
    if json:
        check_writable([json], overwrite)
    threads = threads or os.cpu_count() or 1
    engines = [open_engine(path, "cpu", threads) for path in models]
    shapes = [read_topology(path) for path in models]
    _check_same(models, engines, shapes)
    timed: Timed = {str(path): _network_call(engine) for path, engine in zip(models, engines, strict=True)}
    optimiser = f"test-time optimisation, {guidance_steps} steps"
    seconds = _interleaved(timed, repeats)
    # Apart: torch's threads keep spinning for a while after a call and would slow whichever network comes next.
    seconds |= _interleaved({optimiser: _optimiser_call(engines[0], guidance_steps, threads)}, repeats)
    rows = {name: _summary(values, seconds[str(models[0])]) for name, values in seconds.items()}
    report = {
        "schema": 1,
        "version": __version__,
        "grid": list(engines[0].contract.expects.shape),
        "threads": threads,
        "processor": platform.processor() or platform.machine(),
        "repeats": repeats,
        "runtime": f"{engines[0].runtime} {engines[0].provider}",
        "topology_sha256": shapes[0].sha256,
        "same_topology": True,
        "nodes": list(shapes[0].nodes),
        "parameters": shapes[0].parameters,
        "guidance": {str(p): e.contract.training.get("guidance") for p, e in zip(models, engines, strict=True)},
        "latency": rows,
    }
    _print(report, models)
    if json:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(to_json(report))
    return report


def _check_same(models: list[Path], engines: list[Engine], shapes: list[Topology]) -> None:
    first, last = engines[0].contract, engines[-1].contract
    if (first.network, first.expects.shape) != (last.network, last.expects.shape):
        raise UsageError(f"{models[0]} and {models[-1]} are for different networks or grids: nothing to compare")
    if shapes[0] != shapes[-1]:
        raise ParityError(f"the graphs of {models[0]} and {models[-1]} differ: guidance left a trace in one of them")


def _network_call(engine: Engine) -> Callable[[], Any]:
    pair = synthetic_pair(engine.contract.expects)
    return lambda: engine.predict(pair.moving, pair.fixed)


def _optimiser_call(engine: Engine, steps: int, threads: int) -> Callable[[], Any]:
    """What the accuracy would cost without training for it: predict, then refine the field on the pair."""
    import torch

    from ofg_deploy.train.guidance import refine

    torch.set_num_threads(threads)
    pair = synthetic_pair(engine.contract.expects)
    moving, fixed = (torch.from_numpy(image)[None, None] for image in (pair.moving, pair.fixed))

    def call() -> Any:
        field = torch.from_numpy(engine.predict(pair.moving, pair.fixed))[None]
        return refine(field, moving, fixed, steps, lr=0.1)

    return call


def _interleaved(timed: Timed, repeats: int) -> dict[str, list[float]]:
    for call in timed.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    order = list(timed.items())
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)  # neither a drift of the machine nor the neighbour before favours one of them
        for name, call in order:
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _summary(values: list[float], baseline: list[float]) -> dict[str, float]:
    """``ratio`` is the median of the ratios of runs of the same turn, which cancels slow phases of the machine."""
    return {
        "p50_s": float(np.percentile(values, 50)),
        "p95_s": float(np.percentile(values, 95)),
        "ratio": float(np.median(np.array(values) / np.array(baseline))),
    }


def _print(report: dict[str, Any], models: list[Path]) -> None:
    console = Console(markup=False, emoji=False, highlight=False)
    grid = "x".join(str(n) for n in report["grid"])
    title = f"{grid}, {report['threads']} threads, {report['repeats']} interleaved runs"
    table = Table("candidate", "guidance in training", "p50 (ms)", "p95 (ms)", "ratio", title=title)
    for name, row in report["latency"].items():
        guidance = report["guidance"].get(name) or "-"
        table.add_row(name, guidance, f"{row['p50_s'] * 1e3:.1f}", f"{row['p95_s'] * 1e3:.1f}", f"{row['ratio']:.2f}")
    console.print(table)
    same = "same topology" if len(models) == 2 else "topology"
    console.print(
        f"{same}: {len(report['nodes'])} nodes, {report['parameters']} parameters, {report['topology_sha256'][:16]}",
    )

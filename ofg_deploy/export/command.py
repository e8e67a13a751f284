"""``ofg export`` on a terminal: progress of preparation and build, the parity table, the next step."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ofg_deploy.errors import UsageError
from ofg_deploy.export.engine import EngineJob, PublishedEngine, export_engine
from ofg_deploy.export.onnx import Exported, export_onnx
from ofg_deploy.export.parity import Tolerance
from ofg_deploy.export.precision import Attempt, write_emulation
from ofg_deploy.export.progress import BuildProgress, bars_on, terminal
from ofg_deploy.export.request import BareOptions, find_source
from ofg_deploy.export.toolchain import BuildOptions, choose_toolchain
from ofg_deploy.outputs import check_writable
from ofg_deploy.serve.engine_file import SUFFIX, record_path
from ofg_deploy.train.here import newest_run

ROWS = {
    "field_vox_mean": "field error, mean (voxel)",
    "field_vox_p99": "field error, 99 % (voxel)",
    "field_vox_p999": "field error, 99.9 % (voxel)",
    "field_vox_max": "field error, max (voxel)",
    "field_mm_mean": "field error, mean (mm)",
    "field_mm_p99": "field error, 99 % (mm)",
    "field_mm_p999": "field error, 99.9 % (mm)",
    "field_mm_max": "field error, max (mm)",
    "warped_difference_max": "warped intensity, max (of 0..1)",
    "dice_difference": "Dice difference, max",
    "folding_difference_percent": "folding difference, max (%)",
}


@dataclass(frozen=True)
class EngineOptions:
    """``--trt`` and what goes with it: what to build, and whether to build what the cache has."""

    build: BuildOptions
    again: bool


def newest_run_here() -> Path:
    """The run to export where none was named; says which. Raises as ``train.here.newest_run``."""
    run = newest_run(Path())
    terminal().print(f"run: {run} (the newest one here)", soft_wrap=True)
    return run


def export(
    source: Path,
    out: Path | None,
    bare: BareOptions,
    atol_mm: float | None,
    engine: EngineOptions | None,
    overwrite: bool,
    precision: str | None = None,
    with_warp: bool = False,
) -> Exported | PublishedEngine:
    """Export a run or a checkpoint to ONNX, or a model of ours to an engine, and print what came of it.

    Raises as ``export.onnx.export_onnx`` and ``export.engine.export_engine``.
    """
    if source.suffix == ".onnx":
        if with_warp:
            raise UsageError(f"--with-warp: {source} is exported already, give the run or checkpoint it came from")
        if precision or atol_mm is not None:
            raise UsageError(f"{source} has its precision already: --precision and --atol-mm go with its export")
        return _export_engine(source, out or source.with_suffix(SUFFIX), bare, engine, overwrite)
    out = out or Path("model.onnx")
    if out.suffix != ".onnx":
        raise UsageError(f"--out {out} must end in .onnx")
    if atol_mm is not None and not atol_mm > 0:
        raise UsageError(f"--atol-mm {atol_mm} must be above 0")
    plan = out.with_suffix(SUFFIX)
    check_writable([out, out.with_suffix(".json"), *([plan, record_path(plan)] if engine else [])], overwrite)
    console = terminal()
    with bars_on(console) as bars, tempfile.TemporaryDirectory() as scratch:
        job = _job(engine, bars) if engine else None
        if job:
            bars.print(f"engine: {job.tools}")
        preparing = bars.add_task("preparing validation pairs, tracing, comparing", total=None)
        found = find_source(source, bare, Path(scratch))
        for line in found.remarks:
            bars.print(line)
        tolerance = Tolerance(atol_mm)
        exported = export_onnx(found, out, tolerance, overwrite, sys.argv, job, precision or "fp32", with_warp)
        bars.remove_task(preparing)
    for attempt in exported.attempts:
        _print_attempt(console, attempt)
    _print_parity(console, f"{exported.contract.precision} ONNX against eager", asdict(exported.parity))
    _print_form(console, exported)
    console.print(f"model: {exported.model}\nrecord: {exported.record}", soft_wrap=True)
    if exported.engine:
        _print_engine(console, exported.engine)
    console.print(f"next: ofg register FIXED MOVING -m {out} -o OUT", soft_wrap=True)
    return exported


def _print_form(console: Console, exported: Exported) -> None:
    console.print(f"sizes: {exported.form.reason}", soft_wrap=True)
    if elsewhere := exported.parity_elsewhere:
        console.print(f"on another grid, one synthetic pair: field error at most {elsewhere.field_mm_max:.2e} mm")
    if exported.warped_error is not None:
        console.print(f"warped in the graph against our own sampler: at most {exported.warped_error:.2e} (of 0..1)")


def _export_engine(
    source: Path, out: Path, bare: BareOptions, engine: EngineOptions | None, overwrite: bool
) -> PublishedEngine:
    if engine is None:
        raise UsageError(f"{source} is exported already: add --trt for an engine, or give a run or a checkpoint")
    bare.check_none("a model")
    if out.suffix != SUFFIX:
        raise UsageError(f"--out {out} must end in {SUFFIX}: {source} is a model already")
    check_writable([out, record_path(out)], overwrite)
    console = terminal()
    with bars_on(console) as bars:
        job = _job(engine, bars)
        bars.print(f"engine: {job.tools}")
        published = export_engine(source, out, job, overwrite)
    _print_engine(console, published)
    console.print(f"next: ofg register FIXED MOVING -m {out} -o OUT", soft_wrap=True)
    return published


def _job(engine: EngineOptions, bars: Progress) -> EngineJob:
    """Chosen first: what cannot be built here is said before any work."""
    progress = BuildProgress(bars)
    return EngineJob(
        choose_toolchain(engine.build), sys.argv, engine.again, progress, progress.waiting, write_emulation
    )


def _print_attempt(console: Console, attempt: Attempt) -> None:
    """A precision that was stepped down from, or what is float32 in the one that holds; nothing to say otherwise."""
    if not attempt.beyond and not attempt.float32_layers:
        return
    verdict = "; ".join(attempt.beyond) or "within its bounds"
    console.print(f"{attempt.precision}{' mixed' if attempt.float32_layers else ''}: {verdict}", soft_wrap=True)
    for layer, error in attempt.float32_layers.items():
        console.print(f"  float32: {layer} (alone {error:.2e} mm at 99.9 %)", soft_wrap=True)


def _print_parity(console: Console, title: str, figures: dict[str, Any]) -> None:
    how = ", emulated" if figures["emulated"] else ""
    table = Table(f"{title}{how}, {figures['pairs']} pairs", "difference")
    for key, name in ROWS.items():
        table.add_row(name, "no labels" if figures[key] is None else f"{figures[key]:.2e}")
    console.print(table)


def _print_engine(console: Console, published: PublishedEngine) -> None:
    how = f"built in {published.record.build_s:.1f} s" if published.built_now else "from the cache"
    if published.record.parity:
        _print_parity(console, f"engine against {published.record.compared_with}", published.record.parity)
    else:
        console.print(f"engine: {published.record.compared_with}", soft_wrap=True)
    megabytes = published.engine.stat().st_size / 1e6
    console.print(
        f"engine: {published.engine} ({megabytes:.1f} MB, {how})\nrecord: {record_path(published.engine)}",
        soft_wrap=True,
    )

"""``ofg register`` on a terminal: what was chosen, a table, the next step."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ofg_deploy.cli.terminal import both, is_verbose, plain_table, shows_progress, warn
from ofg_deploy.options.words import Device, Runtime
from ofg_deploy.outputs import check_writable
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.images import Images
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.no_network import NONE
from ofg_deploy.serve.register import register as register_pair
from ofg_deploy.serve.runtimes import choose
from ofg_deploy.serve.saving import Saved

if TYPE_CHECKING:
    from ofg_deploy.serve.tensorrt import Rebuild

# Name and unit; by the headers alone, after the initial alignment, at the end.
STAGES = {
    "Dice": ("dice_before", "dice_start", "dice_after"),
    "HD95 (mm)": ("hd95_before_mm", "hd95_start_mm", "hd95_mm"),
    "TRE mean (mm)": ("tre_before_mean_mm", "tre_start_mean_mm", "tre_after_mean_mm"),
    "TRE median (mm)": ("tre_before_median_mm", "tre_start_median_mm", "tre_after_median_mm"),
    "TRE max (mm)": ("tre_before_max_mm", "tre_start_max_mm", "tre_after_max_mm"),
    "NCC": ("ncc_before", "ncc_start", "ncc_after"),
    "MI": ("mi_before", "mi_start", "mi_after"),
}
ROWS = {
    "folding_percent": "folding (%)",
    "min_jacobian": "min Jacobian",
    "displacement_mm_max": "max displacement (mm)",
}


def register(
    job: Job,
    model: Path | None,
    device: Device,
    threads: int,
    rebuild: Rebuild | None = None,
    runtime: Runtime = "auto",
    images: Images | None = None,
) -> Saved:
    """Load the model, register, print. Raises as ``serve.register.register``."""
    console, stderr = both()
    if job.init is not None:  # otherwise the outputs depend on the model, which is read first
        check_writable(list(job.outputs(job.init).values()), job.overwrite)
    choice = choose(model, device) if model and runtime == "auto" else None
    engine = open_engine(model, device, threads, rebuild, choice.runtime if choice else runtime)
    console.print(f"fixed: {job.fixed}\nmoving: {job.moving}", soft_wrap=True)
    network = f"network {engine.contract.network} on {engine.provider} ({engine.runtime})" if model else None
    for line in method(job, network):
        console.print(line, soft_wrap=True)
    if choice and choice.reason:
        console.print(f"runtime {choice.runtime}: {choice.reason}", soft_wrap=True)
    with console.status("registering") if shows_progress(console) else nullcontext():
        result = register_pair(job, engine, images)
    warn(stderr, result.warnings)
    for line in _notes(result):
        console.print(line, soft_wrap=True)
    console.print(_table(result))
    for line in _details(result):
        console.print(line, soft_wrap=True)
    for points in result.sidecar.get("points", {}).values():
        line = f"{points['path']}: {points['points']} points ({points['frame'].upper()} mm), {points['direction']}"
        console.print(line, soft_wrap=True)
    for role, path in result.outputs.items():
        console.print(f"{role}: {path}", soft_wrap=True)
    return result


def _table(result: Saved) -> Table:
    """Figures of a registration, a measure a row: before, after the initial alignment, after registration."""
    table, figures = plain_table("measure", "before", "initial", "after"), result.sidecar["metrics"]
    for name, keys in STAGES.items():
        values = [figures.get(key) for key in keys]
        if None not in values:
            table.add_row(name, *(f"{value:.3f}" for value in values))
    for key, name in ROWS.items():
        if (value := figures.get(key)) is not None:
            table.add_row(name, "", "", f"{value:.3f}")
    return table


def _details(result: Saved) -> list[str]:
    """What there is to say besides the figures; with ``--verbose`` also how they came about."""
    sidecar, lines = result.sidecar, []
    if "landmarks" in sidecar["metrics"]:
        matched = sidecar["landmarks"]["matched_by"]
        lines.append(
            f"TRE: target registration error of {sidecar['metrics']['landmarks']} landmarks, matched by {matched}"
        )
    if record := sidecar.get("inverse"):
        gap = record["consistency_mm"]
        figures = f"mean {gap['mean']:.3g}, 99 % {gap['p99']:.3g}, max {gap['max']:.3g}" if "mean" in gap else "unknown"
        lines.append(f"inverse consistency error (mm): {figures}")
    if sidecar["model"]["network"] == NONE:
        grid = sidecar["network_grid"]
        sides = "x".join(f"{side:.3g}" for side in grid["spacing_mm"])
        lines.append(f"grid of the optimisation: {'x'.join(map(str, grid['shape']))} voxels of {sides} mm")
    stages = sidecar["seconds"]
    if not is_verbose():
        return [*lines, f"seconds: {sum(stages.values()):.2f}"]
    if record := sidecar.get("refinement"):
        energies = f"energy {record['energy_before']:.4g} -> {record['energy_after']:.4g}"
        steps = f"{record['steps_kept']} of {record['steps_taken']} steps kept"
        lines.append(f"optimisation: {steps}, {energies} ({record['stopped']})")
        if chosen := record["similarity"]:
            opposite = f"{chosen['opposite_percent']:.3g} % of the local correlations have the opposite sign"
            curved = chosen.get("curved_percent")
            monotone = "" if curved is None else f", {curved:.3g} % of the intensity relation is not monotone"
            lines.append(f"similarity: {chosen['taken']} (requested: {chosen['asked']}; {opposite}{monotone})")
    return [*lines, "seconds: " + " + ".join(f"{s:.2f} {stage}" for stage, s in stages.items())]


def _notes(result: Saved) -> list[str]:
    """How each image is filled where that is not 0, and where a label map was found among the others."""
    inputs, found = result.sidecar["inputs"], []
    for role, taken in result.sidecar.get("interpolation", {}).items():
        if taken["found"]:
            path = inputs[role]["path"]
            found.append(f"{path}: interpolation {taken['method']}, because it is a label map ({taken['found']})")
    for role, fill in result.sidecar["fill"].items():
        if fill["value"]:
            found.append(f"{inputs[role]['path']}: value outside the image {fill['value']:g} ({fill['found']})")
    return found


def method(job: Job, network: str | None) -> list[str]:
    """How a pair is registered, a line each; ``network`` says what runs it, None without one."""
    auto = f"model auto: {'' if network else 'no network: '}{job.model_choice}"
    lines = [auto] if job.model_choice else []
    if network:
        return [*lines, network]
    if job.quality:
        return [*lines, f"no network: initial alignment, then optimisation of the pair (quality {job.quality})"]
    if job.refinement:
        steps = job.refinement.optimiser.steps
        return [*lines, f"no network: initial alignment, then at most {steps} optimisation steps at each resolution"]
    return [*lines, "no network and no optimisation: the result is the initial alignment"]

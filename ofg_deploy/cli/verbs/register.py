"""``ofg register`` on a terminal: what was chosen, a table, the next step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ofg_deploy.cli.terminal import both, warn
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

# One row each: by the headers alone, after the initial alignment, at the end.
STAGES = {
    "Dice": ("dice_before", "dice_start", "dice_after"),
    "HD95 (mm)": ("hd95_before_mm", "hd95_start_mm", "hd95_mm"),
    "NCC": ("ncc_before", "ncc_start", "ncc_after"),
    "MI": ("mi_before", "mi_start", "mi_after"),
}
ROWS = {
    "folding_percent": "folding (%)",
    "min_jacobian": "smallest Jacobian determinant",
    "displacement_mm_max": "largest displacement (mm)",
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
    console.print(f"fixed={job.fixed} moving={job.moving}", soft_wrap=True)
    network = f"network {engine.contract.network} on {engine.provider} ({engine.runtime})" if model else None
    for line in method(job, network):
        console.print(line, soft_wrap=True)
    if choice and choice.reason:
        console.print(f"runtime {choice.runtime}: {choice.reason}", soft_wrap=True)
    with console.status("registering"):
        result = register_pair(job, engine, images)
    warn(stderr, result.warnings)
    for line in _notes(result):
        console.print(line, soft_wrap=True)
    console.print(_table(result))
    for points in result.sidecar.get("points", {}).values():
        said = f"{points['path']}: {points['points']} points ({points['frame'].upper()} mm), {points['direction']}"
        console.print(said, soft_wrap=True)
    for role, path in result.outputs.items():
        console.print(f"{role}: {path}", soft_wrap=True)
    return result


def _table(result: Saved) -> Table:
    """Figures of a registration, one a row."""
    table, figures = Table("measure", "value"), result.sidecar["metrics"]
    if result.sidecar["model"]["network"] == NONE:
        grid = result.sidecar["network_grid"]
        sides = " x ".join(f"{side:.3g}" for side in grid["spacing_mm"])
        table.add_row("grid of the steps", f"{'x'.join(map(str, grid['shape']))} voxels of {sides} mm")
    for name, keys in STAGES.items():
        values = [figures.get(key) for key in keys]
        if None not in values:
            before, start, after = (f"{value:.3f}" for value in values)
            table.add_row(name, f"{before} before, {start} initial alignment, {after} after")
    for key, name in ROWS.items():
        if (value := figures.get(key)) is not None:
            table.add_row(name, f"{value:.4g}")
    if "landmarks" in figures:
        for when, name in (("before", "before"), ("start", "after the start"), ("after", "after")):
            mean, median, largest = (figures[f"tre_{when}_{of}_mm"] for of in ("mean", "median", "max"))
            said = f"mean {mean:.3g}, median {median:.3g}, largest {largest:.3g}"
            table.add_row(f"landmark error {name} (mm)", said)
        table.add_row("landmarks", f"{figures['landmarks']}, matched by {result.sidecar['landmarks']['matched_by']}")
    if record := result.sidecar.get("inverse"):
        gap = record["consistency_mm"]
        told = (
            f"mean {gap['mean']:.3g}, 99 % {gap['p99']:.3g}, largest {gap['max']:.3g}" if "mean" in gap else "unknown"
        )
        table.add_row("there and back (mm)", told)
    if record := result.sidecar.get("refinement"):
        energies = f"energy {record['energy_before']:.4g} -> {record['energy_after']:.4g}"
        steps = f"{record['steps_kept']} of {record['steps_taken']} steps"
        table.add_row("refinement", f"{steps} kept, {energies} ({record['stopped']})")
        if chosen := record["similarity"]:
            opposite = f"{chosen['opposite_percent']:.3g} % of the local relations run against the others"
            table.add_row("similarity", f"{chosen['taken']} (asked: {chosen['asked']}; {opposite})")
    table.add_row("seconds", " + ".join(f"{s:.2f} {stage}" for stage, s in result.sidecar["seconds"].items()))
    return table


def _notes(result: Saved) -> list[str]:
    """How each image is filled where that is not 0, and where a label map was found among the others."""
    inputs, found = result.sidecar["inputs"], []
    for role, method in result.sidecar.get("interpolation", {}).items():
        if method["found"]:
            found.append(f"{inputs[role]['path']}: interpolation {method['method']}, a label map ({method['found']})")
    for role, fill in result.sidecar["fill"].items():
        if fill["value"]:
            found.append(f"{inputs[role]['path']}: outside of it {fill['value']:g} ({fill['found']})")
    return found


def method(job: Job, network: str | None) -> list[str]:
    """How a pair is registered, a line each; ``network`` says what runs it, None without one."""
    auto = f"model auto: {'' if network else 'no network: '}{job.model_choice}"
    lines = [auto] if job.model_choice else []
    if network:
        return [*lines, network]
    if job.quality:
        return [*lines, f"no network: initial alignment, then steps on the pair (quality {job.quality})"]
    if job.refinement:
        steps = job.refinement.optimiser.steps
        return [*lines, f"no network: initial alignment, then at most {steps} steps on the pair at each level"]
    return [*lines, "no network and no steps on the pair: the result is the initial alignment"]

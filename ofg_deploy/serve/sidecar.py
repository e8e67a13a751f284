"""The JSON beside a registration: what was done, on what, by which runtime, how good it is, how long it took."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ofg_deploy.locations import portable, portable_command
from ofg_deploy.model_file import Contract
from ofg_deploy.nifti import Volume
from ofg_deploy.outputs import sha256_file
from ofg_deploy.preprocess import NetworkInput, PreparedPair
from ofg_deploy.serve.engine import Served
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.no_network import NONE
from ofg_deploy.serve.options import Begin, GivenMatrix
from ofg_deploy.serve.registration import Result
from ofg_deploy.transform.inverse import InverseField
from ofg_deploy.transform.source import Source
from ofg_deploy.version import __version__

SCHEMA = 1


def record(job: Job, result: Result, outputs: dict[str, Path], numbers: dict[str, Any]) -> dict[str, Any]:
    """Its content, for a result that ``job`` has written to ``outputs``, with ``numbers`` as its metrics."""
    prepared, pair, moved, refined = result.prepared, result.prepared.pair, result.moved, result.refined
    init, served, inputs = prepared.init, result.served, prepared.inputs
    given: dict[str, Volume | Source] = {"fixed": inputs.fixed, "moving": inputs.moving, **inputs.beside.volumes()}
    channels = {role: source for role, source in given.items() if isinstance(source, Source)}
    warnings = result.warnings()
    return {
        "schema": SCHEMA,
        "tool": "ofg_deploy",
        "version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": portable_command(job.command, job.out),
        "options": job.options(),
        "inputs": {role: describe(volume, job.out) for role, volume in given.items()},
        "outputs": {role: path.name for role, path in outputs.items() if role != "sidecar"},
        "transform": {"unit": "mm", "frame": "LPS", "intent": 1007, "maps": "fixed_to_moving", "grid": "fixed"},
        "model": _model(job, served, prepared.expects),
        "network_grid": {"shape": pair.grid.shape, "spacing_mm": pair.grid.spacing_mm},
        "fill": {"moving": result.fill.record(), **{role: source.fill.record() for role, source in channels.items()}},
        **({"interpolation": {role: _interpolation(source) for role, source in channels.items()}} if channels else {}),
        "init": _init(init, job.out),
        "start": _start(init, pair, job.out),
        "runtime": {"name": served.runtime, "provider": served.provider, "machine": platform.machine()},
        "metrics": numbers,
        "seconds": prepared.clock.seconds,
        "warnings": warnings,
        **({"refinement": refined.record()} if refined else {}),
        **({"points": moved.record(job.out)} if moved.points else {}),
        **({"inverse": _inverse(result.inverse)} if result.inverse else {}),
    }


def _interpolation(source: Source) -> dict[str, Any]:
    series = {"volumes": source.time.volumes} if source.time else {}
    return {"method": source.interpolation, "found": source.by or None, **series}


def _model(job: Job, served: Served, expects: NetworkInput) -> dict[str, Any]:
    """The model's contract; where there is no network, what was planned for the pair in its place."""
    contract = served.contract
    given = asdict(contract) if isinstance(contract, Contract) else {"network": NONE, "expects": asdict(expects)}
    chosen = {"chosen_by": "auto", "reason": job.model_choice} if job.model_choice else {}
    return {"sha256": served.model_sha256, **given, **chosen}


def _init(init: Begin, folder: Path) -> str:
    if isinstance(init, Path):
        return portable(init, folder)
    return "matrix" if isinstance(init, GivenMatrix) else init


def _start(init: Begin, pair: PreparedPair, folder: Path) -> dict[str, Any]:
    given = {"path": portable(init, folder), "sha256": sha256_file(init)} if isinstance(init, Path) else {}
    found = pair.alignment.record() if pair.alignment else {}
    return {**given, "moving_from_fixed": pair.moving_from_fixed.tolist(), **found}


def _inverse(inverse: InverseField) -> dict[str, Any]:
    return {
        "method": "damped fixed-point iteration at each voxel",
        "grid": "moving",
        "without_percent": inverse.without_percent,
        "consistency_mm": inverse.consistency_mm,
    }


def describe(volume: Volume | Source, folder: Path) -> dict[str, Any]:
    """An input's file, as a record in ``folder`` names it, and its geometry.

    What was given in memory has no path; its digest is that of its voxels.
    """
    held = volume.volume if isinstance(volume, Source) else volume
    given_in_memory = held is not None and held.in_memory
    digest = hashlib.sha256(held.data.tobytes("F")).hexdigest() if held and given_in_memory else volume.sha256
    return {
        "path": None if given_in_memory else portable(volume.path, folder),
        "sha256": digest or sha256_file(volume.path),
        "shape": list(volume.grid.shape),
        "spacing_mm": list(volume.grid.spacing_mm),
        "orientation": volume.grid.orientation,
        "world_from_vox": volume.grid.world_from_vox.tolist(),
    }

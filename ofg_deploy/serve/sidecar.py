"""What the sidecar of a registration (``ofg_deploy.sidecar``) holds: what was done, on what, by which runtime."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ofg_deploy.background import Background
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
from ofg_deploy.sidecar import Fill, Input, Inverse, NetworkGrid, Points, Resampling, Runtime, Sidecar, Start
from ofg_deploy.transform.inverse import InverseField
from ofg_deploy.transform.source import Source
from ofg_deploy.version import __version__


def record(job: Job, result: Result, outputs: dict[str, Path], numbers: dict[str, Any]) -> Sidecar:
    """For a result that ``job`` is written to ``outputs``, with ``numbers`` as its metrics; all but what is known only
    once the files are written."""
    prepared, pair, served, inputs = result.prepared, result.prepared.pair, result.served, result.prepared.inputs
    given: dict[str, Volume | Source] = {"fixed": inputs.fixed, "moving": inputs.moving, **inputs.beside.volumes()}
    channels = {role: source for role, source in given.items() if isinstance(source, Source)}
    return Sidecar(
        version=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=portable_command(job.command, job.out),
        options=job.options(served.contract),
        inputs={role: describe(volume, job.out) for role, volume in given.items()},
        outputs={role: path.name for role, path in outputs.items() if role != "sidecar"},
        transform={"unit": "mm", "frame": "LPS", "intent": 1007, "maps": "fixed_to_moving", "grid": "fixed"},
        model=_model(job, served, prepared.expects),
        network_grid=NetworkGrid(pair.grid.shape, pair.grid.spacing_mm),
        fill={"moving": _fill(result.fill), **{role: _fill(source.fill) for role, source in channels.items()}},
        interpolation={role: _interpolation(source) for role, source in channels.items()},
        init=_init(prepared.init, job.out),
        start=_start(prepared.init, pair, job.out),
        runtime=Runtime(served.runtime, served.provider, platform.machine()),
        metrics=numbers,
        seconds=prepared.clock.seconds,
        warnings=result.warnings(),
        refinement=result.refined.record() if result.refined else None,
        points={role: Points(**table) for role, table in result.moved.record(job.out).items()},
        inverse=_inverse(result.inverse) if result.inverse else None,
    )


def _interpolation(source: Source) -> Resampling:
    return Resampling(source.interpolation, source.by or None, source.time.volumes if source.time else None)


def _fill(background: Background) -> Fill:
    return Fill(background.value, background.found)


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


def _start(init: Begin, pair: PreparedPair, folder: Path) -> Start:
    given: dict[str, Any] = (
        {"path": portable(init, folder), "sha256": sha256_file(init)} if isinstance(init, Path) else {}
    )
    found = pair.alignment.record() if pair.alignment else {}
    return Start(pair.moving_from_fixed.tolist(), **given, **found)


def _inverse(inverse: InverseField) -> Inverse:
    return Inverse(
        method="damped fixed-point iteration at each voxel",
        grid="moving",
        without_percent=inverse.without_percent,
        consistency_mm=inverse.consistency_mm,
    )


def describe(volume: Volume | Source, folder: Path) -> Input:
    """An input's file, as a record in ``folder`` names it, and its geometry.

    What was given in memory has no path; its digest is that of its voxels.
    """
    held = volume.volume if isinstance(volume, Source) else volume
    given_in_memory = held is not None and held.in_memory
    digest = hashlib.sha256(held.data.tobytes("F")).hexdigest() if held and given_in_memory else volume.sha256
    return Input(
        path=None if given_in_memory else portable(volume.path, folder),
        sha256=digest or sha256_file(volume.path),
        shape=list(volume.grid.shape),
        spacing_mm=list(volume.grid.spacing_mm),
        orientation=volume.grid.orientation,
        world_from_vox=volume.grid.world_from_vox.tolist(),
    )

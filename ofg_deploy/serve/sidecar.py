"""What the sidecar of a registration (``ofg_deploy.sidecar``) holds: what was done, on what, by which runtime."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ofg_deploy import __version__
from ofg_deploy.background import Background
from ofg_deploy.locations import portable, portable_command
from ofg_deploy.model_file import Contract
from ofg_deploy.nifti import Volume
from ofg_deploy.outputs import sha256_file
from ofg_deploy.preprocess import Init, NetworkInput, PreparedPair
from ofg_deploy.serve.companions import Moved
from ofg_deploy.serve.engine import Engine
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.no_network import NONE
from ofg_deploy.serve.refinement import Refined
from ofg_deploy.sidecar import Fill, Input, Inverse, NetworkGrid, Points, Resampling, Runtime, Sidecar, Start
from ofg_deploy.transform.inverse import InverseField
from ofg_deploy.transform.source import Source


def record(
    job: Job,
    init: Init | Path,
    engine: Engine,
    expects: NetworkInput,
    pair: PreparedPair,
    outputs: dict[str, Path],
    inputs: dict[str, Volume | Source],
    numbers: dict[str, Any],
    seconds: dict[str, float],
    moved: Moved,
    inverse: InverseField | None,
    refined: Refined | None,
    fill: Background,
) -> Sidecar:
    """All but what is known only once the files are written.

    Args:
        inputs: by role, as they were read.
        seconds: by stage.
        fill: of the warped image.
    """
    channels = {role: source for role, source in inputs.items() if isinstance(source, Source)}
    warnings = [line for volume in inputs.values() for line in volume.warnings] + pair.warnings() + moved.warnings()
    if inverse and inverse.without_percent:
        warnings.append(f"the map has no inverse at {inverse.without_percent:.3g} % of the moving voxels it reaches")
    warnings += refined.warnings() if refined else []
    return Sidecar(
        version=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=portable_command(job.command, job.out),
        options=job.options(),
        inputs={role: describe(volume, job.out) for role, volume in inputs.items()},
        outputs={role: path.name for role, path in outputs.items() if role != "sidecar"},
        transform={"unit": "mm", "frame": "LPS", "intent": 1007, "maps": "fixed_to_moving", "grid": "fixed"},
        model=_model(job, engine, expects),
        network_grid=NetworkGrid(pair.grid.shape, pair.grid.spacing_mm),
        fill={"moving": _fill(fill), **{role: _fill(source.fill) for role, source in channels.items()}},
        interpolation={role: _interpolation(source) for role, source in channels.items()},
        init=portable(init, job.out) if isinstance(init, Path) else init,
        start=_start(init, pair, job.out),
        runtime=Runtime(engine.runtime, engine.provider, platform.machine()),
        metrics=numbers,
        seconds=seconds,
        warnings=warnings,
        refinement=refined.record() if refined else None,
        points={role: Points(**table) for role, table in moved.record(job.out).items()},
        inverse=_inverse(inverse) if inverse else None,
    )


def _interpolation(source: Source) -> Resampling:
    return Resampling(source.interpolation, source.by or None, source.time.volumes if source.time else None)


def _fill(background: Background) -> Fill:
    return Fill(background.value, background.found)


def _model(job: Job, engine: Engine, expects: NetworkInput) -> dict[str, Any]:
    """The model's contract; where there is no network, what was planned for the pair in its place."""
    contract = engine.contract
    given = asdict(contract) if isinstance(contract, Contract) else {"network": NONE, "expects": asdict(expects)}
    chosen = {"chosen_by": "auto", "reason": job.model_choice} if job.model_choice else {}
    return {"sha256": engine.model_sha256, **given, **chosen}


def _start(init: Init | Path, pair: PreparedPair, folder: Path) -> Start:
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
    """An input's file, as a record in ``folder`` names it, and its geometry."""
    return Input(
        path=portable(volume.path, folder),
        sha256=volume.sha256 or sha256_file(volume.path),
        shape=list(volume.grid.shape),
        spacing_mm=list(volume.grid.spacing_mm),
        orientation=volume.grid.orientation,
        world_from_vox=volume.grid.world_from_vox.tolist(),
    )


class Clock:
    """Wall-clock seconds by stage; stages may run beside each other, as measuring and writing do."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Take the time of what is inside under this name."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 4)

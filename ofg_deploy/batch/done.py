"""What ``resume`` goes by: whether a pair's results are there, and made from the same."""

from __future__ import annotations

from pathlib import Path

from ofg_deploy.errors import InputError
from ofg_deploy.outputs import sha256_file
from ofg_deploy.serve.engine import Engine
from ofg_deploy.serve.job import Job
from ofg_deploy.sidecar import Named, Sidecar, Written
from ofg_deploy.version import __version__


def is_done(job: Job, engine: Engine) -> bool:
    """All results of the job are there, and a registration now would give the same.

    Raises:
        InputError: there are results, but of other inputs, options, start, model, runtime or version; or files are
            another pair's.
    """
    init = job.init or engine.contract.init
    outputs = job.outputs(init)
    if not outputs["sidecar"].exists():
        _check_nobodys(outputs)
        return False
    sidecar = outputs.pop("sidecar")
    try:
        record = Sidecar.read(sidecar)
    except InputError as error:
        raise InputError(f"{error.marked}: choose another output, or redo it with `overwrite=True`") from error
    others = differences(job, engine, record) or ["set of files"] * (not outputs.keys() <= record.written.keys())
    if others:
        raise InputError(
            f"{sidecar} was made from or by another {', '.join(others)}: choose another output, or redo it with "
            "`overwrite=True`"
        )
    whole, changed = _whole({path: record.written[role] for role, path in outputs.items()})
    if changed:
        raise InputError(
            f"{changed} is not what was written with {sidecar.name}: choose another output, or redo it "
            "with `overwrite=True`"
        )
    return whole


def _whole(known: dict[Path, Written]) -> tuple[bool, Path | None]:
    """Whether all files are as they were written; if not, one that is neither missing nor cut short but another."""
    bad = [path for path, file in known.items() if not file.is_still(path)]
    changed = [path for path in bad if path.exists() and path.stat().st_size >= known[path].bytes]
    return not bad, changed[0] if changed else None


def differences(job: Job, engine: Engine, record: Sidecar) -> list[str]:
    """In what a sidecar's registration differs from this one, in words."""
    init = job.init or engine.contract.init
    given = {role: _digest(path) for role, path in job.inputs().items()}
    told = {role: image.sha256 for role, image in record.inputs.items()}
    told |= {role: table.sha256 for role, table in record.points.items()}
    runtime = record.runtime and (record.runtime.name, record.runtime.provider)
    same = {
        "version of this tool": record.version == __version__,
        "model": record.model.get("sha256", "") == engine.model_sha256,
        "runtime": runtime == (engine.runtime, engine.provider),
        "start": (_digest(init) if isinstance(init, Path) else init) == (record.start.sha256 or record.init),
        "option": record.options == job.options(engine.contract),
        **{role: given.get(role) == told.get(role) for role in sorted({*given, *told})},
    }
    return [name for name, alike in same.items() if not alike]


def _check_nobodys(outputs: dict[str, Path]) -> None:
    """Files without our sidecar are a killed run's, unless they are another pair's: by BIDS some are called alike."""
    sidecar = outputs["sidecar"]
    names = {path.name for path in outputs.values() if path.exists()}
    for other in sidecar.parent.glob("*.json") if names else ():
        named = Named.read(other)
        if named and (taken := names & set(named.outputs.values())):
            raise InputError(
                f"{sidecar.with_name(min(taken))} belongs to {other.name}: choose another output, or replace it with "
                "`overwrite=True`"
            )


def _digest(path: Path) -> str | None:
    """None for a file that cannot be read."""
    try:
        return sha256_file(path)
    except OSError:
        return None

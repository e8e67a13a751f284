"""Write a registration: warped image, transform in every form asked for, what moves with them, and the sidecar."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofg_deploy.errors import plain
from ofg_deploy.nifti import save_transform, save_volume
from ofg_deploy.options.words import Dialect
from ofg_deploy.outputs import check_inputs_stay, staged
from ofg_deploy.serve import sidecar
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.registration import Result
from ofg_deploy.sidecar import Landmarks, Written
from ofg_deploy.transform import dialects, itk


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        outputs: path by role.
        sidecar: its content.
        warnings: those of the sidecar, their parameters marked (see ``errors``).
    """

    outputs: dict[str, Path]
    sidecar: dict[str, Any]
    warnings: tuple[str, ...]


def save(result: Result, job: Job) -> Saved:
    """Write all that the job asks for, under the final names only when everything is complete.

    Raises:
        InputError: outputs that exist or cannot be written. ParityError: a transform that reads back as another one.
            Nothing is written then.
    """
    prepared, pair = result.prepared, result.prepared.pair
    init, clock, fixed, moving = prepared.init, prepared.clock, prepared.inputs.fixed, prepared.inputs.moving
    outputs = job.outputs(init)

    def obsolete() -> list[Path]:
        found = job.obsolete(init)
        check_inputs_stay(found, job.reads())
        return found

    with staged(list(outputs.values()), job.overwrite, obsolete) as paths, ThreadPoolExecutor(1) as pool:
        # While the files are written: packing a field takes one core and as long.
        measured = pool.submit(lambda: result.measures)
        partial = dict(zip(outputs, paths, strict=True))
        with clock("write"):
            save_volume(partial["warped"], result.warped, fixed.grid, fixed.space_code)
            affine = None if init == "none" else pair.moving_from_fixed
            found = dialects.Registration(result.forward.field, affine, fixed.grid, moving.grid, fixed.space_code)
            roundtrip_mm = _write_transforms(found, partial, job.field_format)
            if result.inverse:
                save_transform(partial["inverse"], result.inverse.field, result.inverse.grid, moving.space_code)
            result.moved.save(partial, fixed)
        numbers = {**measured.result(), "roundtrip_max_mm": roundtrip_mm}
        record = sidecar.record(job, result, outputs, numbers)
        if "landmarks" in numbers:
            record.landmarks = Landmarks(prepared.inputs.beside.matched_by())
        record.warnings += [
            f"{path.name} was there before and is no part of this result; it stays: nothing shows that we wrote it"
            for path in job.unproven(init)
        ]
        warnings, record.warnings = tuple(record.warnings), list(map(plain, record.warnings))
        record.written = {role: Written.of(path) for role, path in partial.items() if role != "sidecar"}
        partial["sidecar"].write_text(record.to_json())
    return Saved(outputs, record.to_record(), warnings)


def _write_transforms(found: dialects.Registration, paths: dict[str, Path], dialect: Dialect) -> float:
    """The affine, the form of ITK and the one asked for; the largest error of any that is read back, in mm."""
    errors = []
    if found.moving_from_fixed is not None:
        itk.save_affine(paths["affine"], found.moving_from_fixed)
    forms: dict[str, Dialect] = {"transform": "itk", dialect: dialect}
    for role, form in forms.items():
        if role in paths:
            dialects.write(paths[role], form, found)
            files = [paths[role], paths["affine"]] if form == "ants" and "affine" in paths else [paths[role]]
            errors.append(dialects.roundtrip_mm(files, form, found))
    return max(errors)

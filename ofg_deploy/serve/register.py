"""Register one pair: the data path of the product, top to bottom: ``prepare``, ``predict``, ``finish``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy.errors import InputError
from ofg_deploy.field import Field, total_displacement_mm, warp
from ofg_deploy.geometry import Matrix
from ofg_deploy.model_file import Contract
from ofg_deploy.nifti import Volume, save_transform, save_volume
from ofg_deploy.outputs import check_inputs_stay, check_writable, staged, to_json, written
from ofg_deploy.preprocess import Init, PreparedPair, Start, prepare_pair
from ofg_deploy.serve import companions, sidecar
from ofg_deploy.serve.companions import Companions, Moved
from ofg_deploy.serve.engine import Engine
from ofg_deploy.serve.images import Images
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.measures import compare_labels, measure
from ofg_deploy.serve.refinement import Refined, refine
from ofg_deploy.serve.sidecar import Clock
from ofg_deploy.transform import dialects, itk
from ofg_deploy.transform.inverse import InverseField, inverse_field
from ofg_deploy.transform.maps import FieldMap, field_map

Align = Callable[[Start, Volume, Volume], Matrix]  # a start, fixed, moving -> (4, 4) moving_from_fixed


@dataclass(frozen=True, eq=False)
class Prepared:
    """A pair that waits for the network, with all that its results need.

    Attributes:
        job: what was asked for; init: the start it comes to with this model.
        outputs: final path by role, the sidecar last.
        fixed, moving, beside: as they were read.
        pair: both images on the network's grid.
        clock: seconds by stage so far.
    """

    job: Job
    init: Init | Path
    outputs: dict[str, Path]
    fixed: Volume
    moving: Volume
    beside: Companions
    pair: PreparedPair
    clock: Clock


@dataclass(frozen=True)
class Result:
    """What was written, and the sidecar's content."""

    outputs: dict[str, Path]
    sidecar: dict[str, Any]


def register(job: Job, engine: Engine) -> Result:
    """Fixed + moving -> warped image, total transform, what moves with them, sidecar.

    The transform maps fixed points to moving points: u(x) = A(x + d(x)) - x, with A the affine start and d the
    network's field, refined on the pair if the job asks for it. Everything is on the fixed image's own grid; the moving
    intensities are interpolated once.

    Raises:
        InputError, GeometryError: input that cannot be used, a field that leads further than a kilometre, or outputs
            that exist; nothing is written then.
        ParityError: a transform that reads back as another one; nothing is written then.
        UsageError: a grid too small to refine on, or one the model does not take.
    """
    prepared = prepare(job, engine.contract)
    return finish(prepared, predict(engine, prepared), engine)


def prepare(
    job: Job, contract: Contract, images: Images | None = None, align: Align = Start.moving_from_fixed
) -> Prepared:
    """Read all that the job names and bring the pair onto the network's grid; needs no engine. Raises as ``register``.

    Args:
        images: where they are read; a batch keeps those that pairs share.
        align: what carries out a start; a batch has processes for it.
    """
    expects = contract.on_grid(job.grid)
    init = job.init or expects.init
    job.check_masks(init)
    outputs = job.outputs(init)
    if job.refinement:
        job.refinement.check_grid(expects.shape)
    check_writable(list(outputs.values()), job.overwrite)
    if job.overwrite:
        check_inputs_stay([*outputs.values(), *job.obsolete(init)], job.reads())
    clock = Clock()
    images = images or Images()
    with clock("read"):
        fixed, moving = (images.image(path, job.max_voxels) for path in (job.fixed, job.moving))
        beside = companions.load(job, fixed, moving, images)
        dialects.check_images(job.field_format, job.fixed, fixed.grid, job.moving, moving.grid, job.max_voxels)
    with clock("prepare"):
        start = _start(init, beside)
        known = replace(start, matrix=align(start, fixed, moving))
        pair = prepare_pair(fixed, moving, expects, known)
    return Prepared(job, init, outputs, fixed, moving, beside, pair, clock)


def predict(engine: Engine, prepared: Prepared) -> Field:
    """The network's field, (3, X, Y, Z) voxels of its grid. Raises InputError where it is not finite or not there."""
    pair = prepared.pair
    with prepared.clock("network"):
        return checked(engine.predict(pair.moving, pair.fixed), pair)


def checked(field_vox: Field, pair: PreparedPair) -> Field:
    """The field as it is. Raises InputError where it is not finite or not on the pair's grid."""
    if field_vox.shape != (3, *pair.grid.shape) or not np.isfinite(field_vox).all():
        raise InputError(f"the model's field {field_vox.shape} is not finite or not on its grid {pair.grid.shape}")
    return field_vox


def finish(prepared: Prepared, network_vox: Field, engine: Engine) -> Result:
    """From the network's field to files. Of the engine only what it says of itself is used; raises as ``register``."""
    job, init, outputs, clock = prepared.job, prepared.init, prepared.outputs, prepared.clock
    fixed, moving, beside, pair = prepared.fixed, prepared.moving, prepared.beside, prepared.pair
    refined = _refine(job, network_vox, pair, clock)
    with clock("transform"):
        field_vox = refined.field if refined else network_vox
        displacement = total_displacement_mm(field_vox, pair.grid, fixed.grid, pair.moving_from_fixed)
        source = f"the field of this {engine.contract.network} model for {job.fixed} and {job.moving}"
        forward = field_map(displacement, fixed.grid, source)
    with clock("warp"):
        warped = warp(moving.data, moving.grid, fixed.grid, displacement, fill=job.fill)
        moved = companions.move(beside, job, fixed, forward, pair.moving_from_fixed)
    inverse = _invert(job, forward, pair, moving, clock)

    def obsolete() -> list[Path]:
        found = job.obsolete(init)
        check_inputs_stay(found, job.reads())
        return found

    with staged(list(outputs.values()), job.overwrite, obsolete) as paths, ThreadPoolExecutor(1) as pool:
        measured = pool.submit(_measure, prepared, network_vox, warped, displacement, moved)
        partial = dict(zip(outputs, paths, strict=True))
        with clock("write"):
            save_volume(partial["warped"], warped, fixed.grid, fixed.space_code)
            affine = None if init == "none" else pair.moving_from_fixed
            found = dialects.Registration(displacement, affine, fixed.grid, moving.grid, fixed.space_code)
            roundtrip_mm = _write_transforms(found, partial, job.field_format)
            if inverse:
                save_transform(partial["inverse"], inverse.field, inverse.grid, moving.space_code)
            moved.save(partial, fixed)
        numbers = {**measured.result(), "roundtrip_max_mm": roundtrip_mm}
        inputs = {"fixed": fixed, "moving": moving, **beside.volumes()}
        record = sidecar.record(
            job, init, engine, pair, outputs, inputs, numbers, clock.seconds, moved, inverse, refined
        )
        if warped.min() == warped.max():
            said = f"the warped image is {warped.flat[0]:g} everywhere: the map leads out of the moving image"
            record["warnings"].append(f"{said}, or to one place in it")
        record["warnings"] += [
            f"{path.name} was there before and is no part of this result; it stays: nothing shows that we wrote it"
            for path in job.unproven(init)
        ]
        record["written"] = {role: written(path) for role, path in partial.items() if role != "sidecar"}
        partial["sidecar"].write_text(to_json(record))
    return Result(outputs, record)


def _start(init: Init | Path, beside: Companions) -> Start:
    if isinstance(init, Path):
        return Start("affine", matrix=itk.load_affine(init))
    return Start(init, beside.fixed_mask, beside.moving_mask)


def _invert(job: Job, forward: FieldMap, pair: PreparedPair, moving: Volume, clock: Clock) -> InverseField | None:
    if not job.inverse:
        return None
    with clock("invert"):
        return inverse_field(forward, pair.moving_from_fixed, moving.grid)


def _measure(prepared: Prepared, network_vox: Field, warped: Any, displacement: Field, moved: Moved) -> dict[str, Any]:
    """While the files are written: packing a field takes one core and as long."""
    fixed, beside = prepared.fixed, prepared.beside
    with prepared.clock("measure"):
        numbers = measure(prepared.pair, network_vox, fixed, prepared.moving, warped, displacement)
        if beside.fixed_labels:
            numbers |= compare_labels(beside.fixed_labels, beside.labels[0], moved.volumes["warped_labels"])
    return numbers


def _refine(job: Job, network_vox: Field, pair: PreparedPair, clock: Clock) -> Refined | None:
    if not job.refinement:
        return None
    with clock("refine"):
        return refine(network_vox, pair.moving, pair.fixed, job.refinement)


def _write_transforms(found: dialects.Registration, paths: dict[str, Path], dialect: dialects.Dialect) -> float:
    """The affine, the form of ITK and the one asked for; the largest error of any that is read back, in mm."""
    errors = []
    if found.moving_from_fixed is not None:
        itk.save_affine(paths["affine"], found.moving_from_fixed)
    forms: dict[str, dialects.Dialect] = {"transform": "itk", dialect: dialect}
    for role, form in forms.items():
        if role in paths:
            dialects.write(paths[role], form, found)
            files = [paths[role], paths["affine"]] if form == "ants" and "affine" in paths else [paths[role]]
            errors.append(dialects.roundtrip_mm(files, form, found))
    return max(errors)

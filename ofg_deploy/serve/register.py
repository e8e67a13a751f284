"""Register one pair: the data path of the product, top to bottom: ``prepare``, ``predict``, ``finish``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy.affine import Alignment
from ofg_deploy.background import Background
from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.field import Field, total_displacement_mm, warp
from ofg_deploy.model_file import Contract
from ofg_deploy.nifti import Volume, save_transform, save_volume
from ofg_deploy.outputs import check_inputs_stay, check_writable, staged, to_json, written
from ofg_deploy.preprocess import Init, NetworkInput, PreparedPair, Start, prepare_pair
from ofg_deploy.serve import companions, sidecar
from ofg_deploy.serve.automatic import strangeness
from ofg_deploy.serve.companions import Companions, Moved
from ofg_deploy.serve.engine import Engine
from ofg_deploy.serve.images import Images
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.measures import adds_nothing, compare_labels, landmark_errors, measure
from ofg_deploy.serve.no_network import NoNetwork, Promise
from ofg_deploy.serve.refinement import Refined, known, refine
from ofg_deploy.serve.sidecar import Clock
from ofg_deploy.transform import dialects, itk
from ofg_deploy.transform.inverse import InverseField, inverse_field
from ofg_deploy.transform.maps import FieldMap, Inside, field_map
from ofg_deploy.transform.resample import outside_warning
from ofg_deploy.transform.source import Source

Align = Callable[[Start, Volume, Volume], Alignment]  # a start, fixed, moving


@dataclass(frozen=True, eq=False)
class Prepared:
    """A pair that waits for the network, with all that its results need.

    Attributes:
        job: what was asked for; init: the start it comes to with this model.
        outputs: final path by role, the sidecar last.
        fixed, moving, beside: as they were read.
        expects: what the pair was prepared for.
        pair: both images on the network's grid.
        notes: warnings about how it was prepared.
        clock: seconds by stage so far.
    """

    job: Job
    init: Init | Path
    outputs: dict[str, Path]
    fixed: Volume
    moving: Volume
    beside: Companions
    expects: NetworkInput
    pair: PreparedPair
    notes: tuple[str, ...]
    clock: Clock


@dataclass(frozen=True)
class Result:
    """What was written, and the sidecar's content."""

    outputs: dict[str, Path]
    sidecar: dict[str, Any]


def register(job: Job, engine: Engine, images: Images | None = None) -> Result:
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
    prepared = prepare(job, engine.contract, images)
    return finish(prepared, predict(engine, prepared), engine)


def prepare(job: Job, contract: Promise, images: Images | None = None, align: Align = Start.align) -> Prepared:
    """Read all that the job names and bring the pair onto the network's grid; needs no engine. Raises as ``register``.

    Args:
        images: where they are read; a batch keeps those that pairs share.
        align: what carries out a start; a batch has processes for it.
    """
    init = check_steps(job, contract)
    outputs = job.outputs(init)
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
        if isinstance(contract, NoNetwork):
            expects, notes = contract.plan(fixed, moving)
        else:
            expects, notes = contract.on_grid(job.grid), _unlike(job, contract, fixed, moving)
        pair = prepare_pair(fixed, moving, expects, align(_start(init, beside), fixed, moving))
    return Prepared(job, init, outputs, fixed, moving, beside, expects, pair, notes, clock)


def _unlike(job: Job, contract: Contract, fixed: Volume, moving: Volume) -> tuple[str, ...]:
    """Of a pair of a batch whose model was chosen by other pairs of it."""
    if job.model_choice and (reason := strangeness(contract, fixed, moving)):
        return (f"auto chose the model by other pairs, and here {reason}: compare with -m none",)
    return ()


def check_steps(job: Job, contract: Promise) -> Init | Path:
    """The start a job comes to with a model, or without one. Raises UsageError as ``register``, before any image."""
    init = job.init or contract.init
    job.check_masks(init)
    expects = contract.on_grid(job.grid)
    if expects and (steps := job.steps_on(expects.spacing_mm)):
        steps.check_grid(expects.shape)
    return init


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
    refined = _refine(prepared, network_vox)
    with clock("transform"):
        field_vox = refined.field if refined else network_vox
        displacement = total_displacement_mm(field_vox, pair.grid, fixed.grid, pair.moving_from_fixed)
        source = f"the field of {_called(engine.contract)} for {job.fixed} and {job.moving}"
        forward = field_map(displacement, fixed.grid, source)
    with clock("warp"):
        fill = pair.background if job.fill is None else Background.given(job.fill)
        warped = warp(moving.data, moving.grid, fixed.grid, displacement, fill=np.nan)
        inside = ~np.isnan(warped)
        warped[~inside] = fill.value
        moved = companions.move(beside, job, fixed, forward, pair.moving_from_fixed)
    inverse = _invert(job, forward, pair, moving, clock)

    def obsolete() -> list[Path]:
        found = job.obsolete(init)
        check_inputs_stay(found, job.reads())
        return found

    with staged(list(outputs.values()), job.overwrite, obsolete) as paths, ThreadPoolExecutor(1) as pool:
        measured = pool.submit(_measure, prepared, network_vox, warped, inside, forward, moved)
        partial = dict(zip(outputs, paths, strict=True))
        with clock("write"):
            save_volume(partial["warped"], warped, fixed.grid, fixed.space_code)
            affine = None if init == "none" else pair.moving_from_fixed
            found = dialects.Registration(displacement, affine, fixed.grid, moving.grid, fixed.space_code)
            roundtrip_mm = _write_transforms(found, partial, job.field_format)
            if inverse:
                save_transform(partial["inverse"], inverse.field, inverse.grid, moving.space_code)
            moved.save(partial, fixed)
        figures, remarks = measured.result()
        numbers = {**figures, "roundtrip_max_mm": roundtrip_mm}
        inputs: dict[str, Volume | Source] = {"fixed": fixed, "moving": moving, **beside.volumes()}
        record = sidecar.record(
            job,
            init,
            engine,
            prepared.expects,
            pair,
            outputs,
            inputs,
            numbers,
            clock.seconds,
            moved,
            inverse,
            refined,
            fill,
        )
        if refined or not isinstance(engine.contract, NoNetwork):  # otherwise nothing was to follow it
            energies = (refined.network_energy, refined.energy) if refined else None
            across = bool(refined and refined.similarity and refined.similarity.differs)
            remarks += [line] if (line := adds_nothing(figures, energies, across)) else []
        record["warnings"] = [*prepared.notes, *record["warnings"], *remarks]
        if "landmarks" in figures:
            record["landmarks"] = {"matched_by": beside.matched_by()}
        if warped.min() == warped.max():
            said = f"the warped image is {warped.flat[0]:g} everywhere: the map leads out of the moving image"
            record["warnings"].append(f"{said}, or to one place in it")
        record["warnings"] += outside_warning(displacement, None, fixed.grid, moving.grid)
        record["warnings"] += [
            f"{path.name} was there before and is no part of this result; it stays: nothing shows that we wrote it"
            for path in job.unproven(init)
        ]
        record["written"] = {role: written(path) for role, path in partial.items() if role != "sidecar"}
        partial["sidecar"].write_text(to_json(record))
    return Result(outputs, record)


def _start(init: Init | Path, beside: Companions) -> Start:
    if isinstance(init, Path):
        return Start("affine", matrix=dialects.load_linear(init))
    return Start(init, beside.fixed_mask, beside.moving_mask)


def _invert(job: Job, forward: FieldMap, pair: PreparedPair, moving: Volume, clock: Clock) -> InverseField | None:
    if not job.inverse:
        return None
    with clock("invert"):
        return inverse_field(forward, pair.moving_from_fixed, moving.grid)


def _measure(
    prepared: Prepared, network_vox: Field, warped: Any, inside: Inside, forward: FieldMap, moved: Moved
) -> tuple[dict[str, Any], list[str]]:
    """Figures and remarks. While the files are written: packing a field takes one core and as long."""
    fixed, beside, pair = prepared.fixed, prepared.beside, prepared.pair
    with prepared.clock("measure"):
        numbers = measure(pair, network_vox, fixed, prepared.moving, warped, inside, forward.field)
        if beside.fixed_labels:
            warped_labels = moved.volumes["warped_labels"]
            numbers |= compare_labels(beside.fixed_labels, beside.labels[0], warped_labels, pair.moving_from_fixed)
        landmarks, why_not = beside.landmarks()
        if landmarks:
            try:
                numbers |= landmark_errors(landmarks, pair.moving_from_fixed, forward, fixed.grid)
            except GeometryError as error:
                why_not = f"no landmark error: {error}"
    return numbers, [why_not] if why_not else []


def _refine(prepared: Prepared, network_vox: Field) -> Refined | None:
    steps, pair = prepared.job.steps_on(prepared.expects.spacing_mm), prepared.pair
    if steps is None:
        return None
    with prepared.clock("refine"):
        moving, fixed = pair.moving, pair.fixed
        if steps.optimiser.blind:
            moving = known(moving, pair.grid, prepared.moving.grid, pair.moving_from_fixed)
            fixed = known(fixed, pair.grid, prepared.fixed.grid, np.eye(4))
        return refine(network_vox, moving, fixed, steps)


def _called(contract: Promise) -> str:
    return "the steps on the pair" if isinstance(contract, NoNetwork) else f"this {contract.network} model"


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

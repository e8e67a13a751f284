"""Register the files of a job: read them, ``registration``, write the results."""

from __future__ import annotations

from dataclasses import replace

from ofg_deploy.field import Field
from ofg_deploy.model_file import Contract
from ofg_deploy.nifti import Volume
from ofg_deploy.outputs import check_inputs_stay, check_writable
from ofg_deploy.preprocess import Start
from ofg_deploy.serve import companions, registration
from ofg_deploy.serve.automatic import strangeness
from ofg_deploy.serve.engine import Engine, Served
from ofg_deploy.serve.images import Images
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.no_network import Promise
from ofg_deploy.serve.registration import Align, Clock, Inputs, Prepared, begin_with, predict
from ofg_deploy.serve.saving import Saved, save
from ofg_deploy.transform import dialects


def register(job: Job, engine: Engine, images: Images | None = None) -> Saved:
    """Fixed + moving -> warped image, total transform, what moves with them, sidecar; see ``registration.register``.

    Raises:
        InputError, GeometryError: input that cannot be used, a field that leads further than a kilometre, or outputs
            that exist; nothing is written then.
        ParityError: a transform that reads back as another one; nothing is written then.
        UsageError: a grid too small to refine on, or one the model does not take.
    """
    prepared = prepare(job, engine.contract, images)
    return finish(job, prepared, predict(engine, prepared), engine)


def prepare(job: Job, contract: Promise, images: Images | None = None, align: Align = Start.align) -> Prepared:
    """Read all that the job names and bring the pair onto the network's grid; needs no engine. Raises as ``register``.

    Args:
        images: where they are read; a batch keeps those that pairs share.
        align: what carries out a start; a batch has processes for it.
    """
    init = begin_with(job, contract, job.masked)
    outputs = list(job.outputs(init).values())
    check_writable(outputs, job.overwrite)
    if job.overwrite:
        check_inputs_stay([*outputs, *job.obsolete(init)], job.reads())
    clock = Clock()
    images = images or Images()
    with clock("read"):
        fixed, moving = (images.image(path, job.max_voxels) for path in (job.fixed, job.moving))
        beside = companions.load(job, fixed, moving, images)
        dialects.check_images(job.field_format, job.fixed, fixed.grid, job.moving, moving.grid, job.max_voxels)
    prepared = registration.prepare(Inputs(fixed, moving, beside), job, contract, align, clock)
    return replace(prepared, notes=(*prepared.notes, *_unlike(job, contract, fixed, moving)))


def finish(job: Job, prepared: Prepared, network_vox: Field, engine: Engine) -> Saved:
    """From the network's field to files. Of the engine only what it says of itself is used; raises as ``register``."""
    return save(registration.finish(prepared, network_vox, Served.of(engine)), job)


def _unlike(job: Job, contract: Promise, fixed: Volume, moving: Volume) -> tuple[str, ...]:
    """Of a pair of a batch whose model was chosen by other pairs of it."""
    if job.model_choice and isinstance(contract, Contract) and (reason := strangeness(contract, fixed, moving)):
        return (f"auto chose the model by other pairs, and here {reason}: compare with -m none",)
    return ()

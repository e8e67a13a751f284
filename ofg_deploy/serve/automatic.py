"""``-m auto``: the model whose training images both images of a pair look like, or none; and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ofg_deploy.appearance import Appearance, likeness, thumbnail
from ofg_deploy.catalogue import Entry, entries, model_path
from ofg_deploy.errors import InputError
from ofg_deploy.model_file import Contract, read_model
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import IMAGE_BASED
from ofg_deploy.serve.images import Images
from ofg_deploy.serve.job import Job

RUNTIMES = ("onnxruntime", "openvino")
MAX_TOLD = 3  # models that were not taken, each with its reason

SAMPLE = 8  # pairs of a batch that are looked at, spread over all

Pair = tuple[Volume, Volume]  # fixed, moving


@dataclass(frozen=True)
class Choice:
    """What was taken, None for no network, and why in a few words; no reason where the user chose."""

    path: Path | None
    reason: str | None


def choose(model: str, jobs: Sequence[Job], images: Images, of_batch: bool) -> Choice:
    """What ``-m MODEL`` means for these pairs.

    Args:
        of_batch: in which a pair that cannot be read fails by itself, when its turn comes.

    Raises:
        InputError: no model of that name; with ``auto`` also a pair that cannot be read and is not of a batch.
    """
    if model == "none":
        return Choice(None, None)
    if model == "auto":
        return choose_model(_images_of(jobs, images, of_batch))
    return Choice(model_path(model), None)


def _images_of(jobs: Sequence[Job], images: Images, of_batch: bool) -> Iterator[Pair]:
    """Fixed and moving image of the job, or of some jobs of a batch, those that cannot be read left out."""
    for n in sorted({round(at) for at in np.linspace(0, len(jobs) - 1, min(len(jobs), SAMPLE))}):
        job = jobs[n]
        try:
            yield images.image(job.fixed, job.max_voxels), images.image(job.moving, job.max_voxels)
        except InputError:
            if not of_batch:
                raise


def choose_model(pairs: Iterable[Pair]) -> Choice:
    """The model that suits all these pairs; of several the one they are most like. Reads no image if there is none."""
    models = entries()
    if not models:
        return Choice(None, "no model is packaged or added (ofg models)")
    if not any(find_spec(name) for name in RUNTIMES):
        return Choice(None, "nothing that runs a model is installed: pip install 'ofg-deploy[cpu]'")
    refused: list[str] = []
    read = {entry: _contract(entry, refused) for entry in models}
    suits = {entry: contract for entry, contract in read.items() if contract}
    alike = dict.fromkeys(suits, np.inf)
    seen = 0
    for pair in pairs:
        seen += 1
        for entry, contract in [*suits.items()]:
            if reason := strangeness(contract, *pair):
                refused.append(f"{entry.name}: {reason}")
                del suits[entry]
            else:
                alike[entry] = min(alike[entry], _least_likeness(contract, *pair))
        if not suits:
            break
    if not seen:
        return Choice(None, "no image could be read to choose by")
    if not suits:
        more = f"; {len(refused) - MAX_TOLD} more" if len(refused) > MAX_TOLD else ""
        return Choice(None, f"no model suits the images ({'; '.join(refused[:MAX_TOLD])}{more})")
    best = max(suits, key=lambda entry: alike[entry])
    said = f"the images look like those it was trained on (likeness {alike[best]:.2f} or more)"
    return Choice(best.path, f"{best.origin} model {best.name}, {said}")


def _contract(entry: Entry, refused: list[str]) -> Contract | None:
    try:
        return read_model(entry.path).contract
    except InputError as error:
        refused.append(f"{entry.name}: {error}")
        return None


def strangeness(contract: Contract, fixed: Volume, moving: Volume) -> str | None:
    """Which image of a pair is not like those the model was trained on, and why; None if both are.

    Where the model's own start does not move the images, the moving one is looked at where its header puts it on the
    fixed one.
    """
    look = Appearance.from_record(contract.training.get("images"))
    if look is None:
        return "it keeps no record of its training images"
    centre = None if contract.init in IMAGE_BASED else fixed.grid
    for role, volume, where in (("fixed", fixed, None), ("moving", moving, centre)):
        try:
            reason = look.difference(volume, contract.expects, where)
        except InputError:
            reason = f"it is constant within the model's intensity recipe {contract.expects.intensity}"
        if reason:
            return f"the {role} image is not like its training images, {reason}"
    return None


def _least_likeness(contract: Contract, fixed: Volume, moving: Volume) -> float:
    look = Appearance.from_record(contract.training.get("images"))
    assert look is not None
    centre = None if contract.init in IMAGE_BASED else fixed.grid
    seen = (thumbnail(fixed, contract.expects), thumbnail(moving, contract.expects, centre))
    return min(likeness(image, look.mean) for image in seen)

"""Anybody's images: a folder of NIfTI, flat or with a folder for each subject."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ofg_deploy.data.description import Dataset, Subject
from ofg_deploy.data.plan import Memory, make_plan
from ofg_deploy.data.scans import bad_scans, describe
from ofg_deploy.errors import InputError
from ofg_deploy.image_folder import counterpart, look_into
from ofg_deploy.nifti import load_grid, stem

MIN_SUBJECTS = 4


def describe_folder(
    source: Path,
    labels: Path | None,
    seed: int,
    memory: Memory,
    skip_bad: bool,
    advance: Callable[[int], None] = lambda total: None,
) -> tuple[Dataset, dict[Path, str]]:
    """Check every header, split the subjects at random, and plan grid, spacing and batch.

    A tenth validates (at least two), the rest trains. Label maps have the same relative path in ``labels``.

    Returns:
        The data set, and what was left out (only with ``skip_bad``).

    Raises:
        InputError: too few images, or any that cannot be used (all are named) without ``skip_bad``.
    """
    found = look_into(source, deep=True)
    images = list(found.images.values())
    if labels is not None:
        if not labels.is_dir():
            raise InputError(f"`labels` {labels} is not a folder")
        images = [p for p in images if not p.is_relative_to(labels) or source.is_relative_to(labels)]
    maps = {p: None if labels is None else counterpart(labels, p, source) for p in images}
    bad = bad_scans(maps.items(), lambda: advance(len(images)))
    if bad and not skip_bad:
        raise InputError(f"{describe(bad, len(images))}. Mend or remove them, or add `skip_bad=True`")
    good = [p for p in images if p not in bad]
    if len(good) < MIN_SUBJECTS:
        raise InputError(f"{source} holds {len(good)} usable NIfTI images: at least {MIN_SUBJECTS} are needed")
    subjects = [
        Subject(_id(p, source), p.absolute(), None if maps[p] is None else maps[p].absolute())  # type: ignore[union-attr]
        for p in good
    ]
    kept = {s.id for s in random.Random(seed).sample(subjects, max(2, len(subjects) // 10))}
    grids = [load_grid(p) for p in good]
    spacings = np.array([g.spacing_mm for g in grids])
    plan = make_plan(grids, memory)
    notes = [f"images are used where they lie, under {source.absolute()}"]
    if remark := found.remark():
        notes.append(remark)
    if bad:
        notes.append(describe(bad, len(images)))
    dataset = Dataset(
        name=source.absolute().name,
        modality="unknown",
        splits={
            "training": tuple(s for s in subjects if s.id not in kept),
            "validation": tuple(s for s in subjects if s.id in kept),
        },
        spacing_mm=grids[0].spacing_mm if np.allclose(spacings, spacings[0], atol=1e-3) else None,
        notes=tuple(notes),
        plan=plan,
    )
    return dataset, bad


def _id(path: Path, folder: Path) -> str:
    return (path.parent.relative_to(folder) / stem(path)).as_posix()

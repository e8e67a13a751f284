"""The stages of a start, one after the other, and which of them is kept."""

from __future__ import annotations

import numpy as np

from ofg_deploy.affine import Alignment, Kind, Stage
from ofg_deploy.affine.agreement import Agreement, Frames, both
from ofg_deploy.affine.parameters import Prior, Vector, at_limits, to_matrix
from ofg_deploy.affine.pictures import Picture
from ofg_deploy.affine.search import Search
from ofg_deploy.geometry import Matrix, transform_points
from ofg_deploy.nifti import Volume

EVIDENCE = 3.0  # nats (a factor of 20) by which another start must be more probable than the headers or the centres
# An estimate from n samples strays by some 20/n nats by chance. Images of noise have as many independent places as
# samples: it would count as evidence.
SAMPLES_PER_PLACE = 20
# Voxels of the content at each level, and samples of it: a deformable step follows.
LEVELS = ((4e3, 4_000), (1.6e4, 12_000), (1.2e5, 40_000), (8e5, 100_000))


def best(fixed: Volume, moving: Volume, kind: Kind, fixed_mask: Volume | None, moving_mask: Volume | None) -> Alignment:
    """See ``ofg_deploy.affine.align``."""
    images = (fixed, fixed_mask), (moving, moving_mask)
    pictures = both(lambda n: Picture.of(*images[n]), min(image.data.size for image, _ in images))
    search, frames = _search(pictures[0], pictures[1])
    home = search.prior.home
    stages: dict[Stage, Vector] = {"header": home}
    centres = [_centred(frames, [getattr(p, of)() for p in pictures]) for of in ("centre_of_view", "centre_of_mass")]
    stages["centre"] = max(centres, key=search.measure)
    if kind != "centre":
        ends = search.ends([home, *centres])
        stages["rigid"] = search.finest(ends, "rigid")
    if kind == "affine":
        stages["affine"] = search.finest([*ends, stages["rigid"]], "affine")
    measure: dict[str, float] = {stage: search.measure(p) for stage, p in stages.items()}
    kept: Stage = "header"
    for stage, p in stages.items():
        if measure[stage] > measure[kept] and (kind == "centre" or _more_probable(search, p, stages[kept], kept)):
            kept = stage
    matrices = {stage: np.eye(4) if stage == "header" else frames.to_world(to_matrix(p)) for stage, p in stages.items()}
    apart = transform_points(matrices[kind] - matrices[kept], fixed.grid.corners_mm())
    voxels = float(np.linalg.norm(apart, axis=0).max()) / min(fixed.grid.spacing_mm)
    return Alignment(matrices[kept], kind, kept, measure, at_limits(stages[kind]), voxels)


def _more_probable(search: Search, p: Vector, than: Vector, kept: Stage) -> bool:
    # Where the images show little, as smooth ultrasound beside smooth MR, their information rises by chance alone: then
    # the headers are believed. Between rigid and affine the prior decides.
    return search.merit(p) > search.merit(than) + (EVIDENCE if kept in ("header", "centre") else 0.0)


def _search(fixed: Picture, moving: Picture) -> tuple[Search, Frames]:
    frames = Frames.of(fixed, moving)
    most = 4 * max(fixed.voxels(), moving.voxels())
    wanted = [level for n, level in enumerate(LEVELS) if n == 0 or level[0] < most]
    levels = [Agreement.between(fixed, moving, frames, *level) for level in wanted]
    home = np.zeros(12)
    home[:3] = frames.from_world(np.eye(4))[:3, 3]
    places = min(fixed.places(), moving.places(), wanted[-1][1] / SAMPLES_PER_PLACE)
    return Search(levels, places, Prior(home)), frames


def _centred(frames: Frames, centres: list[Matrix]) -> Vector:
    """What brings one centre (world) onto the other."""
    matrix = np.eye(4)
    matrix[:3, 3] = centres[1] - centres[0]
    p = np.zeros(12)
    p[:3] = frames.from_world(matrix)[:3, 3]
    return p

"""Subjects for the demo: the MNI152 template under random smooth diffeomorphisms, contrasts, bias fields and noise.

The template and its tissue maps come with the installed nilearn package; nothing is downloaded. Every subject is a
function of its seed. Its label map follows from the same deformation, so that it is true by construction:
1 ventricles and other CSF, 2 grey matter, 3 white matter.
"""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates

from ofg_deploy.field import jacobian_determinant, sample
from ofg_deploy.geometry import Grid, Shape, Spacing, lattice, transform_points
from ofg_deploy.nifti import save_volume

TRAINING, VALIDATION, HELD_OUT = 40, 6, 8
CENTRE_MM = (0.0, -17.0, 5.0)  # of the template's brain
# Stationary velocity: (standard deviation of the Gaussian that smooths it, root mean square), both in mm.
VELOCITY_MM = ((14.0, 0.8), (35.0, 4.0))
SQUARINGS = 6
AXES = dict(zip("RLASPI", np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -1, 0], [0, 0, -1]]), strict=True))


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject on one grid.

    Attributes:
        image: (X, Y, Z) int16, 0 outside the brain.
        labels: (X, Y, Z) uint8, numbered as above.
        grid: where both lie.
        min_jacobian: smallest Jacobian determinant of its deformation, above 0.
    """

    image: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    grid: Grid
    min_jacobian: float


def scanner(codes: str, shape: Shape, spacing_mm: Spacing) -> Grid:
    """A field of view centred on the brain, array axes along ``codes`` (``LPS``: to the left, back and up)."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([AXES[code] for code in codes], axis=1) * spacing_mm
    matrix[:3, 3] = CENTRE_MM - matrix[:3, :3] @ (np.array(shape) - 1) / 2
    return Grid(shape, matrix)


# The grid everything is trained on, and those of the held-out subjects, in turn.
STANDARD = scanner("RAS", (48, 64, 48), (3.5, 3.5, 3.5))
OTHERS = (
    scanner("LPS", (57, 71, 41), (3.0, 3.0, 4.0)),
    scanner("LAS", (53, 67, 55), (3.2, 3.2, 3.0)),
    scanner("PIR", (65, 51, 49), (3.3, 3.3, 3.5)),
    STANDARD,
)


def make_template(grid: Grid) -> Subject:
    """The template itself, without deformation, bias or noise."""
    points = transform_points(grid.world_from_vox, lattice(grid.shape))
    intensity, labels = _brain(points)
    return Subject(np.where(labels > 0, 1000 * intensity, 0).astype(np.int16), labels, grid, 1.0)


def make_subject(seed: int, grid: Grid) -> Subject:
    """The subject of a seed on a grid, with the same anatomy, contrast and bias whatever the grid."""
    rng = np.random.default_rng(seed)
    displacement, coarse = _diffeomorphism(rng)
    smallest = float(jacobian_determinant(displacement, coarse.world_from_vox).min())
    if smallest <= 0:
        raise RuntimeError(f"the deformation of seed {seed} folds (Jacobian determinant {smallest:.3f})")
    points = transform_points(grid.world_from_vox, lattice(grid.shape))
    on_coarse = transform_points(coarse.vox_from_world, points)
    intensity, labels = _brain(points + _at(displacement, on_coarse))
    bias = np.exp(_at(_smooth_noise(rng, coarse, sigma_mm=40.0, rms=0.06)[None], on_coarse)[0])
    gamma, gain = rng.uniform(0.8, 1.25), rng.uniform(400, 1500)
    seen = intensity**gamma * bias + rng.normal(0, 0.025, grid.shape)
    image = np.where(labels > 0, np.clip(seen, 0.01, None) * gain, 0)
    return Subject(image.astype(np.int16), labels, grid, smallest)


def _brain(points: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """The template's intensity (0..1) and label at (3, X, Y, Z) world points."""
    template, tissues, source = _atlas()
    index = transform_points(source.vox_from_world, points)
    found = np.stack([sample(tissue, index) for tissue in tissues])
    labels = np.where(found.sum(axis=0) > 0.5, 1 + found.argmax(axis=0), 0)
    return np.clip(sample(template, index), 0, 1), labels.astype(np.uint8)


def write_subjects(folder: Path) -> None:
    """Write ``images/`` and ``labels/``: ``template``, ``train-NN``, ``val-NN`` and ``held-NN``, in two processes."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    todo: list[tuple[str, int | None, Grid]] = [("template", None, STANDARD)]
    todo += [(f"train-{n:02d}", n, STANDARD) for n in range(TRAINING)]
    todo += [(f"val-{n:02d}", 500 + n, STANDARD) for n in range(VALIDATION)]
    todo += [(f"held-{n:02d}", 1000 + n, OTHERS[n % len(OTHERS)]) for n in range(HELD_OUT)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_write, *zip(*[(folder, *row) for row in todo], strict=True), chunksize=8))


def _write(folder: Path, name: str, seed: int | None, grid: Grid) -> None:
    subject = make_template(grid) if seed is None else make_subject(seed, grid)
    save_volume(folder / f"images/{name}.nii.gz", subject.image, grid)
    save_volume(folder / f"labels/{name}.nii.gz", subject.labels, grid)


@cache
def _atlas() -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...], Grid]:
    """Template intensities (0..1), probabilities of (other, grey, white), and their 2 mm grid.

    A Gaussian about as wide as a subject's voxel keeps the coarser grid from aliasing.
    """
    from nilearn.datasets import (
        load_mni152_brain_mask,
        load_mni152_gm_template,
        load_mni152_template,
        load_mni152_wm_template,
    )

    makers = (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    images = [make(resolution=2) for make in makers]
    arrays = [np.asarray(image.dataobj, dtype=np.float32) for image in images]
    template, grey, white, brain = (gaussian_filter(array, 0.7) for array in arrays)
    return template, (np.clip(brain - grey - white, 0, 1), grey, white), Grid(template.shape, images[0].affine)


def _diffeomorphism(rng: np.random.Generator) -> tuple[npt.NDArray[Any], Grid]:
    """A displacement (3, X, Y, Z) in mm, components in RAS, on a 5 mm grid, and that grid.

    exp of a stationary velocity field by scaling and squaring: u <- u + u(x + u), from u = v / 2^SQUARINGS.
    """
    grid = scanner("RAS", (44, 52, 44), (5.0, 5.0, 5.0))
    velocity = sum(np.stack([_smooth_noise(rng, grid, *scale) for _ in range(3)]) for scale in VELOCITY_MM)
    displacement = np.asarray(velocity) / 2**SQUARINGS
    for _ in range(SQUARINGS):
        displacement = displacement + _at(displacement, lattice(grid.shape) + displacement / 5.0)
    return displacement, grid


def _smooth_noise(rng: np.random.Generator, grid: Grid, sigma_mm: float, rms: float) -> npt.NDArray[Any]:
    noise = gaussian_filter(rng.standard_normal(grid.shape), sigma_mm / np.array(grid.spacing_mm), mode="wrap")
    return np.asarray(noise * rms / np.sqrt(np.mean(noise**2)))


def _at(components: npt.NDArray[Any], index: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Linear values of (C, X, Y, Z) at voxel positions, the edge held beyond it."""
    return np.stack([map_coordinates(c, index, order=1, mode="nearest", prefilter=False) for c in components])


if __name__ == "__main__":
    write_subjects(Path(sys.argv[1]))

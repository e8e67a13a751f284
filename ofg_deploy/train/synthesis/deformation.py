"""People as they might be: a label map under a random affine and a random smooth diffeomorphism."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from ofg_deploy.geometry import Grid, Matrix, transform_points
from ofg_deploy.kernels.rendering import carried
from ofg_deploy.train.greedy import compose
from ofg_deploy.train.synthesis.people import Person

NODE_MM = 6.0  # between the nodes of a deformation, which is linear in between
# Stationary velocities: standard deviation of the Gaussian that smooths them, and the most root mean square, in mm. The
# first is what differs between two brains after an affine, the second bends them as a whole.
VELOCITY_MM = ((12.0, 1.5), (30.0, 4.0))
SQUARINGS = 6
# Standard deviations of what an affine alignment leaves, and more, so that a network meets worse than it will see.
TURN_DEGREES, STRETCH, SHEAR, SHIFT_MM = 3.0, 0.04, 0.02, 3.0


def deformed(person: Person, grid: Grid, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Codes (X, Y, Z) of a person on a grid of the common frame, differently with each ``rng``."""
    centre = transform_points(person.frame_from_own, person.centre_mm)
    own_from_index = (
        person.coded.grid.vox_from_world @ person.own_from_frame @ random_affine(centre, rng) @ grid.world_from_vox
    )
    nodes = [max(2, round((n - 1) * s / NODE_MM) + 1) for n, s in zip(grid.shape, grid.spacing_mm, strict=True)]
    apart = (np.array(grid.shape) - 1) / (np.array(nodes) - 1)  # voxels of the grid between two nodes
    displacement = random_displacement(tuple(nodes), tuple(apart * grid.spacing_mm), rng)
    place = (np.indices(nodes) + displacement) * apart.reshape(3, 1, 1, 1)
    return carried(person.coded.codes, transform_points(own_from_index, place), grid.shape)


def random_affine(centre_mm: Matrix, rng: np.random.Generator) -> Matrix:
    """(4, 4) turn, stretch, shear and shift around a point, world mm -> world mm."""
    turns = np.deg2rad(TURN_DEGREES) * rng.standard_normal(3)
    matrix = np.eye(3)
    for axis, angle in enumerate(turns):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = SHEAR * rng.standard_normal(3)
    matrix = matrix @ shear @ np.diag(np.exp(STRETCH * rng.standard_normal(3)))
    found = np.eye(4)
    found[:3, :3] = matrix
    found[:3, 3] = centre_mm - matrix @ centre_mm + SHIFT_MM * rng.standard_normal(3)
    return found


def random_displacement(
    nodes: tuple[int, ...], apart_mm: tuple[float, ...], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """(3, X, Y, Z) in distances of nodes: exp of a stationary velocity, by scaling and squaring; without folds."""
    velocity = np.zeros((3, *nodes))
    for sigma, most in VELOCITY_MM:
        noise = rng.standard_normal((3, *nodes))
        smooth = np.stack([gaussian_filter(c, sigma / np.array(apart_mm), mode="wrap", truncate=3.0) for c in noise])
        velocity += rng.uniform(0, most) * smooth / np.sqrt(np.mean(smooth**2))
    steps = velocity / np.array(apart_mm).reshape(3, 1, 1, 1) / 2**SQUARINGS
    field = torch.from_numpy(steps.astype(np.float32))[None]
    for _ in range(SQUARINGS):
        field = compose(field, field)
    return field[0].numpy()

"""Displacements between coordinates that belong to images: array indices (Learn2Reg, VoxelMorph), FSL's scaled voxels.

With K the coordinates of a world point in an image, such a field holds K_moving(T(x)) - K_fixed(x) at every fixed voxel
x. It means nothing without both grids.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ofg_deploy.field import Field, turned
from ofg_deploy.geometry import Grid, Matrix

System = Callable[[Grid], Matrix]


def voxel_from_world(grid: Grid) -> Matrix:
    """(4, 4) RAS mm -> array index."""
    return grid.vox_from_world


def fsl_from_world(grid: Grid) -> Matrix:
    """(4, 4) RAS mm -> FSL's coordinates: index times voxel size, the first axis reversed if det > 0.

    Source: FSL's FLIRT FAQ and the documentation of fslpy's ``transform`` package ("scaled voxel coordinates with
    left-right flip").
    """
    scaled = np.diag([*grid.spacing_mm, 1.0])
    if np.linalg.det(grid.world_from_vox[:3, :3]) > 0:
        scaled[0] = [-grid.spacing_mm[0], 0, 0, (grid.shape[0] - 1) * grid.spacing_mm[0]]
    return scaled @ grid.vox_from_world


def to_relative(displacement_mm: Field, fixed: Grid, moving: Grid, system: System) -> Field:
    """(3, X, Y, Z) RAS mm on the fixed grid as a float32 displacement between both images' coordinates."""
    still = (system(moving) - system(fixed)) @ fixed.world_from_vox
    return turned(displacement_mm, still, system(moving))


@np.errstate(all="ignore")  # what overflows is refused by who reads files
def from_relative(relative: Field, fixed: Grid, moving: Grid, system: System) -> Field:
    """The way back: (3, X, Y, Z) float32 RAS mm."""
    world = np.asarray(np.linalg.inv(system(moving)), dtype=np.float64)
    return turned(relative, (world @ system(fixed) - np.eye(4)) @ fixed.world_from_vox, world)

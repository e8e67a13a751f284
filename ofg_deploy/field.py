"""Displacement fields without torch: sample, convert units, compose with an affine, Jacobian.

A field is a pull field: it lives on the fixed grid and says where in the moving image to sample. Voxel fields have
components in array-axis order; millimetre fields in world x, y, z (RAS+). All arrays are (3, X, Y, Z).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from ofg_deploy.geometry import Grid, Matrix, lattice, transform_points

Field = npt.NDArray[np.float32]


def sample(data: npt.NDArray[Any], index: Matrix, order: int = 1, fill: float = 0.0) -> npt.NDArray[Any]:
    """Values of ``data`` (X, Y, Z) at voxel positions ``index`` (3, ...).

    ``order`` 1 is linear (images), 0 nearest (labels). As in ITK a voxel reaches half a voxel beyond its centre: up to
    there the edge value holds, past it ``fill``.
    """
    # mode "nearest" holds the edge value everywhere; what is outside the field of view is filled afterwards.
    values = map_coordinates(data, index, order=order, mode="nearest", prefilter=False)
    upper = np.array(data.shape, dtype=np.float64).reshape(3, *[1] * (index.ndim - 1)) - 0.5
    values[((index < -0.5) | (index > upper)).any(axis=0)] = fill
    return np.asarray(values)


def resample(
    data: npt.NDArray[Any], source: Grid, target: Grid, source_from_target: Matrix, order: int = 1
) -> npt.NDArray[Any]:
    """``data`` on ``source`` seen on ``target`` through a world-to-world (4, 4) map, interpolated once, 0 outside."""
    index_from_index = source.vox_from_world @ source_from_target @ target.world_from_vox
    return sample(data, transform_points(index_from_index, lattice(target.shape)), order)


def total_displacement_mm(field_vox: Field, network: Grid, fixed: Grid, moving_from_fixed: Matrix) -> Field:
    """The whole map of a registration as one displacement on the fixed image's own grid.

    With x a fixed world point, d the network's displacement there and A the affine: u(x) = A(x + d(x)) - x.
    Beyond the network's grid d holds its edge value, so the map stays continuous.

    Args:
        field_vox: (3, X, Y, Z) in voxels of ``network``.
        network: the grid the network worked on.
        fixed: the fixed image's grid, which the result lives on.
        moving_from_fixed: (4, 4) the affine start, fixed world mm -> moving world mm.

    Returns:
        (3, *fixed.shape) float32, RAS mm.
    """
    field_mm = np.tensordot(network.world_from_vox[:3, :3], field_vox, axes=1)
    index = transform_points(network.vox_from_world @ fixed.world_from_vox, lattice(fixed.shape))
    points = transform_points(fixed.world_from_vox, lattice(fixed.shape))
    displaced = points.copy()
    for axis in range(3):
        displaced[axis] += map_coordinates(field_mm[axis], index, order=1, mode="nearest", prefilter=False)
    return np.asarray(transform_points(moving_from_fixed, displaced) - points, dtype=np.float32)


def warp(
    data: npt.NDArray[Any],
    moving: Grid,
    fixed: Grid,
    displacement_mm: Field,
    order: int = 1,
    fill: float = 0.0,
) -> npt.NDArray[Any]:
    """Moving ``data`` seen on the fixed grid: one interpolation at x + u(x).

    Args:
        data: (X, Y, Z) on ``moving``.
        displacement_mm: (3, *fixed.shape) RAS mm, the total map.
        order: 1 linear, 0 nearest. ``fill`` is the value where the map leaves the moving field of view.
    """
    points = transform_points(fixed.world_from_vox, lattice(fixed.shape)) + displacement_mm
    return sample(data, transform_points(moving.vox_from_world, points), order, fill)


def jacobian_determinant(displacement: npt.NDArray[Any], world_from_vox: Matrix | None = None) -> Field:
    """det d(x + u)/dx at every voxel, by central differences (one-sided at the faces), as ``numpy.gradient``.

    Args:
        displacement: (3, X, Y, Z); in voxels when ``world_from_vox`` is None, otherwise in mm.
        world_from_vox: (4, 4) or (3, 3) affine of the grid the displacement lives on.
    """
    axes = (np.eye(3) if world_from_vox is None else world_from_vox[:3, :3]).astype(displacement.dtype)
    # d(x + u)/dvoxel = axes + du/dvoxel; dividing by det(axes) makes it a derivative by x.
    row = [[g + axes[i, j] for j, g in enumerate(np.gradient(component))] for i, component in enumerate(displacement)]
    (a, b, c), (d, e, f), (g, h, i) = row
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return np.asarray(determinant / np.linalg.det(axes), dtype=np.float32)

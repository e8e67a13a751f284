"""An image, or what belongs to one, seen on another grid through a map: one interpolation."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import UsageError
from ofg_deploy.field import sample
from ofg_deploy.geometry import Grid, Matrix, lattice, transform_points
from ofg_deploy.nifti import Volume
from ofg_deploy.transform.maps import Inside, WorldMap, on_grid

Interpolation = Literal["linear", "nearest", "genericlabel", "bspline"]
OF_LABELS: tuple[Interpolation, ...] = ("nearest", "genericlabel")


def through(
    world_map: WorldMap, moving: Volume, reference: Grid, interpolation: Interpolation, fill: float
) -> tuple[npt.NDArray[Any], Inside]:
    """``moving`` on the reference grid, and where the map is known; ``fill`` elsewhere and outside the moving image.

    Raises:
        UsageError: a fill that the type of a label map does not hold.
    """
    if moving.data.dtype.kind != "f" and not (
        (limits := np.iinfo(moving.data.dtype)).min <= fill <= limits.max  # numpy or numba would take another number
    ):
        raise UsageError(
            f"--fill {fill:g}: {moving.path} is {moving.data.dtype}, which holds {limits.min} to {limits.max}"
        )
    displacement, inside = on_grid(world_map, reference)
    values = at(
        moving, transform_points(reference.world_from_vox, lattice(reference.shape)) + displacement, interpolation, fill
    )
    values[~inside] = fill
    return values, inside


def at(volume: Volume, points: Matrix, interpolation: Interpolation, fill: float) -> npt.NDArray[Any]:
    """Values at world points (3, ...). A voxel reaches half a voxel beyond its centre, past that ``fill``.

    ``linear``; ``nearest``; ``genericlabel``, the label of the largest linear weight (``kernels/labels``); ``bspline``,
    cubic, mirrored at the faces as in ITK, which may leave the image's range.
    """
    index = transform_points(volume.grid.vox_from_world, points)
    if interpolation == "genericlabel":
        from ofg_deploy.kernels.labels import weightiest

        found = np.empty(points.shape[1:], volume.data.dtype)
        weightiest(volume.data, index.reshape(3, -1), int(fill), found.reshape(-1))
        return found
    if interpolation == "bspline":
        from scipy.ndimage import map_coordinates, spline_filter

        coefficients = spline_filter(volume.data.astype(np.float64), order=3, mode="mirror")
        values = map_coordinates(coefficients, index, order=3, mode="mirror", prefilter=False)
        known = sample(np.ones(volume.data.shape, dtype=np.float32), index, order=0) > 0
        return np.where(known, values, fill).astype(np.float32)
    return sample(volume.data, index, 1 if interpolation == "linear" else 0, fill)

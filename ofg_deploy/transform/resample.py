"""An image, or what belongs to one, at any positions: one interpolation."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ofg_deploy.field import sample
from ofg_deploy.geometry import Matrix, transform_points
from ofg_deploy.nifti import Volume

Interpolation = Literal["linear", "nearest", "genericlabel", "bspline"]
OF_LABELS: tuple[Interpolation, ...] = ("nearest", "genericlabel")


def at(volume: Volume, points: Matrix, interpolation: Interpolation, fill: float) -> npt.NDArray[Any]:
    """Values at world points (3, ...): as ``at_index``."""
    return at_index(volume.data, transform_points(volume.grid.vox_from_world, points), interpolation, fill)


def at_index(data: npt.NDArray[Any], index: Matrix, interpolation: Interpolation, fill: float) -> npt.NDArray[Any]:
    """Values at voxel positions (3, ...). A voxel reaches half a voxel beyond its centre, past that ``fill``.

    ``linear``; ``nearest``; ``genericlabel``, the label of the largest linear weight (``kernels/labels``); ``bspline``,
    cubic, mirrored at the faces as in ITK, which may leave the image's range.
    """
    if interpolation == "genericlabel":
        from ofg_deploy.kernels.labels import weightiest

        found = np.empty(index.shape[1:], data.dtype)
        weightiest(data, index.reshape(3, -1), int(fill), found.reshape(-1))
        return found
    if interpolation == "bspline":
        from scipy.ndimage import map_coordinates, spline_filter

        coefficients = spline_filter(data.astype(np.float64), order=3, mode="mirror")
        values = map_coordinates(coefficients, index, order=3, mode="mirror", prefilter=False)
        known = sample(np.ones(data.shape, dtype=np.float32), index, order=0) > 0
        return np.where(known, values, fill).astype(np.float32)
    return sample(data, index, 1 if interpolation == "linear" else 0, fill)

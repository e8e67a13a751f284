"""An image, or what belongs to one, at any positions: one interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.field import Field, sample
from ofg_deploy.geometry import Grid, Matrix, in_view, transform_points
from ofg_deploy.nifti import Volume
from ofg_deploy.options.words import Interpolation
from ofg_deploy.transform.maps import Inside

MOST_PERCENT = 50.0  # of the reference outside the moving image, beyond which something is likely wrong
OF_LABELS: tuple[Interpolation, ...] = ("nearest", "genericlabel")


def outside_warning(displacement: Field, inside: Inside | None, fixed: Grid, moving: Grid) -> tuple[str, ...]:
    """One line where a map leads most of the fixed grid out of the moving image, else none.

    Looked at are some 30,000 voxels, none of them favoured.

    Args:
        displacement: (3, *fixed.shape) RAS mm. inside: where it is known; None for everywhere.
    """
    steps = (np.unique(((np.arange(32) + 0.5) / 32 * n).astype(int)) for n in fixed.shape)
    picked: tuple[Any, ...] = np.ix_(*steps)
    points = transform_points(fixed.world_from_vox, np.stack(np.broadcast_arrays(*picked)).astype(np.float64))
    seen = in_view(transform_points(moving.vox_from_world, points + displacement[(slice(None), *picked)]), moving.shape)
    known = np.ones(seen.shape, dtype=np.bool_) if inside is None else inside[picked]
    outside = 100.0 * float(np.mean(~seen[known])) if known.any() else 0.0
    if outside <= MOST_PERCENT:
        return ()
    return (
        f"the transform leads {outside:.0f} % of the reference's voxels out of the moving image: do the three belong "
        "together, is the transform of the form it is read as, and the right way round?",
    )


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

"""Sample an image at voxel + displacement, and the slope of the sample in the displacement, in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from ofg_deploy.kernels.compiled import compiled

Array = npt.NDArray[np.floating[Any]]


def warp(image: Array, field: Array, warped: Array, slope: Array, outside: float = 0.0) -> None:
    """Linear interpolation, zeros outside (or another value), as torch's grid_sample with align_corners.

    The whole and the fractional part of the displacement are taken apart before the voxel's index is added, so the
    weights do not lose digits to large indices. Where the field is not finite the sample is NaN.

    Args:
        image: (X, Y, Z).
        field: (3, X, Y, Z) displacement in voxels, components in axis order.
        warped: (X, Y, Z) out, the samples.
        slope: (3, X, Y, Z) out, d warped / d field; at a lattice point the one of the upper side.
        outside: what stands beyond the grid. NaN: it is not known, nor is what is NaN in the image. Then a sample
            of which at least half of the weight is known is the mean of that, its slope 0; otherwise it is NaN.
    """
    _warp(image, field, warped, slope, image.dtype.type(outside))


@compiled()
def _corner(image: Array, x: int, y: int, z: int, outside: Any) -> Any:
    if 0 <= x < image.shape[0] and 0 <= y < image.shape[1] and 0 <= z < image.shape[2]:
        return image[x, y, z]
    return outside


@compiled()
def _known_part(image: Array, x: int, y: int, z: int, t_x: Any, t_y: Any, t_z: Any) -> Any:
    """The mean of those of eight neighbours that are known, by their weights; NaN where these make less than a half."""
    total, known = np.float32(0), np.float32(0)
    one, unknown = np.float32(1), np.float32(np.nan)
    for i in range(2):
        for j in range(2):
            for k in range(2):
                value = _corner(image, x + i, y + j, z + k, unknown)
                if not np.isnan(value):
                    weight = (t_x if i else one - t_x) * (t_y if j else one - t_y) * (t_z if k else one - t_z)
                    total += weight * value
                    known += weight
    return total / known if known >= 0.5 else unknown


@compiled()
def _split(moved: Array, first: Any, step: Any, below: Array, part: Array) -> None:
    """Positions along one axis: the voxel below, and how far above it; by itself, so that it is done in vectors."""
    for z in range(moved.size):
        whole = np.floor(moved[z])
        below[z], part[z] = whole + (first + step * np.float32(z)), moved[z] - whole


@compiled()
def _places(
    below: Array, size_x: int, size_y: int, size_z: int, at: npt.NDArray[np.int32], inside: npt.NDArray[np.bool_]
) -> int:
    """Where in memory the first of eight neighbours is, held within the image; whether all are there, and how often."""
    zero, count = np.float32(0), 0
    step_x, step_y = np.int32(size_y * size_z), np.int32(size_z)
    end_x, end_y, end_z = np.float32(size_x - 2), np.float32(size_y - 2), np.float32(size_z - 2)
    for z in range(at.size):
        p, q, r = below[0, z], below[1, z], below[2, z]
        there = (p >= zero) & (p <= end_x) & (q >= zero) & (q <= end_y) & (r >= zero) & (r <= end_z)
        at[z] = np.int32(p) * step_x + np.int32(q) * step_y + np.int32(r) if there else 0
        inside[z] = there
        count += there
    return count


@compiled()
def _look_up(
    flat: Array, at: npt.NDArray[np.int32], step_x: Any, step_y: Any, part: Array, out: Array, s_x: Array, s_y: Array,
    s_z: Array,
) -> None:  # fmt: skip
    """Samples of one row and their slopes, wherever they lie: no branch, so that it is done in vectors."""
    one = np.uint64(1)
    for z in range(at.size):
        t_x, t_y, t_z = part[0, z], part[1, z], part[2, z]
        i = np.uint64(at[z])
        v000, v001, v010, v011 = flat[i], flat[i + one], flat[i + step_y], flat[i + step_y + one]
        i += step_x
        v100, v101, v110, v111 = flat[i], flat[i + one], flat[i + step_y], flat[i + step_y + one]
        e00, e01, e10, e11 = v001 - v000, v011 - v010, v101 - v100, v111 - v110
        c00, c01, c10, c11 = v000 + t_z * e00, v010 + t_z * e01, v100 + t_z * e10, v110 + t_z * e11
        b0, b1 = c01 - c00, c11 - c10
        a0, a1 = c00 + t_y * b0, c10 + t_y * b1
        e0, e1 = e00 + t_y * (e01 - e00), e10 + t_y * (e11 - e10)
        out[z] = a0 + t_x * (a1 - a0)
        s_x[z] = a1 - a0
        s_y[z] = b0 + t_x * (b1 - b0)
        s_z[z] = e0 + t_x * (e1 - e0)


@compiled()
def _look_up_one(
    image: Array, p_x: Any, p_y: Any, p_z: Any, t_x: Any, t_y: Any, t_z: Any, outside: Any
) -> tuple[Any, Any, Any, Any]:
    """A sample and its slopes where neighbours lie beyond the image."""
    if not (-1 <= p_x < image.shape[0] and -1 <= p_y < image.shape[1] and -1 <= p_z < image.shape[2]):
        still = np.float32(0) * (t_x + t_y + t_z)
        return outside + still, still, still, still
    x, y, z = int(p_x), int(p_y), int(p_z)
    v000, v001 = _corner(image, x, y, z, outside), _corner(image, x, y, z + 1, outside)
    v010, v011 = _corner(image, x, y + 1, z, outside), _corner(image, x, y + 1, z + 1, outside)
    v100, v101 = _corner(image, x + 1, y, z, outside), _corner(image, x + 1, y, z + 1, outside)
    v110, v111 = _corner(image, x + 1, y + 1, z, outside), _corner(image, x + 1, y + 1, z + 1, outside)
    e00, e01, e10, e11 = v001 - v000, v011 - v010, v101 - v100, v111 - v110
    c00, c01, c10, c11 = v000 + t_z * e00, v010 + t_z * e01, v100 + t_z * e10, v110 + t_z * e11
    b0, b1 = c01 - c00, c11 - c10
    a0, a1 = c00 + t_y * b0, c10 + t_y * b1
    e0, e1 = e00 + t_y * (e01 - e00), e10 + t_y * (e11 - e10)
    return a0 + t_x * (a1 - a0), a1 - a0, b0 + t_x * (b1 - b0), e0 + t_x * (e1 - e0)


@compiled()
def _any_unknown(row: Array) -> bool:
    unknown = 0
    for z in range(row.size):
        unknown += row[z] != row[z]
    return unknown > 0


@compiled(parallel=True)
def _warp(image: Array, field: Array, warped: Array, slope: Array, outside: Any) -> None:
    size_x, size_y, size_z = image.shape
    flat, blind = image.reshape(-1), np.isnan(outside)
    step_x, step_y = np.uint64(size_y * size_z), np.uint64(size_z)
    for x in prange(size_x):
        below, part = np.empty((3, size_z), field.dtype), np.empty((3, size_z), field.dtype)
        at, inside = np.empty(size_z, np.int32), np.empty(size_z, np.bool_)
        for y in range(size_y):
            out, s_x, s_y, s_z = warped[x, y], slope[0, x, y], slope[1, x, y], slope[2, x, y]
            _split(field[0, x, y], np.float32(x), np.float32(0), below[0], part[0])
            _split(field[1, x, y], np.float32(y), np.float32(0), below[1], part[1])
            _split(field[2, x, y], np.float32(0), np.float32(1), below[2], part[2])
            count = _places(below, size_x, size_y, size_z, at, inside)
            if count:
                _look_up(flat, at, step_x, step_y, part, out, s_x, s_y, s_z)
            if count < size_z:
                for z in range(size_z):
                    if not inside[z]:
                        out[z], s_x[z], s_y[z], s_z[z] = _look_up_one(
                            image, below[0, z], below[1, z], below[2, z], part[0, z], part[1, z], part[2, z], outside
                        )
            if blind and _any_unknown(out):
                for z in range(size_z):
                    if (
                        np.isnan(out[z])
                        and -1 <= below[0, z] < size_x
                        and -1 <= below[1, z] < size_y
                        and -1 <= below[2, z] < size_z
                    ):
                        out[z] = _known_part(
                            image,
                            int(below[0, z]),
                            int(below[1, z]),
                            int(below[2, z]),
                            part[0, z],
                            part[1, z],
                            part[2, z],
                        )
                        s_x[z] = s_y[z] = s_z[z] = np.float32(0)

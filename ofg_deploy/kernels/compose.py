"""The greedy step's own passes: direction of descent, its lengths, and the composition with the field."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from ofg_deploy.kernels.compiled import compiled

Array = npt.NDArray[np.floating[Any]]


@compiled(parallel=True)
def scale_slope(slope: Array, image: Array) -> None:
    """Overwrite ``slope`` (3, X, Y, Z), d warped / d field, with the gradient: times d energy / d warped (X, Y, Z).

    Where the latter is 0 so is the gradient, even if the slope is not known (NaN).
    """
    for x in prange(image.shape[0]):
        for c in range(3):
            for y in range(image.shape[1]):
                row, factor = slope[c, x, y], image[x, y]
                for z in range(row.size):
                    row[z] = row[z] * factor[z] if factor[z] != 0 else factor[z]


def lengths(vectors: Array) -> tuple[float, float]:
    """Of the vectors of (3, X, Y, Z): the largest Euclidean length, and the mean one, each weighted by itself.

    That mean is sum(length^2) / sum(length), 0 where there is nothing: what is empty around the anatomy has no say.
    """
    # By plane and column: what a loop adds up across rows can be added in vectors.
    columns = np.zeros((3, vectors.shape[1], vectors.shape[3]), np.float32)
    _add_lengths(vectors, columns)
    # Not in compiled code, which would share the sums out among the threads and round them differently for each number.
    _, total, squares = columns.sum(axis=(1, 2), dtype=np.float64)
    return float(columns[0].max()), float(squares / total) if total > 0 else 0.0


@compiled(parallel=True)
def _add_lengths(vectors: Array, columns: Array) -> None:
    """Largest length, sum of lengths and of their squares by x and z: ``columns`` (3, X, Z), zeros before."""
    for x in prange(vectors.shape[1]):
        largest, sums, squares = columns[0, x], columns[1, x], columns[2, x]
        for y in range(vectors.shape[2]):
            v_x, v_y, v_z = vectors[0, x, y], vectors[1, x, y], vectors[2, x, y]
            for z in range(v_x.size):
                square = v_x[z] * v_x[z] + v_y[z] * v_y[z] + v_z[z] * v_z[z]
                length = np.sqrt(square)
                largest[z] = max(largest[z], length)
                sums[z] += length
                squares[z] += square


@compiled()
def _interpolate(flat: Array, i: Any, step_x: Any, step_y: Any, one: Any, t_x: Any, t_y: Any, t_z: Any) -> Any:
    c00 = flat[i] + t_z * (flat[i + one] - flat[i])
    c01 = flat[i + step_y] + t_z * (flat[i + step_y + one] - flat[i + step_y])
    i += step_x
    c10 = flat[i] + t_z * (flat[i + one] - flat[i])
    c11 = flat[i + step_y] + t_z * (flat[i + step_y + one] - flat[i + step_y])
    c0, c1 = c00 + t_y * (c01 - c00), c10 + t_y * (c11 - c10)
    return c0 + t_x * (c1 - c0)


@compiled()
def _split(moved: Array, first: Any, step: Any, size: Any, whole: Array, part: Array) -> None:
    """Positions along one axis, held within it: the voxel below, but the last one, and how far above it; in vectors."""
    zero, end, last = np.float32(0), np.float32(size - 1), np.int32(size - 2)
    for z in range(moved.size):
        at = min(max(first + step * np.float32(np.int32(z)) + moved[z], zero), end)
        below = min(np.int32(at), last)
        whole[z], part[z] = below, at - np.float32(below)


@compiled(parallel=True)
def compose(field: Array, direction: Array, factor: float, out: Array, limit: float) -> None:
    """The map s of ``factor`` x direction first, then that of ``field``: out(x) = s(x) + field(x + s(x)).

    Vectors of s longer than ``limit`` are shortened to it. Linear interpolation; beyond the border the field keeps its
    edge value.

    Args:
        field, direction: (3, X, Y, Z) voxels.
        factor: of the direction.
        out: (3, X, Y, Z), an array of its own.
        limit: voxels; infinite for none.
    """
    size_x, size_y, size_z = field.shape[1:]
    scale, size, zero = np.float32(factor), np.float32(abs(factor)), np.float32(0)
    bound = np.float32(min(limit, 1e30))  # finite: a ratio is made of it
    flat = field.reshape(-1)
    # Unsigned, so that numba does not look for negative indices.
    volume, step_x = np.uint64(size_x * size_y * size_z), np.uint64(size_y * size_z)
    step_y, one = np.uint64(size_z), np.uint64(1)
    for x in prange(size_x):
        whole, part = np.empty((3, size_z), np.int32), np.empty((3, size_z), np.float32)
        for y in range(size_y):
            s_x, s_y, s_z = direction[0, x, y], direction[1, x, y], direction[2, x, y]
            o_x, o_y, o_z = out[0, x, y], out[1, x, y], out[2, x, y]
            for z in range(size_z):  # by itself, so that it is done in vectors
                length = size * np.sqrt(s_x[z] * s_x[z] + s_y[z] * s_y[z] + s_z[z] * s_z[z])
                shortened = scale * (bound / max(length, bound))
                o_x[z], o_y[z], o_z[z] = shortened * s_x[z], shortened * s_y[z], shortened * s_z[z]
            _split(o_x, np.float32(x), zero, np.int32(size_x), whole[0], part[0])
            _split(o_y, np.float32(y), zero, np.int32(size_y), whole[1], part[1])
            _split(o_z, zero, np.float32(1), np.int32(size_z), whole[2], part[2])
            for z in range(size_z):
                t_x, t_y, t_z = part[0, z], part[1, z], part[2, z]
                i = np.uint64(whole[0, z]) * step_x + np.uint64(whole[1, z]) * step_y + np.uint64(whole[2, z])
                o_x[z] += _interpolate(flat, i, step_x, step_y, one, t_x, t_y, t_z)
                o_y[z] += _interpolate(flat, i + volume, step_x, step_y, one, t_x, t_y, t_z)
                o_z[z] += _interpolate(flat, i + volume + volume, step_x, step_y, one, t_x, t_y, t_z)

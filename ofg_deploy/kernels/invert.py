"""Where a map by displacements reaches given points: its inverse, point by point."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from ofg_deploy.kernels.compiled import compiled

Array = npt.NDArray[np.floating[Any]]


@compiled()
def _displaced(field: Array, matrix: Array, at: Array, value: Array, slope: Array) -> None:
    """matrix @ at + field(at), linear between voxels and held beyond them, and its derivative."""
    whole, part, free = np.empty(3, np.int64), np.empty(3), np.empty(3)
    for a in range(3):
        last = field.shape[a + 1] - 1
        held = min(at[a], float(last)) if at[a] > 0.0 else 0.0  # also for NaN, which makes no index
        free[a] = 1.0 if held == at[a] else 0.0
        whole[a] = min(int(held), last - 1)
        part[a] = held - whole[a]
    for c in range(3):
        value[c] = matrix[c, 0] * at[0] + matrix[c, 1] * at[1] + matrix[c, 2] * at[2] + matrix[c, 3]
        for a in range(3):
            slope[c, a] = matrix[c, a]
    for x in range(2):
        w_x, s_x = (part[0], 1.0) if x else (1.0 - part[0], -1.0)
        for y in range(2):
            w_y, s_y = (part[1], 1.0) if y else (1.0 - part[1], -1.0)
            for z in range(2):
                w_z, s_z = (part[2], 1.0) if z else (1.0 - part[2], -1.0)
                for c in range(3):
                    v = float(field[c, whole[0] + x, whole[1] + y, whole[2] + z])
                    value[c] += w_x * w_y * w_z * v
                    slope[c, 0] += free[0] * s_x * w_y * w_z * v
                    slope[c, 1] += free[1] * w_x * s_y * w_z * v
                    slope[c, 2] += free[2] * w_x * w_y * s_z * v


@compiled()
def _solve(m: Array, r: Array, out: Array) -> float:
    """out = m^-1 r by cofactors; returns det m, and leaves ``out`` alone if that is 0."""
    c0 = m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1]
    c1 = m[1, 2] * m[2, 0] - m[1, 0] * m[2, 2]
    c2 = m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0]
    det = m[0, 0] * c0 + m[0, 1] * c1 + m[0, 2] * c2
    if det != 0.0:
        d0 = m[0, 2] * m[2, 1] - m[0, 1] * m[2, 2]
        d1 = m[0, 0] * m[2, 2] - m[0, 2] * m[2, 0]
        d2 = m[0, 1] * m[2, 0] - m[0, 0] * m[2, 1]
        e0 = m[0, 1] * m[1, 2] - m[0, 2] * m[1, 1]
        e1 = m[0, 2] * m[1, 0] - m[0, 0] * m[1, 2]
        e2 = m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]
        out[0] = (c0 * r[0] + d0 * r[1] + e0 * r[2]) / det
        out[1] = (c1 * r[0] + d1 * r[1] + e1 * r[2]) / det
        out[2] = (c2 * r[0] + d2 * r[1] + e2 * r[2]) / det
    return float(det)


@compiled(parallel=True)
def invert(
    field: Array, matrix: Array, target: Array, steps: int, tolerance: float, found: Array, error: Array
) -> None:
    """Solve matrix @ i + field(i) = target for i, each point by itself and so alike on any number of threads.

    A fixed-point iteration i <- i - J^-1 (T(i) - target) in which J is the map's own derivative where that has not
    collapsed (a tenth of the affine's determinant), else the affine's; a step that brings no gain is halved, up to five
    times, and then the best point so far is kept.

    Args:
        field: (3, X, Y, Z) voxels of its grid, edge value held beyond it.
        matrix: (4, 4) the affine part, in the same voxels.
        target: (3, N) float64.
        steps: at most so many; ``tolerance`` ends earlier, in voxels.
        found: (3, N) out, the solution or the nearest that was met. error: (N) out, |T(i) - target| there in voxels.
    """
    for n in prange(target.shape[1]):
        here, value, slope = np.empty(3), np.empty(3), np.empty((3, 3))
        there, there_value, there_slope = np.empty(3), np.empty(3), np.empty((3, 3))
        rest, move = np.empty(3), np.zeros(3)
        for a in range(3):
            rest[a] = target[a, n] - matrix[a, 3]
        affine_det = _solve(matrix, rest, here)
        _displaced(field, matrix, here, value, slope)
        best = np.sqrt((value[0] - target[0, n]) ** 2 + (value[1] - target[1, n]) ** 2 + (value[2] - target[2, n]) ** 2)
        for _ in range(steps):
            if best <= tolerance:
                break
            for a in range(3):
                rest[a] = value[a] - target[a, n]
            if not _solve(slope, rest, move) / affine_det > 0.1:
                _solve(matrix, rest, move)
            gained, factor = False, 1.0
            for _ in range(6):
                for a in range(3):
                    there[a] = here[a] - factor * move[a]
                _displaced(field, matrix, there, there_value, there_slope)
                size = 0.0
                for a in range(3):
                    size += (there_value[a] - target[a, n]) ** 2
                if np.sqrt(size) < best:
                    best, gained = np.sqrt(size), True
                    here[:], value[:], slope[:] = there, there_value, there_slope
                    break
                factor *= 0.5
            if not gained:
                break
        for a in range(3):
            found[a, n] = here[a]
        error[n] = best

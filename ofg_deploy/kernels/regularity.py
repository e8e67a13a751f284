"""How smooth a displacement field is: its diffusion, and the share of voxels in which it folds.

The same bits for any number of threads: each plane has a double-precision sum of its own, added up in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from ofg_deploy.kernels.compiled import compiled

Array = npt.NDArray[np.floating[Any]]


def diffusion(field: Array) -> float:
    """Mean squared forward difference of (3, X, Y, Z) along each axis, averaged over the three axes.

    As ``ofg_deploy.train.losses.diffusion``; at least 2 voxels along each axis.
    """
    columns = np.zeros((field.shape[1], 3, field.shape[3]))
    _sum_squares(field, columns)
    shape = np.array(field.shape[1:])
    return float(np.sum(columns.sum(axis=2).sum(axis=0) / (field.size * (shape - 1) / shape))) / 3


def folding_percent(field: Array) -> float:
    """Percentage of voxels of (3, X, Y, Z), in voxels, where det d(x + u)/dx <= 0.

    By central differences, one-sided at the faces, as ``ofg_deploy.field.jacobian_determinant``.
    """
    counts = np.empty(field.shape[1], np.int64)
    _count_folds(field, counts)
    return 100.0 * float(counts.sum()) / (field.size // 3)


@compiled()
def _add_squares(sums: Array, first: Array, second: Array) -> None:
    """Column by column: what is not added up along a row can be added in vectors."""
    for z in range(first.size):
        difference = np.float64(second[z]) - np.float64(first[z])
        sums[z] += difference * difference


@compiled(parallel=True)
def _sum_squares(field: Array, columns: Array) -> None:
    """Squared forward differences of plane x along each axis, over all components, added to ``columns`` (X, 3, Z)."""
    size_x, size_y = field.shape[1:3]
    for x in prange(size_x):
        along_x, along_y, along_z = columns[x, 0], columns[x, 1], columns[x, 2]
        for c in range(3):
            for y in range(size_y):
                row = field[c, x, y]
                if x + 1 < size_x:
                    _add_squares(along_x, row, field[c, x + 1, y])
                if y + 1 < size_y:
                    _add_squares(along_y, row, field[c, x, y + 1])
                _add_squares(along_z, row[:-1], row[1:])


@compiled()
def _slopes(
    x_low: Array, x_high: Array, by_x: float, y_low: Array, y_high: Array, by_y: float, row: Array, out: Array
) -> None:
    """Derivatives of one component along each axis, at each voxel of a row, into ``out`` (3, Z); in vectors."""
    along_x, along_y, along_z, inner, last = out[0], out[1], out[2], out[2][1:], row.size - 1
    upper = row[2:]
    for z in range(row.size):
        along_x[z] = by_x * (np.float64(x_high[z]) - np.float64(x_low[z]))
        along_y[z] = by_y * (np.float64(y_high[z]) - np.float64(y_low[z]))
    for z in range(upper.size):
        inner[z] = 0.5 * (np.float64(upper[z]) - np.float64(row[z]))
    along_z[0] = np.float64(row[1]) - np.float64(row[0])
    along_z[last] = np.float64(row[last]) - np.float64(row[last - 1])


@compiled()
def _not_positive(first: Array, second: Array, third: Array) -> int:
    """In how many voxels of a row det (1 + slopes) <= 0; slopes (3, Z) of each component."""
    a, b, c, d, e, f = first[0], first[1], first[2], second[0], second[1], second[2]
    g, h, i = third[0], third[1], third[2]
    one, found = np.float64(1), 0
    for z in range(a.size):
        p, q, r = one + a[z], one + e[z], one + i[z]
        found += p * (q * r - f[z] * h[z]) - b[z] * (d[z] * r - f[z] * g[z]) + c[z] * (d[z] * h[z] - q * g[z]) <= 0
    return found


@compiled(parallel=True)
def _count_folds(field: Array, counts: npt.NDArray[np.int64]) -> None:
    """Voxels of plane x whose determinant is not positive, into ``counts`` (X,)."""
    size_x, size_y, size_z = field.shape[1:]
    for x in prange(size_x):
        slopes, found = np.empty((3, 3, size_z)), 0
        x_0, x_1 = max(x - 1, 0), min(x + 1, size_x - 1)
        for y in range(size_y):
            y_0, y_1 = max(y - 1, 0), min(y + 1, size_y - 1)
            for k in range(3):
                _slopes(
                    field[k, x_0, y], field[k, x_1, y], 1.0 / (x_1 - x_0), field[k, x, y_0], field[k, x, y_1],
                    1.0 / (y_1 - y_0), field[k, x, y], slopes[k],
                )  # fmt: skip
            found += _not_positive(slopes[0], slopes[1], slopes[2])
        counts[x] = found

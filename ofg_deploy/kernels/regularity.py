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


@compiled(parallel=True)
def _count_folds(field: Array, counts: npt.NDArray[np.int64]) -> None:
    """Voxels of plane x whose determinant is not positive, into ``counts`` (X,)."""
    size_x, size_y, size_z = field.shape[1:]
    one = np.float64(1)
    for x in prange(size_x):
        x_0, x_1 = max(x - 1, 0), min(x + 1, size_x - 1)
        by_x, found = one / (x_1 - x_0), 0
        for y in range(size_y):
            y_0, y_1 = max(y - 1, 0), min(y + 1, size_y - 1)
            by_y = one / (y_1 - y_0)
            for z in range(size_z):
                z_0, z_1 = max(z - 1, 0), min(z + 1, size_z - 1)
                by_z = one / (z_1 - z_0)
                a = one + by_x * (np.float64(field[0, x_1, y, z]) - np.float64(field[0, x_0, y, z]))
                b = by_y * (np.float64(field[0, x, y_1, z]) - np.float64(field[0, x, y_0, z]))
                c = by_z * (np.float64(field[0, x, y, z_1]) - np.float64(field[0, x, y, z_0]))
                d = by_x * (np.float64(field[1, x_1, y, z]) - np.float64(field[1, x_0, y, z]))
                e = one + by_y * (np.float64(field[1, x, y_1, z]) - np.float64(field[1, x, y_0, z]))
                f = by_z * (np.float64(field[1, x, y, z_1]) - np.float64(field[1, x, y, z_0]))
                g = by_x * (np.float64(field[2, x_1, y, z]) - np.float64(field[2, x_0, y, z]))
                h = by_y * (np.float64(field[2, x, y_1, z]) - np.float64(field[2, x, y_0, z]))
                i = one + by_z * (np.float64(field[2, x, y, z_1]) - np.float64(field[2, x, y, z_0]))
                if a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g) <= 0:
                    found += 1
        counts[x] = found

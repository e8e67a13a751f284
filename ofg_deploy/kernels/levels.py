"""Half the resolution and back: images a factor of 2 coarser, displacement fields a factor of 2 finer.

Coarse voxel i lies on fine voxel 2 i, along every axis; edge values are held.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from ofg_deploy.kernels.compiled import compiled

Array = npt.NDArray[np.floating[Any]]


def coarser_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Voxels of the coarser grid: every axis halved, rounded up."""
    return tuple(-(-n // 2) for n in shape)


@compiled(parallel=True)
def fill_known(image: Array, out: Array) -> None:
    """Where ``coarsen`` left NaN: the mean of those voxels that are not NaN, if they have half of the weight."""
    size_x, size_y, size_z = image.shape
    for x in prange(out.shape[0]):
        for y in range(out.shape[1]):
            for z in range(out.shape[2]):
                if not np.isnan(out[x, y, z]):
                    continue
                total, known = 0.0, 0.0
                for n in range(27):
                    i, j, k = n // 9 - 1, n // 3 % 3 - 1, n % 3 - 1
                    p, q, r = 2 * x + i, 2 * y + j, 2 * z + k
                    value = image[min(max(p, 0), size_x - 1), min(max(q, 0), size_y - 1), min(max(r, 0), size_z - 1)]
                    if not np.isnan(value):
                        weight = 0.125 * 0.5 ** (abs(i) + abs(j) + abs(k))
                        total += weight * value
                        known += weight
                if known >= 0.5:
                    out[x, y, z] = total / known


@compiled(parallel=True)
def coarsen(image: Array, out: Array) -> None:
    """Smooth (X, Y, Z) by 1/4, 1/2, 1/4 along each axis, and take every second voxel; NaN where one of them is.

    Args:
        out: of ``coarser_shape``.
    """
    size_x, size_y, size_z = image.shape
    quarter, half = np.float32(0.25), np.float32(0.5)
    for x in prange(out.shape[0]):
        x_0, x_1, x_2 = max(2 * x - 1, 0), 2 * x, min(2 * x + 1, size_x - 1)
        row = np.empty(size_z, np.float32)
        for y in range(out.shape[1]):
            y_0, y_1, y_2 = max(2 * y - 1, 0), 2 * y, min(2 * y + 1, size_y - 1)
            for z in range(size_z):
                low = quarter * (image[x_0, y_0, z] + image[x_0, y_2, z]) + half * image[x_0, y_1, z]
                mid = quarter * (image[x_1, y_0, z] + image[x_1, y_2, z]) + half * image[x_1, y_1, z]
                high = quarter * (image[x_2, y_0, z] + image[x_2, y_2, z]) + half * image[x_2, y_1, z]
                row[z] = quarter * (low + high) + half * mid
            for z in range(out.shape[2]):
                k = 2 * z
                out[x, y, z] = quarter * (row[max(k - 1, 0)] + row[min(k + 1, size_z - 1)]) + half * row[k]


def coarsen_known(image: Array, out: Array) -> None:
    """As ``coarsen``, of those voxels that are not NaN; NaN where they have less than half of the weight."""
    coarsen(image, out)
    if np.isnan(out).any():
        fill_known(image, out)


@compiled(parallel=True)
def refine_grid(field: Array, out: Array) -> None:
    """A displacement field on the grid twice as fine, by linear interpolation; its voxels are half as large.

    Args:
        field: (3, ...) of ``coarser_shape``, in coarse voxels.
        out: (3, X, Y, Z) in fine voxels.
    """
    size_x, size_y, size_z = field.shape[1:]
    quarter = np.float32(0.25)  # the mean of 2 x 2 x 2 neighbours, times 2
    for x in prange(out.shape[1]):
        x_0 = x // 2
        x_1 = min(x_0 + x % 2, size_x - 1)
        for c in range(3):
            for y in range(out.shape[2]):
                y_0 = y // 2
                y_1 = min(y_0 + y % 2, size_y - 1)
                a, b, d, e = field[c, x_0, y_0], field[c, x_0, y_1], field[c, x_1, y_0], field[c, x_1, y_1]
                row = out[c, x, y]
                for z in range(row.size):
                    z_0 = z // 2
                    z_1 = min(z_0 + z % 2, size_z - 1)
                    row[z] = quarter * (a[z_0] + a[z_1] + b[z_0] + b[z_1] + d[z_0] + d[z_1] + e[z_0] + e[z_1])

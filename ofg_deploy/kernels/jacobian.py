"""The Jacobian determinant of a map in one pass, and its spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.kernels.compiled import compiled
from ofg_deploy.kernels.slabs import BLOCK, over_slabs

Array = npt.NDArray[Any]


@compiled()
def _at(
    flat: Array, at: int, up_x: int, down_x: int, by_x: float, up_y: int, down_y: int, by_y: float,
    up_z: int, down_z: int, by_z: float, axes: Array,
) -> float:  # fmt: skip
    size = flat.size // 3
    a = axes[0, 0] + by_x * (np.float64(flat[at + up_x]) - np.float64(flat[at - down_x]))
    b = axes[0, 1] + by_y * (np.float64(flat[at + up_y]) - np.float64(flat[at - down_y]))
    c = axes[0, 2] + by_z * (np.float64(flat[at + up_z]) - np.float64(flat[at - down_z]))
    at += size
    d = axes[1, 0] + by_x * (np.float64(flat[at + up_x]) - np.float64(flat[at - down_x]))
    e = axes[1, 1] + by_y * (np.float64(flat[at + up_y]) - np.float64(flat[at - down_y]))
    f = axes[1, 2] + by_z * (np.float64(flat[at + up_z]) - np.float64(flat[at - down_z]))
    at += size
    g = axes[2, 0] + by_x * (np.float64(flat[at + up_x]) - np.float64(flat[at - down_x]))
    h = axes[2, 1] + by_y * (np.float64(flat[at + up_y]) - np.float64(flat[at - down_y]))
    i = axes[2, 2] + by_z * (np.float64(flat[at + up_z]) - np.float64(flat[at - down_z]))
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)  # type: ignore[no-any-return]


@compiled()
def determinant(field: Array, axes: Array, volume: float, out: Array, first: int, last: int) -> None:
    """det d(x + u)/dx by central differences, one-sided at the faces, in double precision.

    Args:
        field: u, (3, X, Y, Z) in C order, at least 2 voxels along each axis.
        axes: (3, 3), column j is the step of x along array axis j. volume: its determinant.
        out: (X, Y, Z). first, last: planes of it that are written.
    """
    size_x, size_y, size_z = out.shape
    flat, step = field.reshape(-1), size_y * size_z
    by = 1 / volume
    for x in range(first, last):
        up_x, down_x = step * (x + 1 < size_x), step * (x > 0)
        by_x = float(step) / (up_x + down_x)
        for y in range(size_y):
            up_y, down_y = size_z * (y + 1 < size_y), size_z * (y > 0)
            by_y = float(size_z) / (up_y + down_y)
            row, at = out[x, y], x * step + y * size_z
            for z in range(1, size_z - 1):
                row[z] = by * _at(flat, at + z, up_x, down_x, by_x, up_y, down_y, by_y, 1, 1, 0.5, axes)
            row[0] = by * _at(flat, at, up_x, down_x, by_x, up_y, down_y, by_y, 1, 0, 1.0, axes)
            at += size_z - 1
            row[size_z - 1] = by * _at(flat, at, up_x, down_x, by_x, up_y, down_y, by_y, 0, 1, 1.0, axes)


@compiled()
def _blocks(values: Array, lowest: float, highest: float, found: Array, first: int, last: int) -> None:
    """Of the clipped logarithms in each block: mean and sum of squares about it, into ``found`` (blocks, 2)."""
    for block in range(first, last):
        part = values[block * BLOCK : (block + 1) * BLOCK]
        logs, total = np.empty(part.size), 0.0
        for n in range(part.size):
            logs[n] = np.log(min(max(np.float64(part[n]), lowest), highest))
            total += logs[n]
        mean, squares = total / part.size, 0.0
        for n in range(part.size):
            squares += (logs[n] - mean) * (logs[n] - mean)
        found[block, 0], found[block, 1] = mean, squares


def log_spread(determinants: Array, lowest: float, highest: float) -> float:
    """Standard deviation of the logarithm of values clipped to lowest..highest; the same for any number of threads."""
    values = np.ascontiguousarray(determinants.ravel(order="K"))
    sizes = np.diff(np.append(np.arange(0, values.size, BLOCK), values.size))
    found = np.empty((sizes.size, 2))
    over_slabs(_blocks, sizes.size, values.size, values, lowest, highest, found)
    mean = float((found[:, 0] * sizes).sum() / values.size)
    squares = found[:, 1].sum() + (sizes * (found[:, 0] - mean) ** 2).sum()
    return float(np.sqrt(squares / values.size))

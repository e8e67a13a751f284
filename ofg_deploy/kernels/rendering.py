"""Label codes carried onto another grid, and tables of brightness averaged over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.kernels.compiled import compiled
from ofg_deploy.kernels.slabs import over_slabs

Array = npt.NDArray[Any]


def carried(codes: Array, nodes: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> Array:
    """The nearest voxel of ``codes`` (X, Y, Z) at each voxel of another grid; 0 beyond it.

    Args:
        codes: C order.
        nodes: (3, A, B, C) positions in voxels of ``codes`` at nodes that span the other grid from corner to corner,
            linear in between; 2 or more along each axis.
        shape: of the other grid, 2 voxels or more along each axis.
    """
    out = np.empty(shape, codes.dtype)
    over_slabs(_carry, shape[0], out.size, codes, np.ascontiguousarray(nodes), out)
    return out


def averaged(codes: Array, table: npt.NDArray[np.float32], times: int) -> npt.NDArray[np.float32]:
    """Means of ``table[codes]`` over blocks of ``times`` voxels along each axis, of which each axis is a multiple."""
    x, y, z = (n // times for n in codes.shape)
    out = np.empty((x, y, z), np.float32)
    over_slabs(_average, x, codes.size, codes, table, times, out)
    return out


@compiled()
def _carry(codes: Array, nodes: Array, out: Array, first: int, last: int) -> None:
    size_x, size_y, size_z = codes.shape
    _, count_x, count_y, count_z = nodes.shape
    line = np.empty((3, count_z))
    for i in range(first, last):
        at = i * (count_x - 1) / (out.shape[0] - 1)
        a = min(int(at), count_x - 2)
        u = at - a
        for j in range(out.shape[1]):
            at = j * (count_y - 1) / (out.shape[1] - 1)
            b = min(int(at), count_y - 2)
            v = at - b
            for c in range(3):
                for k in range(count_z):
                    low = (1 - v) * nodes[c, a, b, k] + v * nodes[c, a, b + 1, k]
                    high = (1 - v) * nodes[c, a + 1, b, k] + v * nodes[c, a + 1, b + 1, k]
                    line[c, k] = (1 - u) * low + u * high
            for k in range(out.shape[2]):
                at = k * (count_z - 1) / (out.shape[2] - 1)
                d = min(int(at), count_z - 2)
                w = at - d
                # Half a voxel up and rounded down; what is beyond stays so.
                x = int(np.floor((1 - w) * line[0, d] + w * line[0, d + 1] + 0.5))
                y = int(np.floor((1 - w) * line[1, d] + w * line[1, d + 1] + 0.5))
                z = int(np.floor((1 - w) * line[2, d] + w * line[2, d + 1] + 0.5))
                inside = 0 <= x < size_x and 0 <= y < size_y and 0 <= z < size_z
                out[i, j, k] = codes[x, y, z] if inside else 0


@compiled()
def _average(codes: Array, table: Array, times: int, out: Array, first: int, last: int) -> None:
    weight = np.float32(1 / times**3)
    for i in range(first, last):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                total = np.float32(0)
                for x in range(times * i, times * (i + 1)):
                    for y in range(times * j, times * (j + 1)):
                        for z in range(times * k, times * (k + 1)):
                            total += table[codes[x, y, z]]
                out[i, j, k] = total * weight

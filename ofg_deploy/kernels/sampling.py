"""Values of an image and of a field between its voxels, at the voxels of another grid or at points.

Coordinates and sums are in double precision and never stored. As in ITK a voxel reaches half a voxel beyond its centre:
up to there the edge value holds, past it ``fill``. All arrays are in C order. The middle of a row, where all eight
neighbours are there, goes through a loop without a branch: three times as fast. Planes are gone through side by side,
so that what is read stays in cache where the two grids have their axes in other orders.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.kernels.compiled import compiled

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]

RUN = 256  # points looked up at a time
PIECE = 32  # voxels of a row gone through at a time, where what is read lies across it


@compiled()
def _inside(size_x: int, size_y: int, size_z: int, x: float, y: float, z: float) -> bool:
    # Also false of NaN.
    return -0.5 <= x <= size_x - 0.5 and -0.5 <= y <= size_y - 0.5 and -0.5 <= z <= size_z - 0.5


@compiled()
def _lower(size: int, at: float) -> tuple[int, float]:
    """The lower of two neighbouring voxels and the weight of the upper one; beyond the faces the edge is held."""
    held = min(max(at, 0.0), size - 1.0)
    lower = max(min(int(held), size - 2), 0)
    return lower, held - lower


@compiled()
def _mix(flat: Array, at: Any, step_x: Any, step_y: Any, step_z: Any, u: float, v: float, w: float) -> float:
    # Weights t and 1 - t: at a voxel's centre exactly its value comes out, from either side.
    v00 = (1 - w) * flat[at] + w * flat[at + step_z]
    v01 = (1 - w) * flat[at + step_y] + w * flat[at + step_y + step_z]
    at += step_x
    v10 = (1 - w) * flat[at] + w * flat[at + step_z]
    v11 = (1 - w) * flat[at + step_y] + w * flat[at + step_y + step_z]
    return (1 - u) * ((1 - v) * v00 + v * v01) + u * ((1 - v) * v10 + v * v11)  # type: ignore[no-any-return]


@compiled()
def _held(flat: Array, size_x: int, size_y: int, size_z: int, x: float, y: float, z: float, linear: bool) -> Any:
    """The value at any position, that of the edge beyond it."""
    # Indices are unsigned, so that numba does not look for negative ones; an axis of one voxel has no neighbour.
    if linear:
        i, u = _lower(size_x, x)
        j, v = _lower(size_y, y)
        k, w = _lower(size_z, z)
        at = np.uint64((i * size_y + j) * size_z + k)
        step_x, step_y = np.uint64(size_y * size_z * (size_x > 1)), np.uint64(size_z * (size_y > 1))
        return _mix(flat, at, step_x, step_y, np.uint64(size_z > 1), u, v, w)
    i = int(np.floor(min(max(x, 0.0), size_x - 1.0) + 0.5))
    j = int(np.floor(min(max(y, 0.0), size_y - 1.0) + 0.5))
    k = int(np.floor(min(max(z, 0.0), size_z - 1.0) + 0.5))
    return flat[np.uint64((i * size_y + j) * size_z + k)]


@compiled()
def _amid(size_x: int, size_y: int, size_z: int, x: float, y: float, z: float) -> bool:
    """All eight neighbours are there: nothing to hold, nothing to fill."""
    return (x >= 0) & (x < size_x - 1) & (y >= 0) & (y < size_y - 1) & (z >= 0) & (z < size_z - 1)


@compiled()
def _middle(size_x: int, size_y: int, size_z: int, p: Matrix, q: Matrix, r: Matrix) -> tuple[int, int]:
    """From where to where in a row of positions all eight neighbours are there; nowhere if with interruptions."""
    first, last = 0, p.size
    while first < last and not _amid(size_x, size_y, size_z, p[first], q[first], r[first]):
        first += 1
    while last > first and not _amid(size_x, size_y, size_z, p[last - 1], q[last - 1], r[last - 1]):
        last -= 1
    for n in range(first, last):
        if not _amid(size_x, size_y, size_z, p[n], q[n], r[n]):
            return 0, 0
    return first, last


@compiled()
def _look_up(
    flat: Array, size_x: int, size_y: int, size_z: int, p: Matrix, q: Matrix, r: Matrix, linear: bool, fill: float,
    out: Array,
) -> None:  # fmt: skip
    """Values at the positions p, q, r (N,) into ``out`` (N,)."""
    step_x, step_y, one = np.uint64(size_y * size_z), np.uint64(size_z), np.uint64(1)
    first, last = _middle(size_x, size_y, size_z, p, q, r) if linear else (0, 0)
    for n in range(first, last):
        i, j, k = int(p[n]), int(q[n]), int(r[n])
        at = np.uint64((i * size_y + j) * size_z + k)
        out[n] = _mix(flat, at, step_x, step_y, one, p[n] - i, q[n] - j, r[n] - k)
    for n in range(out.size):
        if first <= n < last:
            continue
        if _inside(size_x, size_y, size_z, p[n], q[n], r[n]):
            out[n] = _held(flat, size_x, size_y, size_z, p[n], q[n], r[n], linear)
        else:
            out[n] = fill


@compiled()
def on_grid(
    data: Array, matrix: Matrix, field: Array, linear: bool, fill: float, out: Array, first: int, last: int
) -> None:
    """``data`` at every voxel of a grid, moved by a field or not.

    Args:
        data: (X, Y, Z). With ``linear`` of floats.
        matrix: (3, 7): position in ``data`` = matrix[:, :4] (voxel, 1) + matrix[:, 4:] field[:, voxel].
        field: (3, *out.shape), or (0, 0, 0, 0) for none.
        linear: otherwise the nearest voxel.
        fill: for what lies outside.
        out: of the type of ``data``. first, last: planes of it that are written.
    """
    size_x, size_y, size_z = data.shape
    flat, moved = data.reshape(-1), field.shape[0] == 3
    p, q, r = np.empty(out.shape[2]), np.empty(out.shape[2]), np.empty(out.shape[2])
    a0, a1, a2, a3, a4, a5, a6 = matrix[0]
    b0, b1, b2, b3, b4, b5, b6 = matrix[1]
    c0, c1, c2, c3, c4, c5, c6 = matrix[2]
    for y in range(out.shape[1]):
        for x in range(first, last):
            row_p, row_q, row_r = a0 * x + a1 * y + a3, b0 * x + b1 * y + b3, c0 * x + c1 * y + c3
            for z in range(p.size):
                p[z], q[z], r[z] = row_p + a2 * z, row_q + b2 * z, row_r + c2 * z
            if moved:
                d, e, f = field[0, x, y], field[1, x, y], field[2, x, y]
                for z in range(p.size):
                    p[z] += a4 * d[z] + a5 * e[z] + a6 * f[z]
                    q[z] += b4 * d[z] + b5 * e[z] + b6 * f[z]
                    r[z] += c4 * d[z] + c5 * e[z] + c6 * f[z]
            _look_up(flat, size_x, size_y, size_z, p, q, r, linear, fill, out[x, y])


@compiled()
def at_points(data: Array, index: Matrix, linear: bool, fill: float, out: Array, first: int, last: int) -> None:
    """``data`` (X, Y, Z) at voxel positions ``index`` (3, N), points ``first`` to ``last``; else as ``on_grid``."""
    size_x, size_y, size_z = data.shape
    flat = data.reshape(-1)
    for start in range(first, last, RUN):
        end = min(start + RUN, last)
        p, q, r = index[0, start:end], index[1, start:end], index[2, start:end]
        _look_up(flat, size_x, size_y, size_z, p, q, r, linear, fill, out[start:end])


@compiled()
def total_map(field: Array, matrix: Matrix, out: Array, first: int, last: int) -> None:
    """A field on its own grid, edge values held beyond it, made part of a map on another grid.

    Args:
        field: (3, X, Y, Z), at least 2 voxels along each axis.
        matrix: (3, 11): position in ``field`` = matrix[:, :4] (voxel, 1), and with d the field there the result is
            matrix[:, 4:8] (voxel, 1) + matrix[:, 8:] d.
        out: (3, ...). first, last: planes of it that are written.
    """
    size_x, size_y, size_z = field.shape[1:]
    flat_x, flat_y, flat_z = field[0].reshape(-1), field[1].reshape(-1), field[2].reshape(-1)
    step_x, step_y, one = np.uint64(size_y * size_z), np.uint64(size_z), np.uint64(1)
    p, q, r = np.empty(out.shape[3]), np.empty(out.shape[3]), np.empty(out.shape[3])
    a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10 = matrix[0]
    b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10 = matrix[1]
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10 = matrix[2]
    end_x, end_y, end_z = size_x - 1.0, size_y - 1.0, size_z - 1.0
    for y in range(out.shape[2]):
        for x in range(first, last):
            row_p, row_q, row_r = a0 * x + a1 * y + a3, b0 * x + b1 * y + b3, c0 * x + c1 * y + c3
            still_x, still_y, still_z = a4 * x + a5 * y + a7, b4 * x + b5 * y + b7, c4 * x + c5 * y + c7
            out_x, out_y, out_z = out[0, x, y], out[1, x, y], out[2, x, y]
            for z in range(p.size):
                p[z] = min(max(row_p + a2 * z, 0.0), end_x)
                q[z] = min(max(row_q + b2 * z, 0.0), end_y)
                r[z] = min(max(row_r + c2 * z, 0.0), end_z)
            for z in range(p.size):
                i, j, k = min(int(p[z]), size_x - 2), min(int(q[z]), size_y - 2), min(int(r[z]), size_z - 2)
                u, v, w = p[z] - i, q[z] - j, r[z] - k
                at = np.uint64((i * size_y + j) * size_z + k)
                d = _mix(flat_x, at, step_x, step_y, one, u, v, w)
                e = _mix(flat_y, at, step_x, step_y, one, u, v, w)
                f = _mix(flat_z, at, step_x, step_y, one, u, v, w)
                out_x[z] = still_x + a6 * z + (a8 * d + a9 * e + a10 * f)
                out_y[z] = still_y + b6 * z + (b8 * d + b9 * e + b10 * f)
                out_z[z] = still_z + c6 * z + (c8 * d + c9 * e + c10 * f)


@compiled()
def total_on_voxels(field: Array, matrix: Matrix, out: Array, first: int, last: int) -> None:
    """As ``total_map`` where every voxel of ``out`` lies on a voxel of the field: nothing is interpolated.

    Args:
        field: (3, ...) of the shape of ``out``, voxel upon voxel, in any order in memory.
        matrix: (3, 7): the result is matrix[:, :4] (voxel, 1) + matrix[:, 4:] d.
        out: (3, ...). first, last: planes of it that are written.
    """
    a0, a1, a2, a3, a4, a5, a6 = matrix[0]
    b0, b1, b2, b3, b4, b5, b6 = matrix[1]
    c0, c1, c2, c3, c4, c5, c6 = matrix[2]
    size_z = out.shape[3]
    for y in range(out.shape[2]):
        # Short pieces of rows, so that what is read across the order in memory is read once.
        for start in range(0, size_z, PIECE):
            end = min(start + PIECE, size_z)
            for x in range(first, last):
                still_x, still_y, still_z = a0 * x + a1 * y + a3, b0 * x + b1 * y + b3, c0 * x + c1 * y + c3
                for z in range(start, end):
                    d, e, f = (
                        np.float64(field[0, x, y, z]),
                        np.float64(field[1, x, y, z]),
                        np.float64(field[2, x, y, z]),
                    )
                    out[0, x, y, z] = still_x + a2 * z + (a4 * d + a5 * e + a6 * f)
                    out[1, x, y, z] = still_y + b2 * z + (b4 * d + b5 * e + b6 * f)
                    out[2, x, y, z] = still_z + c2 * z + (c4 * d + c5 * e + c6 * f)


@compiled()
def count_beyond(
    data: Array, matrix: Matrix, shape: tuple[int, int, int], level: float, counts: Array, first: int, last: int
) -> None:
    """Voxels of (X, Y, Z) above a level, and those of them that lie outside a grid.

    Args:
        matrix: (3, 4) voxel of ``data`` -> voxel of the grid. shape: the grid's.
        counts: (X, 2) out, one row for each plane. first, last: planes.
    """
    for x in range(first, last):
        for y in range(data.shape[1]):
            for z in range(data.shape[2]):
                if data[x, y, z] > level:
                    p = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + matrix[0, 3]
                    q = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + matrix[1, 3]
                    r = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + matrix[2, 3]
                    counts[x, 0] += 1
                    counts[x, 1] += not _inside(shape[0], shape[1], shape[2], p, q, r)

"""Self-similarity around each voxel (MIND-SSC), which does not depend on an image's contrast, and its distance.

Heinrich et al., MICCAI 2013: of each of the twelve pairs of face neighbours that do not lie opposite each other, D is
the mean squared difference of the 3 x 3 x 3 cubes around them; the descriptor is exp(-(D - least D) / mean D). Where
two tissues meet, some pairs differ and others do not, whichever tissue is the brighter one. To the mean D a share of
the variance of the whole image is added, so that flat regions do not show their noise: nothing in it is absolute.

An image is described once and the descriptors are sampled, which warps no image: as bytes, sixteen to a voxel, in one
order for all (``CHANNELS``, then nothing, then whether the voxel is known).
Small functions stand here as in ``correlation``: numba would not notice a change in another file (``compiled``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import get_num_threads, get_thread_id, prange

from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.kernels.compiled import PLANES, compiled

Array = npt.NDArray[Any]

CHANNELS = 12
WIDE = 16  # bytes of a voxel, a vector register; the last one is UNKNOWN or 0
UNKNOWN = 255
SCALE = 254  # the byte that stands for 1
FLOOR = 0.03
"""Standard deviation, as a share of that of the whole image, below which differences hardly count as structure."""

# From one face neighbour to another there are six diagonals, each between two pairs of neighbours.
DIAGONALS = np.array([(1, 1, 0), (1, -1, 0), (1, 0, 1), (1, 0, -1), (0, 1, 1), (0, 1, -1)], np.int64)
# Of each channel the diagonal and the face neighbour it starts from.
PAIRS = np.array(
    [
        (0, -1, 0, 0), (0, 0, -1, 0), (1, -1, 0, 0), (1, 0, 1, 0), (2, -1, 0, 0), (2, 0, 0, -1),
        (3, -1, 0, 0), (3, 0, 0, 1), (4, 0, -1, 0), (4, 0, 0, -1), (5, 0, -1, 0), (5, 0, 0, 1),
    ],
    np.int64,
)  # fmt: skip


def describe(image: Array, out: Array, buffers: Buffers) -> None:
    """Descriptors of an image.

    Args:
        image: (X, Y, Z) float32, C-contiguous; NaN where it is not known. Beyond the grid its edge values are held.
        out: (X, Y, Z, WIDE) uint8, 0..``SCALE`` for 0..1. A voxel is unknown where any voxel that it is made of is.
        buffers: some planes for each thread.
    """
    _, size_y, size_z = image.shape
    known = image[np.isfinite(image)]
    floor = 27 * FLOOR**2 * float(known.var(dtype=np.float64)) if known.size else 1.0
    threads = get_num_threads()
    sums = buffers.take("mind.sums", (threads, 6, PLANES + 2, size_y, size_z))
    planes = buffers.take("mind.planes", (threads, 2, size_y, size_z))
    rows = buffers.take("mind.rows", (threads, CHANNELS + 2, size_z))
    _describe(image, np.float32(max(floor, 1e-30)), DIAGONALS, PAIRS, out, sums, planes, rows)


def loss_and_gradient(moving: Array, fixed: Array, field: Array, gradient: Array, buffers: Buffers) -> float:
    """Negative mean over voxels of 1 - the mean squared difference of descriptors (-1..0).

    A voxel that is not known in one of the images, or whose place lies beyond the moving image, counts 0, as in
    ``correlation``: nothing is gained by moving what does not fit out of sight.

    Args:
        moving, fixed: (X, Y, Z, WIDE) as ``describe`` made them.
        field: (3, X, Y, Z) voxels, where to sample ``moving``.
        gradient: (3, X, Y, Z) out, of the loss in ``field``.
        buffers: a number for each plane.
    """
    voxels = fixed.size // WIDE
    totals = buffers.take("mind.totals", (fixed.shape[0],), np.float64)
    scale = 1 / (CHANNELS * SCALE**2)
    _compare(moving, fixed, field, np.float32(2 * scale / voxels), scale, gradient, totals)
    # Not in compiled code, which would share the sum out among the threads and round it differently for each number.
    return -float(totals.sum()) / voxels


@compiled()
def _squared_differences(image: Array, x: int, diagonal: Array, out: Array) -> None:
    """(I(v) - I(v + diagonal))^2 of the plane x, which may lie beyond the grid; edge values held."""
    size_x, size_y, size_z = image.shape
    shift, last = diagonal[2], size_z - 1
    x_0, x_1 = min(max(x, 0), size_x - 1), min(max(x + diagonal[0], 0), size_x - 1)
    for y in range(size_y):
        a, b, row = image[x_0, y], image[x_1, min(max(y + diagonal[1], 0), size_y - 1)], out[y]
        if shift == 0:
            for z in range(size_z):
                row[z] = (a[z] - b[z]) * (a[z] - b[z])
        elif shift > 0:
            upper = b[1:]
            for z in range(last):
                row[z] = (a[z] - upper[z]) * (a[z] - upper[z])
            row[last] = (a[last] - b[last]) * (a[last] - b[last])
        else:
            upper, target = a[1:], row[1:]
            for z in range(last):
                target[z] = (upper[z] - b[z]) * (upper[z] - b[z])
            row[0] = (a[0] - b[0]) * (a[0] - b[0])


@compiled()
def _sum_squares(plane: Array, spare: Array) -> None:
    """Overwrite a plane with its sums over 3 x 3 voxels, edge values held."""
    size_y, size_z = plane.shape
    for y in range(size_y):
        row, out = plane[y], spare[y]
        lower, middle, upper, inner = row[: size_z - 2], row[1:], row[2:], out[1:]
        for z in range(lower.size):
            inner[z] = lower[z] + middle[z] + upper[z]
        out[0] = row[0] + row[0] + row[1]
        out[size_z - 1] = row[size_z - 2] + row[size_z - 1] + row[size_z - 1]
    for y in range(size_y):
        a, b, c, out = spare[max(y - 1, 0)], spare[y], spare[min(y + 1, size_y - 1)], plane[y]
        for z in range(size_z):
            out[z] = a[z] + b[z] + c[z]


@compiled()
def _add_plane(out: Array, plane: Array, first: bool) -> None:
    for y in range(plane.shape[0]):
        to, row = out[y], plane[y]
        if first:
            for z in range(row.size):
                to[z] = row[z]
        else:
            for z in range(row.size):
                to[z] += row[z]


@compiled()
def _shift(source: Array, by: int, out: Array) -> None:
    """out[z] = source[z + by], edge values held; ``by`` is -1, 0 or 1."""
    last = source.size - 1
    lower, upper, target = source[: max(last, 0)], source[1:], out[1:]
    if by > 0:
        for z in range(last):
            out[z] = upper[z]
        out[last] = source[last]
    elif by < 0:
        for z in range(last):
            target[z] = lower[z]
        out[0] = source[0]
    else:
        for z in range(source.size):
            out[z] = source[z]


@compiled()
def _describe_row(sums: Array, x: int, y: int, first: int, size_x: int, floor: Any, pairs: Array, rows: Array) -> None:
    """Descriptors 0..SCALE of one row in the first ``CHANNELS`` rows; not finite where they are not known."""
    size_y, size_z = sums.shape[2], sums.shape[3]
    least, total = rows[CHANNELS], rows[CHANNELS + 1]
    for c in range(CHANNELS):
        i = min(max(x + pairs[c, 1], 0), size_x - 1) - first + 1
        source, row = sums[pairs[c, 0], i, min(max(y + pairs[c, 2], 0), size_y - 1)], rows[c]
        _shift(source, pairs[c, 3], row)
        if c == 0:
            for z in range(size_z):
                least[z] = row[z]
                total[z] = row[z]
        else:
            for z in range(size_z):
                least[z] = min(least[z], row[z])
                total[z] += row[z]
    share, one, zero = np.float32(1 / CHANNELS), np.float32(1), np.float32(0)
    for z in range(size_z):
        total[z] = np.float32(1 / 256) / (total[z] * share + floor)
    for c in range(CHANNELS):
        row = rows[c]
        for z in range(size_z):  # exp(-t) as (1 - t / 256)^256, off by 0.001 at most, which is done in vectors
            value = one - (row[z] - least[z]) * total[z]
            value = zero if value < zero else value  # NaN stays
            for _ in range(8):
                value = value * value
            row[z] = np.float32(SCALE) * value + np.float32(0.5)


@compiled(parallel=True)
def _describe(
    image: Array, floor: Any, diagonals: Array, pairs: Array, out: Array, sums: Array, planes: Array, rows: Array
) -> None:
    """As ``describe``; ``sums`` (threads, 6, PLANES + 2, Y, Z), ``planes`` (threads, 2, Y, Z), ``rows``."""
    size_x, size_y, size_z = image.shape
    for slab in prange((size_x + PLANES - 1) // PLANES):
        mine, row = sums[get_thread_id()], rows[get_thread_id()]
        plane, spare = planes[get_thread_id()][0], planes[get_thread_id()][1]
        first, stop = slab * PLANES, min((slab + 1) * PLANES, size_x)
        for n in range(6):
            for x in range(first - 2, stop + 2):
                _squared_differences(image, x, diagonals[n], plane)
                _sum_squares(plane, spare)
                for near in range(max(x - 1, first - 1), min(x + 2, stop + 1)):
                    _add_plane(mine[n, near - first + 1], plane, x == near - 1)
        for x in range(first, stop):
            for y in range(size_y):
                _describe_row(mine, x, y, first, size_x, floor, pairs, row)
                for z in range(size_z):
                    to, unknown = out[x, y, z], np.isnan(row[CHANNELS + 1, z])
                    for c in range(CHANNELS):
                        to[c] = np.uint8(0) if unknown else np.uint8(row[c, z])
                    to[12] = to[13] = to[14] = np.uint8(0)
                    to[15] = np.uint8(UNKNOWN) if unknown else np.uint8(0)


@compiled(parallel=True)
def _compare(
    moving: Array, fixed: Array, field: Array, factor: Any, scale: float, gradient: Array, totals: Array
) -> None:
    """As ``loss_and_gradient``; ``totals`` (X,) out, sums of 1 - the mean squared difference."""
    size_x, size_y, size_z = fixed.shape[:3]
    flat = moving.reshape(-1)
    step_x, step_y, step_z = np.int64(size_y * size_z * WIDE), np.int64(size_z * WIDE), np.int64(WIDE)
    for x in prange(size_x):
        parts = np.empty((4, WIDE), np.float32)
        squares, by_x, by_y, by_z = parts[0], parts[1], parts[2], parts[3]
        total = 0.0
        for y in range(size_y):
            d_x, d_y, d_z = field[0, x, y], field[1, x, y], field[2, x, y]
            g_x, g_y, g_z = gradient[0, x, y], gradient[1, x, y], gradient[2, x, y]
            for z in range(size_z):
                f_x, f_y, f_z = np.floor(d_x[z]), np.floor(d_y[z]), np.floor(d_z[z])
                t_x, t_y, t_z = d_x[z] - f_x, d_y[z] - f_y, d_z[z] - f_z
                p_x, p_y, p_z = f_x + np.float32(x), f_y + np.float32(y), f_z + np.float32(z)
                g_x[z] = g_y[z] = g_z[z] = np.float32(0)
                here = fixed[x, y, z]
                if here[15] != 0 or not (
                    0 <= p_x + t_x <= size_x - 1 and 0 <= p_y + t_y <= size_y - 1 and 0 <= p_z + t_z <= size_z - 1
                ):
                    continue
                # On the last plane the upper neighbours, which count nothing there, would lie beyond the grid.
                i_x, i_y, i_z = np.int64(p_x), np.int64(p_y), np.int64(p_z)
                a_x, b_x = i_x * step_x, min(i_x + 1, size_x - 1) * step_x
                a_y, b_y = i_y * step_y, min(i_y + 1, size_y - 1) * step_y
                a_z, b_z = i_z * step_z, min(i_z + 1, size_z - 1) * step_z
                v000, v001 = flat[a_x + a_y + a_z :], flat[a_x + a_y + b_z :]
                v010, v011 = flat[a_x + b_y + a_z :], flat[a_x + b_y + b_z :]
                v100, v101 = flat[b_x + a_y + a_z :], flat[b_x + a_y + b_z :]
                v110, v111 = flat[b_x + b_y + a_z :], flat[b_x + b_y + b_z :]
                for c in range(WIDE):
                    u000, u001 = np.float32(v000[c]), np.float32(v001[c])
                    u010, u011 = np.float32(v010[c]), np.float32(v011[c])
                    u100, u101 = np.float32(v100[c]), np.float32(v101[c])
                    u110, u111 = np.float32(v110[c]), np.float32(v111[c])
                    e00, e01, e10, e11 = u001 - u000, u011 - u010, u101 - u100, u111 - u110
                    c00, c01, c10, c11 = u000 + t_z * e00, u010 + t_z * e01, u100 + t_z * e10, u110 + t_z * e11
                    b0, b1 = c01 - c00, c11 - c10
                    a0, a1 = c00 + t_y * b0, c10 + t_y * b1
                    e0, e1 = e00 + t_y * (e01 - e00), e10 + t_y * (e11 - e10)
                    off = a0 + t_x * (a1 - a0) - np.float32(here[c])
                    squares[c] = off * off
                    by_x[c] = off * (a1 - a0)
                    by_y[c] = off * (b0 + t_x * (b1 - b0))
                    by_z[c] = off * (e0 + t_x * (e1 - e0))
                if squares[15] != 0:  # one of the eight is not known
                    continue
                for c in range(4):  # in a fixed order, and in vectors
                    squares[c] += squares[c + 4] + squares[c + 8]
                    by_x[c] += by_x[c + 4] + by_x[c + 8]
                    by_y[c] += by_y[c + 4] + by_y[c + 8]
                    by_z[c] += by_z[c + 4] + by_z[c + 8]
                total += 1.0 - scale * np.float64(squares[0] + squares[1] + (squares[2] + squares[3]))
                g_x[z] = factor * (by_x[0] + by_x[1] + (by_x[2] + by_x[3]))
                g_y[z] = factor * (by_y[0] + by_y[1] + (by_y[2] + by_y[3]))
                g_z[z] = factor * (by_z[0] + by_z[1] + (by_z[2] + by_z[3]))
        totals[x] = total

"""How samples of one image agree with another image under a linear map: their joint histogram, and slopes over it.

Values looked up are spread over bins by cubic B-splines, so that the histogram changes smoothly with the map; Mattes et
al., IEEE TMI 22 (2003). Beyond the faces of that image a sample's weight falls to 0 within one voxel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.kernels.compiled import compiled

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]

BINS = 32  # of a joint histogram, along each axis


@compiled()
def _clamped(size: int, at: float) -> tuple[int, float, float, float]:
    """Lower of two neighbours, weight of the upper one, 1 where it moves with ``at`` or 0, share within the faces."""
    low, high = -0.5, size - 0.5
    share = 1.0 - max(low - at, at - high, 0.0)
    held = min(max(at, 0.0), size - 1.0)
    lower = max(min(int(held), size - 2), 0)
    return lower, held - lower, 1.0 if held == at else 0.0, max(share, 0.0)


@compiled()
def look_up(data: Array, matrix: Matrix, points: Matrix, found: Matrix) -> None:
    """Values of an image at mapped points, linear, how far they lie in its view, and the derivatives of both.

    Args:
        data: (X, Y, Z) float32, at least 2 voxels along each axis, C order.
        matrix: (3, 4), point -> voxel of ``data``.
        points: (N, 3).
        found: (N, 8) out: the value; its weight, 1 within the faces and 0 one voxel and more beyond them; derivatives
            of the value, then of the weight, by the voxel's three coordinates. Zeros where the weight is 0.
    """
    size_x, size_y, size_z = data.shape
    flat = data.reshape(-1)
    step_x, step_y, one = np.uint64(size_y * size_z), np.uint64(size_z), np.uint64(1)
    a0, a1, a2, a3 = matrix[0]
    b0, b1, b2, b3 = matrix[1]
    c0, c1, c2, c3 = matrix[2]
    for n in range(points.shape[0]):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        p = a0 * x + a1 * y + a2 * z + a3
        q = b0 * x + b1 * y + b2 * z + b3
        r = c0 * x + c1 * y + c2 * z + c3
        row = found[n]
        row[1] = 0.0
        if not ((p > -1.5) & (p < size_x + 0.5) & (q > -1.5) & (q < size_y + 0.5) & (r > -1.5) & (r < size_z + 0.5)):
            continue
        i, u, in_x, share_x = _clamped(size_x, p)
        j, v, in_y, share_y = _clamped(size_y, q)
        k, w, in_z, share_z = _clamped(size_z, r)
        at = np.uint64((i * size_y + j) * size_z + k)
        d000, d001 = np.float64(flat[at]), np.float64(flat[at + one])
        d010, d011 = np.float64(flat[at + step_y]), np.float64(flat[at + step_y + one])
        at += step_x
        d100, d101 = np.float64(flat[at]), np.float64(flat[at + one])
        d110, d111 = np.float64(flat[at + step_y]), np.float64(flat[at + step_y + one])
        e00, e01 = d000 + w * (d001 - d000), d010 + w * (d011 - d010)
        e10, e11 = d100 + w * (d101 - d100), d110 + w * (d111 - d110)
        e0, e1 = e00 + v * (e01 - e00), e10 + v * (e11 - e10)
        f00, f01, f10, f11 = d001 - d000, d011 - d010, d101 - d100, d111 - d110
        f0, f1 = f00 + v * (f01 - f00), f10 + v * (f11 - f10)
        row[0] = e0 + u * (e1 - e0)
        row[1] = share_x * share_y * share_z
        row[2] = in_x * (e1 - e0)
        row[3] = in_y * (e01 - e00 + u * (e11 - e10 - (e01 - e00)))
        row[4] = in_z * (f0 + u * (f1 - f0))
        row[5] = 0.0 if share_x == 1.0 else share_y * share_z * (1.0 if p < 0 else -1.0)
        row[6] = 0.0 if share_y == 1.0 else share_x * share_z * (1.0 if q < 0 else -1.0)
        row[7] = 0.0 if share_z == 1.0 else share_x * share_y * (1.0 if r < 0 else -1.0)


@compiled()
def joint_histogram(bins: Array, found: Matrix, counts: Matrix) -> None:
    """Add samples to ``counts`` (BINS, BINS): by ``bins`` (N,) along the first axis, along the other by their values
    in 0..1 as ``look_up`` found them, spread and weighted.
    """
    for n in range(bins.size):
        weight = found[n, 1]
        if weight == 0.0:
            continue
        at = 1.0 + found[n, 0] * (BINS - 4.0)
        j = int(at)
        t = at - j
        s = 1.0 - t
        row = counts[bins[n]]
        row[j - 1] += weight * (s * s * s / 6)
        row[j] += weight * ((4 - 6 * t * t + 3 * t * t * t) / 6)
        row[j + 1] += weight * ((4 - 6 * s * s + 3 * s * s * s) / 6)
        row[j + 2] += weight * (t * t * t / 6)


@compiled()
def slope(bins: Array, found: Matrix, points: Matrix, table: Matrix, out: Matrix) -> None:
    """Derivative of sum(counts * table), the table held, by the (3, 4) matrix of ``look_up``; added to ``out``."""
    for n in range(bins.size):
        f = found[n]
        weight = f[1]
        if weight == 0.0:
            continue
        at = 1.0 + f[0] * (BINS - 4.0)
        j = int(at)
        t = at - j
        s = 1.0 - t
        row = table[bins[n]]
        t0, t1, t2, t3 = row[j - 1], row[j], row[j + 1], row[j + 2]
        value = (-s * s / 2 * t0 + (-2 * t + 1.5 * t * t) * t1 + (2 * s - 1.5 * s * s) * t2 + t * t / 2 * t3) * (
            (BINS - 4.0) * weight
        )
        dx, dy, dz = value * f[2], value * f[3], value * f[4]
        if weight < 1.0:
            s3, t3_ = s * s * s, t * t * t
            spread = (s3 * t0 + (4 - 6 * t * t + 3 * t3_) * t1 + (4 - 6 * s * s + 3 * s3) * t2 + t3_ * t3) / 6
            dx, dy, dz = dx + spread * f[5], dy + spread * f[6], dz + spread * f[7]
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        out[0, 0] += dx * x
        out[0, 1] += dx * y
        out[0, 2] += dx * z
        out[0, 3] += dx
        out[1, 0] += dy * x
        out[1, 1] += dy * y
        out[1, 2] += dy * z
        out[1, 3] += dy
        out[2, 0] += dz * x
        out[2, 1] += dz * y
        out[2, 2] += dz * z
        out[2, 3] += dz

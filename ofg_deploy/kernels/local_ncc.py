"""Local NCC and its gradient in one image by running sums, a slab of planes at a time.

cross^2 / (var_a var_b + 1e-5) over a cubic window with zero padding; the window *sums* (not means) enter, as in
``ofg_deploy.train.losses``, the oracle of this file. Avants et al., Medical Image Analysis 2008, eq. 5.

Sums are double precision: the variance of a faint structure on a bright ground is the small difference of large sums.
Only two kinds of volume are ever stored, both float32: the images, and three weights per voxel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import get_num_threads, get_thread_id, prange

from ofg_deploy.kernels.buffers import VECTORS, Buffers
from ofg_deploy.kernels.compiled import PLANES, compiled

Array = npt.NDArray[np.floating[Any]]
Double = npt.NDArray[np.float64]


def loss_and_gradient(a: Array, b: Array, window: int, buffers: Buffers) -> float:
    """Negative mean squared local correlation of (X, Y, Z) images; ``a`` is overwritten with the gradient in ``a``.

    Args:
        a: C-contiguous, in and out. Single or double precision, as ``b``.
        b: C-contiguous, a constant.
        window: odd edge length of the cube, in voxels.
        buffers: 12 bytes per voxel (single precision), and a few planes for each thread.
    """
    size_x, size_y, size_z = a.shape
    weights = buffers.take(VECTORS, (3 * a.size,), a.dtype).reshape(size_x, size_y, 3, size_z)
    totals = buffers.take("local_ncc.totals", (-(-size_x // PLANES), size_z), np.float64)
    count, padded = get_num_threads(), size_z + window - 1
    scratch = buffers.take("local_ncc.scratch", (count, size_y + 2, 5 * padded), np.float64)
    fewer = scratch.reshape(-1)[: 3 * scratch.size // 5].reshape(count, size_y + 2, 3 * padded)
    _correlate(a, b, window, weights, totals, scratch)
    _spread(weights, window, a, b, -1 / a.size, fewer)
    # Not in compiled code, which would share the sum out among the threads and round it differently for each number.
    return -float(totals.sum()) / a.size


@compiled()
def _add(sums: Double, row: Double, sign: float) -> None:
    for i in range(sums.size):
        sums[i] += sign * row[i]


@compiled()
def _sum_window(row: Double, sums: Double, window: int) -> None:
    """sums[i] = row[i] + ... + row[i + window - 1]; two terms at a time, each loop vectorised."""
    for i in range(row.size):
        sums[i] = row[i]
    for k in range(1, window, 2):
        first, second = row[k:], row[k + 1 :]
        for i in range(second.size):
            sums[i] += first[i] + second[i]


@compiled()
def _add_products(sums: Double, a: Array, b: Array, stride: int, half: int, sign: float) -> None:
    """Add (or subtract) one row of a, b, a^2, b^2 and ab to its place in the five padded rows of ``sums``."""
    size = a.size
    sum_a, sum_b, sum_ab = sums[half:], sums[stride + half :], sums[4 * stride + half :]
    for z in range(size):
        sum_a[z] += sign * a[z]
    for z in range(size):
        sum_b[z] += sign * b[z]
    sum_aa, sum_bb = sums[2 * stride + half :], sums[3 * stride + half :]
    for z in range(size):
        value = np.float64(a[z])
        sum_aa[z] += sign * (value * value)
    for z in range(size):
        value = np.float64(b[z])
        sum_bb[z] += sign * (value * value)
    for z in range(size):
        sum_ab[z] += sign * (np.float64(a[z]) * np.float64(b[z]))


@compiled()
def _weigh(sums: Double, stride: int, volume: float, weights: Array, total: Double) -> None:
    """One row of window sums -> its squared correlation, added to ``total``, and three weights (3, Z).

    With r = cross^2 / denominator: dr/dcross = 2 cross / denominator, dr/dvar_a = -(cross / denominator)^2 var_b. A
    voxel of a enters cross with weight b - mean_b and var_a with weight 2 (a - mean_a).
    """
    s_a, s_b, s_aa = sums[:stride], sums[stride : 2 * stride], sums[2 * stride : 3 * stride]
    s_bb, s_ab = sums[3 * stride : 4 * stride], sums[4 * stride :]
    by_cross, by_var, by_mean = weights[0], weights[1], weights[2]
    inverse_volume = 1.0 / volume
    for z in range(total.size):
        mean_a, mean_b = s_a[z] * inverse_volume, s_b[z] * inverse_volume
        cross = s_ab[z] - mean_a * s_b[z]
        var_a, var_b = s_aa[z] - mean_a * s_a[z], s_bb[z] - mean_b * s_b[z]
        ratio = cross / (var_a * var_b + 1e-5)
        total[z] += cross * ratio
        in_cross, in_var = 2.0 * ratio, -2.0 * ratio * ratio * var_b
        by_cross[z] = in_cross
        by_var[z] = in_var
        by_mean[z] = -(in_cross * mean_b + in_var * mean_a)


@compiled()
def _correlate_slab(
    first: int, a: Array, b: Array, window: int, weights: Array, total: Double, scratch: Double
) -> None:
    size_x, size_y, size_z = a.shape
    half, stride, volume = window // 2, size_z + window - 1, float(window**3)
    planes, rows, sums = scratch[:size_y], scratch[size_y], scratch[size_y + 1]
    total[:] = 0.0
    planes[:] = 0.0
    for x in range(max(first - half, 0), min(first + half, size_x)):
        for y in range(size_y):
            _add_products(planes[y], a[x, y], b[x, y], stride, half, 1.0)
    for x in range(first, min(first + PLANES, size_x)):
        rows[:] = 0.0
        for y in range(size_y + half):
            if y < size_y:
                row = planes[y]
                if x + half < size_x:
                    _add_products(row, a[x + half, y], b[x + half, y], stride, half, 1.0)
                if x > first and x - half > 0:
                    _add_products(row, a[x - half - 1, y], b[x - half - 1, y], stride, half, -1.0)
                _add(rows, row, 1.0)
            if y >= window:
                _add(rows, planes[y - window], -1.0)
            if y >= half:
                _sum_window(rows, sums, window)
                _weigh(sums, stride, volume, weights[x, y - half], total)


@compiled(parallel=True)
def _correlate(a: Array, b: Array, window: int, weights: Array, totals: Double, scratch: Double) -> None:
    """Squared local correlation, and the weights that ``_spread`` makes the gradient of.

    Args:
        a, b: (X, Y, Z).
        window: odd edge length of the cube, in voxels.
        weights: (X, Y, 3, Z) out.
        totals: (slabs, Z) out, sums of the squared correlation.
        scratch: (threads, Y + 2, 5 * (Z + window - 1)) a plane of five sums and two rows for each thread.
    """
    for slab in prange(totals.shape[0]):
        mine = scratch[get_thread_id()]
        _correlate_slab(slab * PLANES, a, b, window, weights, totals[slab], mine)


@compiled()
def _add_rows(sums: Double, weights: Array, stride: int, half: int, sign: float) -> None:
    for channel in range(3):
        row, source = sums[channel * stride + half :], weights[channel]
        for z in range(source.size):
            row[z] += sign * source[z]


@compiled()
def _gradient(sums: Double, stride: int, a: Array, b: Array, factor: float) -> None:
    by_cross, by_var, by_mean = sums[:stride], sums[stride : 2 * stride], sums[2 * stride :]
    for z in range(a.size):
        a[z] = factor * (by_cross[z] * b[z] + by_var[z] * a[z] + by_mean[z])


@compiled()
def _spread_slab(first: int, weights: Array, window: int, a: Array, b: Array, factor: float, scratch: Double) -> None:
    size_x, size_y, size_z = a.shape
    half, stride = window // 2, size_z + window - 1
    planes, rows, sums = scratch[:size_y], scratch[size_y], scratch[size_y + 1]
    planes[:] = 0.0
    for x in range(max(first - half, 0), min(first + half, size_x)):
        for y in range(size_y):
            _add_rows(planes[y], weights[x, y], stride, half, 1.0)
    for x in range(first, min(first + PLANES, size_x)):
        rows[:] = 0.0
        for y in range(size_y + half):
            if y < size_y:
                row = planes[y]
                if x + half < size_x:
                    _add_rows(row, weights[x + half, y], stride, half, 1.0)
                if x > first and x - half > 0:
                    _add_rows(row, weights[x - half - 1, y], stride, half, -1.0)
                _add(rows, row, 1.0)
            if y >= window:
                _add(rows, planes[y - window], -1.0)
            if y >= half:
                _sum_window(rows, sums, window)
                _gradient(sums, stride, a[x, y - half], b[x, y - half], factor)


@compiled(parallel=True)
def _spread(weights: Array, window: int, a: Array, b: Array, factor: float, scratch: Double) -> None:
    """Overwrite ``a`` with ``factor`` x the gradient in ``a`` of the *sum* of squared correlations.

    The box filter is its own transpose: three more window sums, of the weights.

    Args:
        weights: (X, Y, 3, Z) as ``_correlate`` left them.
        window: as there.
        a: (X, Y, Z) in: the image as given to ``_correlate``; out: the gradient.
        b: (X, Y, Z) the other image.
        factor: -1 / voxels for the loss of the paper, the negative mean.
        scratch: (threads, Y + 2, 3 * (Z + window - 1)).
    """
    for slab in prange((a.shape[0] + PLANES - 1) // PLANES):
        _spread_slab(slab * PLANES, weights, window, a, b, factor, scratch[get_thread_id()])

"""Local NCC of what both images show, blind to the scale of their intensities, and its gradient in one image.

cross^2 / ((var_a + floor_a) (var_b + floor_b)) over a cubic window, of those of its voxels that lie in the grid and are
known in both images; what is unknown, as beyond a field of view, is NaN. The floors are shares of the variance of whole
images, so an image times any factor, plus any constant, has the same local NCC: nothing in it is absolute. Unlike in
``local_ncc``, the published form that training follows, an edge of the field of view is no edge of the anatomy.

Sums are double precision, as there. Small functions stand here as in that file, because numba would not notice a change
in another one (``compiled``). Only two kinds of volume are stored: the images, and three weights per voxel.
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

FLOOR = 0.03
"""Standard deviation of a window, as a share of that of the whole image, below which it hardly counts as structure."""


def floor(image: Array) -> float:
    """What is added to the variance of each window of ``image``; NaN where nothing of it is known."""
    # By planes: squares of a volume in double precision would be the largest array of a registration.
    planes = [_spread_of(plane[np.isfinite(plane)]) for plane in image]
    counts, means, squares = np.array(planes).T
    if not (count := counts.sum()):
        return float("nan")
    mean = (counts * means).sum() / count
    return FLOOR**2 * float((squares.sum() + (counts * (means - mean) ** 2).sum()) / count)


def _spread_of(known: Array) -> tuple[int, float, float]:
    """How many numbers, their mean, and the sum of squares about it."""
    if not known.size:
        return 0, 0.0, 0.0
    apart = known.astype(np.float64)
    apart -= (mean := float(apart.mean()))
    return known.size, mean, float(np.square(apart, out=apart).sum())


def loss_and_gradient(
    a: Array, b: Array, window: int, buffers: Buffers, floors: tuple[float, float], gradient: bool = True
) -> float:
    """Negative mean squared local correlation of (X, Y, Z) images; ``a`` is overwritten with the gradient in ``a``.

    A window of which a part is known counts by that part, and 0 stands for what is not known, in the mean as in the
    gradient. So nothing is gained by moving what does not fit out of sight.

    Args:
        a: C-contiguous, in and out; NaN where unknown. Single or double precision, as ``b``.
        b: C-contiguous, a constant; NaN where unknown.
        window: odd edge length of the cube, in voxels.
        buffers: 12 bytes per voxel (single precision), and a few planes for each thread.
        floors: ``floor`` of both images; of ``a`` before it was moved, so that no step changes it.
        gradient: otherwise only the loss, and ``a`` stays as it is.
    """
    size_x, size_y, size_z = a.shape
    weights = buffers.take(VECTORS, (3 * a.size,), a.dtype).reshape(size_x, size_y, 3, size_z)
    totals = buffers.take("local_ncc.totals", (-(-size_x // PLANES), size_z), np.float64)
    count, padded = get_num_threads(), size_z + window - 1
    scratch = buffers.take("correlation.scratch", (count, size_y + 2, 6 * padded), np.float64)
    fewer = scratch.reshape(-1)[: scratch.size // 2].reshape(count, size_y + 2, 3 * padded)
    _correlate(a, b, window, floors[0], floors[1], weights, totals, scratch)
    if gradient:
        _spread(weights, window, a, b, -1 / a.size, fewer)
    # Not in compiled code, which would share the sum out among the threads and round it differently for each number.
    return -float(totals.sum()) / a.size


@compiled()
def _add(sums: Double, row: Double, sign: float) -> None:
    for i in range(sums.size):
        sums[i] += sign * row[i]


@compiled()
def _move(sums: Double, entering: Double, leaving: Double) -> None:
    for i in range(sums.size):
        sums[i] = (sums[i] + entering[i]) - leaving[i]


@compiled()
def _sum_window(row: Double, sums: Double, window: int) -> None:
    """sums[i] = row[i] + ... + row[i + window - 1], where there are so many; several terms at a time, in vectors."""
    k, last = 1, row.size - window + 1
    if window >= 5:
        first, second, third, fourth = row[1:], row[2:], row[3:], row[4:]
        for i in range(last):
            sums[i] = (row[i] + (first[i] + second[i])) + (third[i] + fourth[i])
        k = 5
    else:
        for i in range(last):
            sums[i] = row[i]
    while k + 4 <= window:
        first, second, third, fourth = row[k:], row[k + 1 :], row[k + 2 :], row[k + 3 :]
        for i in range(last):
            sums[i] = (sums[i] + (first[i] + second[i])) + (third[i] + fourth[i])
        k += 4
    if k < window:
        first, second = row[k:], row[k + 1 :]
        for i in range(last):
            sums[i] += first[i] + second[i]


@compiled()
def _all_known(a: Array, b: Array) -> bool:
    unknown = 0
    for z in range(a.size):
        unknown += (a[z] != a[z]) | (b[z] != b[z])
    return unknown == 0


@compiled()
def _add_products(sums: Double, a: Array, b: Array, stride: int, half: int, sign: float) -> None:
    """Add (or subtract) one row of a, b, a^2, b^2, ab and 1, where both are known, to its place in six padded rows."""
    size = a.size
    sum_a, sum_b, sum_ab = sums[half:], sums[stride + half :], sums[4 * stride + half :]
    for z in range(size):
        sum_a[z] += sign * a[z] if (a[z] == a[z]) & (b[z] == b[z]) else 0.0
    for z in range(size):
        sum_b[z] += sign * b[z] if (a[z] == a[z]) & (b[z] == b[z]) else 0.0
    sum_aa, sum_bb = sums[2 * stride + half :], sums[3 * stride + half :]
    for z in range(size):
        value = np.float64(a[z])
        sum_aa[z] += sign * (value * value) if (a[z] == a[z]) & (b[z] == b[z]) else 0.0
    for z in range(size):
        value = np.float64(b[z])
        sum_bb[z] += sign * (value * value) if (a[z] == a[z]) & (b[z] == b[z]) else 0.0
    for z in range(size):
        product = np.float64(a[z]) * np.float64(b[z])
        sum_ab[z] += sign * product if (a[z] == a[z]) & (b[z] == b[z]) else 0.0
    ones = sums[5 * stride + half :]
    for z in range(size):
        ones[z] += sign if (a[z] == a[z]) & (b[z] == b[z]) else 0.0


@compiled()
def _move_known(sums: Double, a: Array, b: Array, old_a: Array, old_b: Array, stride: int, half: int) -> None:
    """Add one row and subtract another, as ``_add_products``, where all of both is known: no mask, the ones stay."""
    size = a.size
    sum_a, sum_b, sum_ab = sums[half:], sums[stride + half :], sums[4 * stride + half :]
    for z in range(size):
        sum_a[z] = (sum_a[z] + np.float64(a[z])) - np.float64(old_a[z])
    for z in range(size):
        sum_b[z] = (sum_b[z] + np.float64(b[z])) - np.float64(old_b[z])
    sum_aa, sum_bb = sums[2 * stride + half :], sums[3 * stride + half :]
    for z in range(size):
        value, old = np.float64(a[z]), np.float64(old_a[z])
        sum_aa[z] = (sum_aa[z] + value * value) - old * old
    for z in range(size):
        value, old = np.float64(b[z]), np.float64(old_b[z])
        sum_bb[z] = (sum_bb[z] + value * value) - old * old
    for z in range(size):
        product, old = np.float64(a[z]) * np.float64(b[z]), np.float64(old_a[z]) * np.float64(old_b[z])
        sum_ab[z] = (sum_ab[z] + product) - old


@compiled()
def _weigh(
    sums: Double, stride: int, volume: float, floor_a: float, floor_b: float, weights: Array, total: Double
) -> None:
    """One row of window sums -> its squared correlation, added to ``total``, and three weights (3, Z).

    With r = cross^2 / (var_a var_b), floors included: dr/dcross = 2 cross / (var_a var_b), dr/dvar_a = -(cross / (var_a
    var_b))^2 var_b. A voxel of a enters cross with weight b - mean_b and var_a with weight 2 (a - mean_a).
    """
    s_a, s_b, s_aa = sums[:stride], sums[stride : 2 * stride], sums[2 * stride : 3 * stride]
    s_bb, s_ab, ones = sums[3 * stride : 4 * stride], sums[4 * stride : 5 * stride], sums[5 * stride :]
    by_cross, by_var, by_mean = weights[0], weights[1], weights[2]
    for z in range(total.size):
        known = max(ones[z], 1.0)
        share, each = ones[z] / volume, 1.0 / known
        mean_a, mean_b = s_a[z] * each, s_b[z] * each
        cross = s_ab[z] - mean_a * s_b[z]
        var_a, var_b = s_aa[z] - mean_a * s_a[z] + known * floor_a, s_bb[z] - mean_b * s_b[z] + known * floor_b
        scale = var_a * var_b
        ratio = cross / scale if scale > 0.0 else 0.0
        total[z] += share * cross * ratio
        in_cross, in_var = 2.0 * share * ratio, -2.0 * share * ratio * ratio * var_b
        by_cross[z] = in_cross
        by_var[z] = in_var
        by_mean[z] = -(in_cross * mean_b + in_var * mean_a)


@compiled()
def _enter_and_leave(
    row: Double, a: Array, b: Array, ahead: int, behind: int, least: int, y: int, stride: int, half: int
) -> None:
    """The row of plane ``ahead`` comes into the sums, where the grid goes so far; that of ``behind`` leaves them."""
    enters, leaves = ahead < a.shape[0], behind >= least
    new_a, new_b = a[min(ahead, a.shape[0] - 1), y], b[min(ahead, a.shape[0] - 1), y]
    old_a, old_b = a[max(behind, 0), y], b[max(behind, 0), y]
    if enters and leaves and _all_known(new_a, new_b) and _all_known(old_a, old_b):
        _move_known(row, new_a, new_b, old_a, old_b, stride, half)
        return
    if enters:
        _add_products(row, new_a, new_b, stride, half, 1.0)
    if leaves:
        _add_products(row, old_a, old_b, stride, half, -1.0)


@compiled()
def _correlate_slab(
    first: int, a: Array, b: Array, window: int, floor_a: float, floor_b: float, weights: Array, total: Double,
    scratch: Double,
) -> None:  # fmt: skip
    size_x, size_y, size_z = a.shape
    half, stride, volume = window // 2, size_z + window - 1, float(window**3)
    planes, rows, sums = scratch[:size_y], scratch[size_y], scratch[size_y + 1]
    total[:] = 0.0
    planes[:] = 0.0
    for x in range(max(first - half, 0), min(first + half, size_x)):
        for y in range(size_y):
            _add_products(planes[y], a[x, y], b[x, y], stride, half, 1.0)
    for x in range(first, min(first + PLANES, size_x)):
        rows[:], least = 0.0, 0 if x > first else size_x
        for y in range(size_y + half):
            if y < size_y:
                _enter_and_leave(planes[y], a, b, x + half, x - half - 1, least, y, stride, half)
            if window <= y < size_y:
                _move(rows, planes[y], planes[y - window])
            elif y < size_y:
                _add(rows, planes[y], 1.0)
            elif y >= window:
                _add(rows, planes[y - window], -1.0)
            if y >= half:
                _sum_window(rows, sums, window)
                _weigh(sums, stride, volume, floor_a, floor_b, weights[x, y - half], total)


@compiled(parallel=True)
def _correlate(
    a: Array, b: Array, window: int, floor_a: float, floor_b: float, weights: Array, totals: Double, scratch: Double
) -> None:
    """Squared local correlation, and the weights that ``_spread`` makes the gradient of.

    Args:
        a, b: (X, Y, Z).
        window: odd edge length of the cube, in voxels.
        floor_a, floor_b: added to the variances.
        weights: (X, Y, 3, Z) out.
        totals: (slabs, Z) out, sums of the squared correlation.
        scratch: (threads, Y + 2, 6 * (Z + window - 1)) a plane of six sums and two rows for each thread.
    """
    for slab in prange(totals.shape[0]):
        mine = scratch[get_thread_id()]
        _correlate_slab(slab * PLANES, a, b, window, floor_a, floor_b, weights, totals[slab], mine)


@compiled()
def _add_rows(sums: Double, weights: Array, stride: int, half: int, sign: float) -> None:
    for channel in range(3):
        row, source = sums[channel * stride + half :], weights[channel]
        for z in range(source.size):
            row[z] += sign * source[z]


@compiled()
def _move_rows(sums: Double, entering: Array, leaving: Array, stride: int, half: int) -> None:
    for channel in range(3):
        row, source, old = sums[channel * stride + half :], entering[channel], leaving[channel]
        for z in range(source.size):
            row[z] = (row[z] + np.float64(source[z])) - np.float64(old[z])


@compiled()
def _gradient(sums: Double, stride: int, a: Array, b: Array, factor: float) -> None:
    by_cross, by_var, by_mean = sums[:stride], sums[stride : 2 * stride], sums[2 * stride :]
    for z in range(a.size):
        value = factor * (by_cross[z] * b[z] + by_var[z] * a[z] + by_mean[z])
        a[z] = value if (a[z] == a[z]) & (b[z] == b[z]) else 0.0


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
                row, enters, leaves = planes[y], x + half < size_x, x > first and x - half > 0
                if enters and leaves:
                    _move_rows(row, weights[x + half, y], weights[x - half - 1, y], stride, half)
                elif enters:
                    _add_rows(row, weights[x + half, y], stride, half, 1.0)
                elif leaves:
                    _add_rows(row, weights[x - half - 1, y], stride, half, -1.0)
            if window <= y < size_y:
                _move(rows, planes[y], planes[y - window])
            elif y < size_y:
                _add(rows, planes[y], 1.0)
            elif y >= window:
                _add(rows, planes[y - window], -1.0)
            if y >= half:
                _sum_window(rows, sums, window)
                _gradient(sums, stride, a[x, y - half], b[x, y - half], factor)


@compiled(parallel=True)
def _spread(weights: Array, window: int, a: Array, b: Array, factor: float, scratch: Double) -> None:
    """Overwrite ``a`` with ``factor`` x the gradient in ``a`` of the *sum* of squared correlations, as there.

    Args:
        weights: (X, Y, 3, Z) as ``_correlate`` left them.
        window: as there.
        a: (X, Y, Z) in: the image as given to ``_correlate``; out: the gradient, 0 where one image is unknown.
        b: (X, Y, Z) the other image.
        factor: -1 / voxels for the loss, the negative mean.
        scratch: (threads, Y + 2, 3 * (Z + window - 1)).
    """
    for slab in prange((a.shape[0] + PLANES - 1) // PLANES):
        _spread_slab(slab * PLANES, weights, window, a, b, factor, scratch[get_thread_id()])

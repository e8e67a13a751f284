"""Numbers about the voxels of one image or of two: percentiles, correlation, mutual information; and a new scale.

The same bits for any number of threads: sums are taken in blocks of fixed size and added up in their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.kernels.compiled import compiled
from ofg_deploy.kernels.slabs import BLOCK, over_slabs

Array = npt.NDArray[Any]

GROUPS = 8  # of voxels that are counted apart, so that threads do not meet
BINS = 64  # of a joint histogram, along each axis


@compiled()
def _key(bits: Any) -> Any:
    """The bits of a float32 as a number that sorts as it does."""
    return ~bits if bits >> np.uint32(31) else bits | np.uint32(0x80000000)


@compiled()
def _count_keys(bits: Array, upper: int, counts: Array, first: int, last: int) -> None:
    """Keys by their upper half; or, of those with this upper half, by their lower one. ``counts`` (GROUPS, 65536)."""
    for group in range(first, last):
        row = counts[group]
        for n in range(bits.size * group // GROUPS, bits.size * (group + 1) // GROUPS):
            key = _key(bits[n])
            if upper < 0:
                row[key >> np.uint32(16)] += 1
            elif key >> np.uint32(16) == upper:
                row[key & np.uint32(0xFFFF)] += 1


def percentiles(data: Array, wanted: tuple[float, ...]) -> list[float]:
    """Percentiles (0..100) of an image of float32, linear between its sorted values, as numpy's in double precision."""
    bits = _memory(data.astype(np.float32, copy=False)).view(np.uint32)
    places = [min(max(p / 100 * (bits.size - 1), 0.0), bits.size - 1.0) for p in wanted]
    ranks = sorted({int(at) for at in places} | {min(int(at) + 1, bits.size - 1) for at in places})
    ends = _histogram(bits, -1).cumsum()
    lower: dict[int, npt.NDArray[np.int64]] = {}
    values = {}
    for rank in ranks:
        upper = int(np.searchsorted(ends, rank, side="right"))
        if upper not in lower:
            lower[upper] = _histogram(bits, upper).cumsum()
        before = int(ends[upper - 1]) if upper else 0
        key = upper << 16 | int(np.searchsorted(lower[upper], rank - before, side="right"))
        pattern = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
        values[rank] = float(np.uint32(pattern).view(np.float32))
    found = []
    for at in places:
        low, high = values[int(at)], values[min(int(at) + 1, bits.size - 1)]
        found.append(low + (high - low) * (at - int(at)))
    return found


def _histogram(bits: Array, upper: int) -> npt.NDArray[np.int64]:
    counts = np.zeros((GROUPS, 2**16), np.int64)
    over_slabs(_count_keys, GROUPS, bits.size, bits, upper, counts)
    return np.asarray(counts.sum(axis=0))


@compiled()
def _rescale(data: Array, low: Any, high: Any, width: Any, clip: bool, out: Array, first: int, last: int) -> None:
    for block in range(first, last):
        for n in range(block * BLOCK, min((block + 1) * BLOCK, data.size)):
            value = min(max(data[n], low), high) if clip else data[n]
            out[n] = (value - low) / width


def rescale(data: Array, low: float, high: float, clip: bool) -> npt.NDArray[np.float32]:
    """``low`` to 0 and ``high`` to 1 in single precision, clipped to them or not; in memory as ``data`` is."""
    limits = np.float32(low), np.float32(high), np.float32(high - low)
    order: Any = "F" if data.flags.f_contiguous else "C"
    flat = data.astype(np.float32, copy=False).ravel(order=order)
    out = np.empty_like(flat)
    over_slabs(_rescale, -(-flat.size // BLOCK), flat.size, flat, *limits, clip, out)
    return out.reshape(data.shape, order=order)


@compiled()
def _sums(a: Array, b: Array, mean_a: float, mean_b: float, found: Array, first: int, last: int) -> None:
    for block in range(first, last):
        total_a, total_b, aa, bb, ab = 0.0, 0.0, 0.0, 0.0, 0.0
        for n in range(block * BLOCK, min((block + 1) * BLOCK, a.size)):
            x, y = np.float64(a[n]) - mean_a, np.float64(b[n]) - mean_b
            total_a, total_b, aa, bb, ab = total_a + x, total_b + y, aa + x * x, bb + y * y, ab + x * y
        found[block] = total_a, total_b, aa, bb, ab


def correlation(a: Array, b: Array) -> float:
    """Pearson's over all voxels, in double precision; 0 where one of them is constant."""
    x, y = _alike(a, b)
    found = np.empty((-(-x.size // BLOCK), 5))
    # About the true means, which a first pass finds: far from 0 the sums would cancel.
    mean_x, mean_y = 0.0, 0.0
    for _ in range(2):
        over_slabs(_sums, found.shape[0], x.size, x, y, mean_x, mean_y, found)
        total_x, total_y, xx, yy, xy = found.sum(axis=0)
        mean_x, mean_y = mean_x + total_x / x.size, mean_y + total_y / x.size
    scale = float(np.sqrt(xx * yy))
    return float(xy) / scale if scale > 0 else 0.0


@compiled()
def _joint(
    a: Array, b: Array, low_a: float, per_a: float, low_b: float, per_b: float, counts: Array, first: int, last: int
) -> None:
    for group in range(first, last):
        table = counts[group]
        for n in range(a.size * group // GROUPS, a.size * (group + 1) // GROUPS):
            i = int(min(max((a[n] - low_a) * per_a, 0.0), BINS - 1.0))
            j = int(min(max((b[n] - low_b) * per_b, 0.0), BINS - 1.0))
            table[i, j] += 1


def mutual_information(a: Array, b: Array) -> float:
    """sum p(i, j) ln(p(i, j) / p(i) p(j)) in nats, of the joint histogram of two images on one grid.

    ``BINS`` bins of equal width between the 0.5th and 99.5th percentile of each image; what lies beyond counts in the
    outermost. 0 where one of them has no such width.
    """
    x, y = (each.astype(np.float32, copy=False) for each in _alike(a, b))
    limits = [percentiles(each, (0.5, 99.5)) for each in (x, y)]
    if any(low == high for low, high in limits):
        return 0.0
    counts = np.zeros((GROUPS, BINS, BINS), np.int64)
    scales = [v for low, high in limits for v in (low, BINS / (high - low))]
    over_slabs(_joint, GROUPS, x.size, x, y, *scales, counts)
    p = counts.sum(axis=0) / x.size
    apart = np.outer(p.sum(axis=1), p.sum(axis=0))
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / apart[seen])).sum())


def _memory(data: Array) -> Array:
    """All voxels in the order in which they lie in memory; a copy only where they have gaps."""
    return np.ascontiguousarray(data.ravel(order="K"))


def _alike(a: Array, b: Array) -> tuple[Array, Array]:
    """Both images flat, in one order and one floating type."""
    wanted = np.float32 if a.dtype == b.dtype == np.float32 else np.float64
    order: Any = "F" if a.flags.f_contiguous else "C"
    x, y = (each.ravel(order=order).astype(wanted, copy=False) for each in (a, b))
    return x, y

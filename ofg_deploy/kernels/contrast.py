"""Whether two images show one contrast, and one of them in the contrast of the other. Arrays in, arrays out.

The squared local NCC takes each window's relation as it comes, bright on bright or bright on dark. Where all windows of
a pair are of one sign that does no harm; where they are not, steps along it lead anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.kernels.intensity import percentiles

Image = npt.NDArray[np.float32]

WINDOW = 3  # voxels
CLEAR = 0.3  # squared correlation above which a window says something
FLOOR = 0.03  # as in ``correlation``
BINS = 64
CURVE_BINS = 32
SMOOTHING = (0.05, 0.25, 0.4, 0.25, 0.05)  # of the histogram: a bin and its neighbours


def opposite_share(a: Image, b: Image) -> float:
    """Share of the clear local relations of two (X, Y, Z) images that run against the others, 0..0.5.

    Windows count by how far their squared correlation lies above ``CLEAR``. 0 for one contrast, or for one and its
    negative; 0 where there is no clear relation at all. NaN is unknown, and so are windows that hold it.
    """
    if not (np.isfinite(a).any() and np.isfinite(b).any()):
        return 0.0
    x, y = (np.asarray(v, np.float64) - np.nanmean(v, dtype=np.float64) for v in (a, b))
    count = WINDOW**3
    sum_a, sum_b = _windows(x), _windows(y)
    cross = _windows(x * y) - sum_a * sum_b / count
    var_a = _windows(x * x) - sum_a**2 / count + count * FLOOR**2 * np.nanvar(x)
    var_b = _windows(y * y) - sum_b**2 / count + count * FLOOR**2 * np.nanvar(y)
    scale = var_a * var_b
    with np.errstate(invalid="ignore", divide="ignore"):
        clear = np.where(scale > 0, np.maximum(cross**2 / scale - CLEAR, 0), 0)
    total = float(np.sum(clear))
    share = float(np.sum(clear[cross < 0])) / total if total > 0 else 0.0
    return min(share, 1 - share)


def curved_share(a: Image, b: Image) -> float:
    """Of what the intensities of one image say of the other's, the share that no monotone curve says, 0..1.

    The mean of ``b`` for each intensity of ``a`` is compared with the best monotone curve, rising or falling (pool
    adjacent violators: Ayer et al., Annals of Mathematical Statistics 1955), and the other way round; the smaller share
    of the variance counts, because noise and misalignment bend one of the curves. Scanner, gain and gamma keep the
    order of tissues, another contrast does not.

    Args:
        a, b: (X, Y, Z), aligned as far as they can be; NaN where unknown.
    """
    both = np.isfinite(a) & np.isfinite(b)
    x, y = (np.asarray(v[both], np.float64) for v in (a, b))
    return min(_off_curve(x, y), _off_curve(y, x)) if x.size else 0.0


def _off_curve(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    """Share of the variance of the means of ``y`` in bins of ``x`` that is left beside the best monotone curve."""
    low, high = percentiles(x, (0.5, 99.5))
    if not low < high:
        return 0.0
    bins = np.clip((x - low) * (CURVE_BINS / (high - low)), 0, CURVE_BINS - 1).astype(np.int64)
    count = np.bincount(bins, minlength=CURVE_BINS).astype(np.float64)
    seen = count > 0
    means, weights = np.bincount(bins, y, CURVE_BINS)[seen] / count[seen], count[seen]
    background = int(weights.argmax())  # otherwise it would outweigh all tissues
    weights[background] = min(weights[background], (weights.sum() - weights[background]) / 4)
    if not weights.sum() > 0:
        return 0.0
    spread = means - np.average(means, weights=weights)
    whole = float(np.sum(weights * spread**2))
    left = min(float(np.sum(weights * (v - _rising(v, weights)) ** 2)) for v in (spread, -spread))
    return left / whole if whole > 0 else 0.0


def _rising(values: npt.NDArray[Any], weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The curve that never falls and is nearest to ``values``, by weighted squares."""
    pools: list[tuple[float, float, int]] = []  # value, weight, how many
    for each in zip(values, weights, strict=True):
        (value, weight), many = each, 1
        while pools and pools[-1][0] > value:
            before, heavy, more = pools.pop()
            value, weight = (before * heavy + value * weight) / (heavy + weight), heavy + weight
            many += more
        pools.append((value, weight, many))
    return np.repeat([value for value, *_ in pools], [many for *_, many in pools])


def _windows(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums over cubes of ``WINDOW`` voxels that lie in the grid as a whole."""
    for axis in range(3):
        moved = np.moveaxis(values, axis, 0)
        values = np.moveaxis(moved[:-2] + moved[1:-1] + moved[2:], 0, axis)
    return values


def in_contrast_of(fixed: Image, moving: Image, warped: Image) -> Image:
    """``moving``, each intensity replaced by the mean of ``fixed`` where that intensity lies in ``warped``.

    The conditional mean of the joint histogram, in ``BINS`` bins between the 0.5th and 99.5th percentile, linear
    between their centres; what lies beyond has the outermost value. Roche et al., MICCAI 1998; Guimond et al., IEEE TMI
    2001.

    Args:
        fixed, moving, warped: (X, Y, Z); NaN where unknown. ``warped`` is ``moving`` on the grid of ``fixed``, aligned
            as far as it is known.

    Returns:
        A new image; ``moving`` itself where it is constant or the images share no known voxel.
    """
    both = np.isfinite(fixed) & np.isfinite(warped)
    known = moving[np.isfinite(moving)]
    if not known.size or not both.any():
        return moving
    low, high = (np.float32(v) for v in percentiles(known, (0.5, 99.5)))
    if not low < high:
        return moving
    scale = np.float32(BINS - 1) / (high - low)
    bins = np.clip((warped[both] - low) * scale + np.float32(0.5), 0, BINS - 1).astype(np.int64)
    count = np.convolve(np.bincount(bins, minlength=BINS), SMOOTHING, "same")
    total = np.convolve(np.bincount(bins, fixed[both], BINS), SMOOTHING, "same")
    seen = count > 0
    curve = np.interp(np.arange(BINS), np.flatnonzero(seen), total[seen] / count[seen])
    mapped: Image = np.interp((moving - low) * scale, np.arange(BINS), curve).astype(np.float32)
    mapped[np.isnan(moving)] = np.nan
    return mapped

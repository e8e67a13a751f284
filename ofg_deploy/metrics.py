"""Numbers that say whether a registration is good: overlap, surface distance, folding, similarity."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

from ofg_deploy.geometry import Spacing

Labels = npt.NDArray[Any]


def dice(a: Labels, b: Labels) -> dict[int, float]:
    """Dice overlap 2|A and B| / (|A| + |B|) of each label above 0 that occurs in either map."""
    found = sorted({int(v) for v in np.unique(a)} | {int(v) for v in np.unique(b)})
    return {label: _dice(a == label, b == label) for label in found if label > 0}


def hd95_mm(a: Labels, b: Labels, spacing_mm: Spacing) -> dict[int, float]:
    """95th percentile of the symmetric surface distances in mm, for each label above 0 present in both maps.

    Distances run between voxel centres of the two surfaces (voxels with a 6-neighbour outside the label), in both
    directions, pooled before the percentile is taken.
    """
    common = {int(v) for v in np.unique(a)} & {int(v) for v in np.unique(b)}
    return {label: _hd95(a == label, b == label, spacing_mm) for label in sorted(common) if label > 0}


def folding_percent(determinant: npt.NDArray[Any]) -> float:
    """Percentage of voxels whose Jacobian determinant is not positive."""
    return float(100.0 * np.mean(determinant <= 0))


def sdlogj(determinant: npt.NDArray[Any]) -> float:
    """Standard deviation of the logarithm of the Jacobian determinant, clipped to 1e-9..1e9."""
    return float(np.log(np.clip(determinant.astype(np.float64), 1e-9, 1e9)).std())


def ncc(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Pearson correlation of two images over all voxels; 0 where one of them is constant."""
    x, y = (image.astype(np.float64) - image.mean(dtype=np.float64) for image in (a, b))
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def mean(values: dict[int, float]) -> float | None:
    """Mean over labels; None (JSON null) when there is none."""
    return float(np.mean(list(values.values()))) if values else None


def _dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return float(2.0 * np.sum(a & b) / (np.sum(a) + np.sum(b)))


def _hd95(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], spacing_mm: Spacing) -> float:
    box = find_objects((a | b).view(np.uint8))[0]  # distances beyond the labels do not matter and cost most of the time
    a, b = a[box], b[box]
    surface_a, surface_b = a & ~binary_erosion(a), b & ~binary_erosion(b)
    to_b = distance_transform_edt(~surface_b, sampling=spacing_mm)[surface_a]
    to_a = distance_transform_edt(~surface_a, sampling=spacing_mm)[surface_b]
    return float(np.percentile(np.concatenate([to_a, to_b]), 95))

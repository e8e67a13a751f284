"""The label that weighs most among the eight voxels around a point."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from ofg_deploy.kernels.compiled import compiled


@compiled(parallel=True)
def weightiest(labels: npt.NDArray[Any], index: npt.NDArray[np.float64], fill: int, found: npt.NDArray[Any]) -> None:
    """Linear interpolation of every label's own map (one-hot), and the label of the largest; of two alike the smaller.

    As ITK's LabelImageGenericInterpolateImageFunction. A voxel reaches half a voxel beyond its centre.

    Args:
        labels: (X, Y, Z), any integer type.
        index: (3, N) voxel positions. fill: for those outside.
        found: (N) out.
    """
    for n in prange(index.shape[1]):
        whole, part, inside = np.empty(3, np.int64), np.empty(3), True
        for a in range(3):
            last = labels.shape[a] - 1
            inside = inside and -0.5 <= index[a, n] <= last + 0.5
            held = min(max(index[a, n], 0.0), float(last))
            whole[a] = min(int(held), last - 1)
            part[a] = held - whole[a]
        if not inside:
            found[n] = fill
            continue
        values, weights, count = np.empty(8, labels.dtype), np.zeros(8), 0
        for corner in range(8):
            x, y, z = corner >> 2, (corner >> 1) & 1, corner & 1
            value = labels[whole[0] + x, whole[1] + y, whole[2] + z]
            weight = (part[0] if x else 1 - part[0]) * (part[1] if y else 1 - part[1]) * (part[2] if z else 1 - part[2])
            slot = 0
            while slot < count and values[slot] != value:
                slot += 1
            if slot == count:
                values[slot] = value
                count += 1
            weights[slot] += weight
        best = 0
        for slot in range(1, count):
            heavier = weights[slot] > weights[best]
            if heavier or (weights[slot] == weights[best] and values[slot] < values[best]):
                best = slot
        found[n] = values[best]

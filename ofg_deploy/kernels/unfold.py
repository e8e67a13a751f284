"""Take the folds out of a displacement field where it has some, and leave it alone everywhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from ofg_deploy.kernels.buffers import VECTORS, Buffers
from ofg_deploy.kernels.gaussian import smooth
from ofg_deploy.kernels.jacobian import determinant
from ofg_deploy.kernels.slabs import over_slabs

Field = npt.NDArray[np.float32]

LEAST = 0.05
"""Determinant below which a voxel counts as folded: one that is hardly above 0 folds after the next resampling."""
ROUNDS, SIGMA, REACH = 12, 1.0, 2


def unfold(field: Field, buffers: Buffers) -> bool:
    """Smooth (3, X, Y, Z), in voxels, in place around its folds until none is left; whether there is none.

    The field is replaced by its Gaussian mean (``SIGMA`` voxels) within ``REACH`` voxels of each fold, up to ``ROUNDS``
    times. Determinants as those of ``ofg_deploy.field.jacobian_determinant``. The same for any number of threads.
    """
    shape = field.shape[1:]
    smoothed: Any = None
    for _ in range(ROUNDS):
        found = buffers.take("unfold.determinant", shape)
        over_slabs(determinant, shape[0], found.size, field, np.eye(3), 1.0, found)
        folded = found <= LEAST
        if not folded.any():
            return True
        smoothed = buffers.take(VECTORS, (field.size,)).reshape(field.shape) if smoothed is None else smoothed
        smooth(field, SIGMA, smoothed, buffers)
        around = maximum_filter(folded, size=2 * REACH + 1, mode="constant")
        np.copyto(field, smoothed, where=around)
    return False

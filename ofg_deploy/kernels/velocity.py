"""Flow of a stationary velocity by scaling and squaring: ``train/networks/velocity.py`` without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from ofg_deploy.kernels.compiled import compiled
from ofg_deploy.kernels.compose import compose
from ofg_deploy.kernels.integration import OWN, Integration

Array = npt.NDArray[np.floating[Any]]


def integrate(
    velocity: npt.NDArray[np.float32], how: Integration = OWN, grid: tuple[int, ...] | None = None
) -> npt.NDArray[np.float32]:
    """The displacement at time 1, in voxels of ``grid``, as the exported graph computes it.

    Args:
        velocity: (3, X, Y, Z) voxels per unit time, at least 4 voxels along every axis.
        how: steps, grid of the integration and what lies beyond it.
        grid: of the displacement; None means that of the velocity.
    """
    full = grid or velocity.shape[1:]
    inner = how.coarse_grid(full)
    ratio = np.array([(m - 1) / extent for extent, m in zip(how.extents(full), inner, strict=True)])
    scale = (np.ones(3) if how.coarse else ratio) / 2**how.steps
    step = resize(velocity, inner, scale)
    if how.beyond == "zeros":  # linear down to 0 within a voxel, and what is 0 stays where it is
        step = np.pad(step, ((0, 0), (1, 1), (1, 1), (1, 1)))
    other = np.empty_like(step)
    for _ in range(how.steps):
        compose(step, step, 1.0, other, np.inf)
        step, other = other, step
    if how.beyond == "zeros":
        step = step[:, 1:-1, 1:-1, 1:-1]
    return resize(step, full, 1 / ratio)


def resize(
    field: npt.NDArray[np.float32], shape: tuple[int, ...], factor: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """(3, X, Y, Z) on ``shape``, linearly, corner voxels kept in place; component i times ``factor[i]``."""
    out = np.empty((3, *shape), dtype=np.float32)
    places = [np.linspace(0, n - 1, m) for n, m in zip(field.shape[1:], shape, strict=True)]
    i_x, i_y, i_z = (np.minimum(p.astype(np.intp), n - 2) for p, n in zip(places, field.shape[1:], strict=True))
    x, y, z = ((p - i).astype(np.float32) for p, i in zip(places, (i_x, i_y, i_z), strict=True))
    _resize(np.ascontiguousarray(field), factor.astype(np.float32), i_x, i_y, i_z, x, y, z, out)
    return out


@compiled(parallel=True)
def _resize(
    field: Array, factor: Array, i_x: Any, i_y: Any, i_z: Any, t_x: Array, t_y: Array, t_z: Array, out: Array
) -> None:
    for x in prange(out.shape[1]):
        for c in range(3):
            low, high, along = field[c, i_x[x]], field[c, i_x[x] + 1], np.empty(field.shape[3], np.float32)
            for y in range(out.shape[2]):
                j, t, row = i_y[y], t_y[y], out[c, x, y]
                for z in range(along.size):
                    a, b = low[j, z] + t * (low[j + 1, z] - low[j, z]), high[j, z] + t * (high[j + 1, z] - high[j, z])
                    along[z] = factor[c] * (a + t_x[x] * (b - a))
                for z in range(row.size):
                    k = i_z[z]
                    row[z] = along[k] + t_z[z] * (along[k + 1] - along[k])

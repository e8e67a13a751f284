"""A network that is asked again with the moving image it has just moved: its updates, composed to one field.

The moving image is sampled from the pair's own one at every pass, by the field so far, and the fields are composed:
u(x) = update(x) + u_before(x + update(x)). Arrays are those of ``serve.engine.Engine``: images (X, Y, Z) float32, 0..1
on the network's grid; fields (3, X, Y, Z) float32 in its voxels, fixed voxel -> moving voxel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import UsageError
from ofg_deploy.field import Field
from ofg_deploy.options.words import MOST_PASSES

Image = npt.NDArray[np.float32]
Predict = Callable[[Image, Image], Field]  # moving, fixed

FARTHEST_VOX = 1e12  # beyond any image, and its square is still a float32


def check_passes(passes: int) -> None:
    """Raises UsageError for a number of passes that is out of range."""
    if not 1 <= passes <= MOST_PASSES:
        raise UsageError(f"`passes` {passes}: give 1 to {MOST_PASSES}")


def in_passes(predict: Predict, passes: int) -> Predict:
    """What gives the field of so many passes of a network; with one pass, the very field of the network.

    A field that cannot be applied (not finite, not on the grid of the images) ends the passes and is returned as it is:
    whoever uses it checks it.
    """

    def predict_in_passes(moving: Image, fixed: Image) -> Field:
        field = predict(moving, fixed)
        for _ in range(passes - 1):
            if not _applies(field, moving):
                return field
            update = predict(moved(moving, field), fixed)
            if not _applies(update, moving):
                return update
            field = composed(field, update)
        return field

    return predict_in_passes


def moved(moving: Image, field: Field) -> Image:
    """The moving image (X, Y, Z) under a field on its own grid: linear, edge values held beyond the border."""
    from ofg_deploy.kernels import sampling
    from ofg_deploy.kernels.slabs import over_slabs

    held = np.empty(field.shape, np.float32)
    for n, size in enumerate(moving.shape):
        at = np.arange(size, dtype=np.float32).reshape([-1 if axis == n else 1 for axis in range(3)])
        np.clip(field[n], -at, size - 1 - at, out=held[n])
    out: Image = np.empty(moving.shape, np.float32)
    by_voxel = np.hstack([np.eye(3), np.zeros((3, 1)), np.eye(3)])
    data = np.ascontiguousarray(moving, dtype=np.float32)
    over_slabs(sampling.on_grid, out.shape[0], out.size, data, by_voxel, held, True, 0.0, out)
    return out


def composed(field: Field, update: Field) -> Field:
    """The map of ``update`` first, then that of ``field``, which keeps its edge values beyond the border."""
    from ofg_deploy.kernels.compose import compose

    out = np.empty(field.shape, np.float32)
    first, then = (np.ascontiguousarray(part, dtype=np.float32) for part in (update, field))
    compose(then, first, 1.0, out, np.inf)
    return out


def _applies(field: Field, image: Image) -> bool:
    return field.shape == (3, *image.shape) and bool(np.abs(field).max() <= FARTHEST_VOX)  # false of NaN

"""Greedy steps from coarse to fine: what moves far is seen, and cheaply, at half the resolution."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ofg_deploy.errors import UsageError
from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.kernels.refine import Field, Greedy, Image, checked_arrays

INVERSE_STEPS = 12  # the error shrinks by the largest slope of the field each time, at coarse levels by half or more


@dataclass(frozen=True)
class Multilevel:
    """``Greedy`` steps on the residual of a field, at lower resolutions first.

    At each coarse level the moving image is warped by the field so far, both images are coarsened, and greedy steps
    from zero give an update u, which is brought back to full resolution and composed with the field: out(x) =
    u(x) + field(x + u(x)). So whatever the field holds that is finer than the level stays. A coarse step costs an
    eighth of one at the next finer level, and moves up to twice as far.

    Attributes:
        greedy: the steps at full resolution; lengths in voxels are those of each level's own.
        coarse_steps: steps at each coarser level, coarsest first; each is half as fine as the next.
        both_ways: from nothing, go through the coarse levels from fixed to moving image, too, and take the mean of the
            one field and the inverse of the other: what only one of them follows counts half. Only ``blind`` steps.
    """

    greedy: Greedy
    coarse_steps: tuple[int, ...]
    both_ways: bool = False

    def __post_init__(self) -> None:
        if not self.coarse_steps or min(self.coarse_steps) < 0:
            raise UsageError(f"coarse_steps {self.coarse_steps}: at least one level, and no negative number of steps")

    def check_grid(self, shape: tuple[int, ...]) -> None:
        """Raises UsageError where the window of the local NCC does not fit into the coarsest level of a grid."""
        coarse = self.coarsest(shape)
        if min(coarse) < self.greedy.window:
            raise UsageError(
                f"multilevel: grid {'x'.join(map(str, shape))} is {'x'.join(map(str, coarse))} at its coarsest "
                f"level, smaller than the window of {self.greedy.window} voxels: use greedy, or a smaller `ncc_window`"
            )

    def coarsest(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Voxels of the coarsest level of a grid."""
        from ofg_deploy.kernels.levels import coarser_shape

        for _ in self.coarse_steps:
            shape = coarser_shape(shape)
        return shape

    def refine(
        self, field: Field, moving: Image, fixed: Image, threads: int = 0, buffers: Buffers | None = None
    ) -> Field:
        """As ``Greedy.refine``; working memory is 40 bytes per voxel and a seventh of 28 for the coarse levels."""
        buffers = Buffers() if buffers is None else buffers
        field = self.approach(field, moving, fixed, threads, buffers)
        return self.greedy.refine(field, moving, fixed, threads, buffers)

    def approach(
        self, field: Field, moving: Image, fixed: Image, threads: int = 0, buffers: Buffers | None = None
    ) -> Field:
        """The coarse levels alone; else as ``refine``."""
        from ofg_deploy.kernels import compiled, compose, levels
        from ofg_deploy.kernels.warp import warp

        field, moving, fixed = checked_arrays(field, moving, fixed)
        buffers = Buffers() if buffers is None else buffers
        depth = len(self.coarse_steps)
        outside = np.nan if self.greedy.blind else 0.0
        with compiled.threads(threads):
            fixed_levels = _pyramid(fixed, depth, buffers, "fixed")
            if self.greedy.blind and not field.any():
                return self._from_nothing(_pyramid(moving, depth, buffers, "moving"), fixed_levels, threads, buffers)
            for n, steps in zip(range(depth, 0, -1), self.coarse_steps, strict=True):
                warped = buffers.take("warped", moving.shape)
                warp(moving, field, warped, buffers.take("slope", field.shape), outside)
                warped = _pyramid(warped, n, buffers, "moving")[n]
                start = np.zeros((3, *warped.shape), np.float32)
                update = replace(self.greedy, steps=steps).refine(
                    start, warped, fixed_levels[n], threads, buffers.part(f"level {n}")
                )
                for k in range(n - 1, -1, -1):
                    finer = buffers.part(f"level {k}").take("update", (3, *fixed_levels[k].shape))
                    levels.refine_grid(update, finer)
                    update = finer
                composed = np.empty_like(field)
                compose.compose(field, update, 1.0, composed, np.inf)
                field = composed
        return field

    def _from_nothing(self, moving: list[Image], fixed: list[Image], threads: int, buffers: Buffers) -> Field:
        """As ``approach`` of a field of zeros: nothing finer is to be kept, so each level's field is all there is."""
        from ofg_deploy.kernels import levels

        field = self._down_to_half(moving, fixed, threads, buffers)
        if self.both_ways:
            field += _inverse(self._down_to_half(fixed, moving, threads, buffers))
            field *= np.float32(0.5)
        finer = np.empty((3, *fixed[0].shape), np.float32)
        levels.refine_grid(field, finer)
        return finer

    def _down_to_half(self, moving: list[Image], fixed: list[Image], threads: int, buffers: Buffers) -> Field:
        """From zeros at the coarsest level to the field at the finest of the coarse ones."""
        from ofg_deploy.kernels import levels

        depth = len(self.coarse_steps)
        field = np.zeros((3, *fixed[depth].shape), np.float32)
        for n, steps in zip(range(depth, 0, -1), self.coarse_steps, strict=True):
            if n < depth:
                finer = np.empty((3, *fixed[n].shape), np.float32)
                levels.refine_grid(field, finer)
                field = finer
            greedy = replace(self.greedy, steps=steps)
            field = greedy.refine(field, moving[n], fixed[n], threads, buffers.part(f"level {n}"))
        return field


def _inverse(field: Field) -> Field:
    """The field whose map undoes that of (3, X, Y, Z), in voxels: g(x) = -field(x + g(x)), by a fixed-point iteration.

    Where the map folds there is no inverse, and some displacement between those of the neighbours comes out.
    """
    from ofg_deploy.kernels import compose

    found, there = np.zeros_like(field), np.empty_like(field)
    for _ in range(INVERSE_STEPS):
        compose.compose(field, found, 1.0, there, np.inf)  # found + field(x + found)
        found -= there
    return found


def _pyramid(image: Image, depth: int, buffers: Buffers, name: str) -> list[Image]:
    """The image, and each coarser level of it; what is not known (NaN) takes no part in a mean."""
    from ofg_deploy.kernels import levels

    images = [image]
    for n in range(1, depth + 1):
        out = buffers.part(f"level {n}").take(name, levels.coarser_shape(images[-1].shape))
        levels.coarsen_known(images[-1], out)
        images.append(out)
    return images

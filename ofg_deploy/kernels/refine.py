"""Refine a displacement field on its own pair: numpy in, numpy out, no torch. The options know how to do it.

``Adam`` is the inner optimiser of the paper (Xin et al., MICCAI 2024); ``Greedy`` descends the local NCC, or a distance
of descriptors, with Gaussian smoothing in place of a penalty (Avants et al., Medical Image Analysis 2008; Yushkevich et
al., AAIC 2016).
Results are bit-identical for any number of threads. The compiled code is loaded at the first call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.kernels.buffers import VECTORS, Buffers
from ofg_deploy.options.greedy import BOUNDS, DEFAULTS, WINDOW

Field = npt.NDArray[np.float32]
Image = npt.NDArray[np.float32]
Measure = Literal["ncc", "mind"]

SHORTEST = 0.1  # of the first step: where halving ends


def check_bound(name: str, value: float, called: str) -> None:
    """Raises UsageError for an option of ``Greedy`` out of ``BOUNDS``; ``called`` is what the user knows it by."""
    least, most = BOUNDS[name]
    if not least <= value <= most:  # NaN is nowhere
        wanted = f"{least:g} or more" if math.isinf(most) else f"a number from {least:g} to {most:g}"
        raise UsageError(f"{called} {value:g}: give {wanted}")


@dataclass(frozen=True)
class Adam:
    """A fresh Adam (amsgrad) on local NCC loss + smoothness x diffusion, as published.

    Attributes:
        steps: K of the paper.
        lr: learning rate, in voxels per step.
        smoothness: weight of the diffusion.
        window: odd edge length of the NCC's cube, in voxels.
    """

    steps: int = 5
    lr: float = 0.1
    smoothness: float = 1.0
    window: int = 9

    def __post_init__(self) -> None:
        _check_steps_and_window(self.steps, self.window)
        if not (self.lr > 0 and self.smoothness >= 0):
            raise UsageError(f"lr {self.lr} must be positive and smoothness {self.smoothness} not negative")

    def refine(
        self, field: Field, moving: Image, fixed: Image, threads: int = 0, buffers: Buffers | None = None
    ) -> Field:
        """A refined copy of ``field``.

        Args:
            field: (3, X, Y, Z) voxels, components in axis order; where to sample ``moving``.
            moving, fixed: (X, Y, Z) in 0..1.
            threads: as ``compiled.threads``.
            buffers: working memory (64 bytes per voxel, and some planes for each thread) to use and keep.

        Raises:
            InputError: arrays that do not fit together, or values that are not finite.
            UsageError: more threads than there are.
        """
        from ofg_deploy.kernels import adam, compiled, local_ncc
        from ofg_deploy.kernels.warp import warp

        arrays = checked_arrays(field, moving, fixed)
        refined, (moving, fixed), shape = arrays[0].copy(), arrays[1:], moving.shape
        buffers = Buffers() if buffers is None else buffers
        warped, slope = buffers.take("warped", shape), buffers.take("slope", field.shape)
        # Factor of the second differences in the gradient of mean(difference^2) / 3 over the three components.
        weights = np.array([2 * self.smoothness / (9 * moving.size * (n - 1) / n) for n in shape], np.float32)
        with compiled.threads(threads):
            for step in range(1, self.steps + 1):
                warp(moving, refined, warped, slope)
                _check(local_ncc.loss_and_gradient(warped, fixed, self.window, buffers))
                adam.update(refined, warped, slope, weights, step, self.lr, buffers)
        return refined


@dataclass(frozen=True)
class Greedy:
    """Steps of equal length down the smoothed gradient of the local NCC, composed with the field.

    Each step: gradient in the field, smoothed; vectors longer than ``limit`` times the mean length shortened to that;
    scaled so that the longest is ``step`` voxels; composed; the field smoothed. It does not slow down by itself: the
    number of steps is the stopping rule.

    Attributes:
        steps: how many.
        step: length of the longest vector of each step, in voxels.
        limit: times the mean length of the vectors, each weighted by itself, which empty background leaves as it is.
            Without one (infinite) the few strongest edges alone say how far everything else may move.
        gradient_sigma: smoothing of the gradient (viscous), standard deviation in voxels.
        field_sigma: smoothing of the field (elastic), standard deviation in voxels.
        window: odd edge length of the NCC's cube, in voxels.
        blind: take the local NCC of ``kernels.correlation``, which does not depend on the scale of the intensities and
            knows NaN in either image, and what lies beyond the grid, as unknown. Otherwise that of ``local_ncc``, which
            training follows: zeros outside, and a constant of 1e-5 for intensities of 0..1. And steps are halved each
            time that one did not lower the loss, down to an eighth: then it has converged.
        measure: ``mind`` for the distance of self-similarity descriptors (``kernels.mind``) in place of the local NCC:
            for images of any two contrasts. Only together with ``blind``; ``window`` is then without effect.

    Raises:
        UsageError: a value out of ``BOUNDS``, a negative number of steps or an even window.
    """

    steps: int = 20
    step: float = DEFAULTS["step"]
    limit: float = DEFAULTS["limit"]
    gradient_sigma: float = DEFAULTS["gradient_sigma"]
    field_sigma: float = DEFAULTS["field_sigma"]
    window: int = WINDOW
    blind: bool = False
    measure: Measure = "ncc"

    def __post_init__(self) -> None:
        _check_steps_and_window(self.steps, self.window)
        for name in BOUNDS:
            check_bound(name, getattr(self, name), name)
        if self.measure == "mind" and not self.blind:
            raise UsageError("measure 'mind' knows what is unknown by NaN: it goes with blind steps")

    def refine(
        self, field: Field, moving: Image, fixed: Image, threads: int = 0, buffers: Buffers | None = None
    ) -> Field:
        """As ``Adam.refine``; working memory is 28 bytes per voxel, 32 more for descriptors."""
        from ofg_deploy.kernels import compiled

        descent = Descent(self, field, moving, fixed, buffers)
        with compiled.threads(threads):
            lowest = math.inf
            for _ in range(self.steps):
                loss = descent.loss()
                if (self.blind and not descent.fell(loss, lowest)) or not descent.step():
                    break
                lowest = min(loss, lowest)
        return descent.field


class Descent:
    """``Greedy`` taken apart, for who wants to judge each step: ``loss()`` and ``step()`` in turns.

    Runs on the threads that are set (``compiled.threads``); arguments and errors as ``Greedy.refine``.

    Attributes:
        field: (3, X, Y, Z) a copy of the one given, or that one itself with ``own``, changed by each step.
    """

    def __init__(
        self,
        options: Greedy,
        field: Field,
        moving: Image,
        fixed: Image,
        buffers: Buffers | None = None,
        own: bool = False,
    ) -> None:
        given, self._moving, self._fixed = checked_arrays(field, moving, fixed)
        self.field = given if own else given.copy()
        self._options, self._buffers = options, Buffers() if buffers is None else buffers
        self._longest = options.step
        if options.blind:
            from ofg_deploy.kernels.correlation import floor

            if not np.isfinite(given).all():  # else taken for places that are not known
                raise InputError("the field to be refined is not finite: it holds NaN or infinite values")
            self._floors = floor(self._moving), floor(self._fixed)
        self._described = self._describe() if options.measure == "mind" else None
        self._warped = self._buffers.take("warped", self._moving.shape)
        self._slope = self._buffers.take("slope", given.shape)

    def restart(self, field: Field) -> None:
        """Go on from another field, (3, X, Y, Z) and finite, which is copied, with steps of their first length."""
        self.field[...] = field
        self._longest = self._options.step

    def _describe(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        from ofg_deploy.kernels import mind

        shape = (*self._moving.shape, mind.WIDE)
        found = tuple(self._buffers.take(f"described {name}", shape, np.uint8) for name in ("moving", "fixed"))
        for image, out in zip((self._moving, self._fixed), found, strict=True):
            mind.describe(image, out, self._buffers)
        return found[0], found[1]

    def unmoved(self) -> float:
        """The loss of a field of zeros, by local NCC; ``field`` is not looked at, and there is no gradient.

        Only for ``blind`` steps.
        """
        from ofg_deploy.kernels import correlation

        self._warped[...] = self._moving
        window, buffers = self._options.window, self._buffers
        loss = correlation.loss_and_gradient(self._warped, self._fixed, window, buffers, self._floors, gradient=False)
        _check(loss)
        return loss

    def loss(self) -> float:
        """The loss (-1..0) of ``field`` as it is, by ``measure``; leaves the gradient that ``step`` goes down."""
        from ofg_deploy.kernels import correlation, local_ncc
        from ofg_deploy.kernels.warp import warp

        window, buffers = self._options.window, self._buffers
        if self._described:
            from ofg_deploy.kernels import mind

            loss = mind.loss_and_gradient(*self._described, self.field, self._slope, buffers)
        elif self._options.blind:
            warp(self._moving, self.field, self._warped, self._slope, np.nan)
            loss = correlation.loss_and_gradient(self._warped, self._fixed, window, buffers, self._floors)
        else:
            warp(self._moving, self.field, self._warped, self._slope)
            loss = local_ncc.loss_and_gradient(self._warped, self._fixed, window, buffers)
        _check(loss)
        return loss

    def fell(self, loss: float, lowest: float) -> bool:
        """Halve the steps to come if this loss is not below ``lowest``; False once they are too short to matter."""
        if loss >= lowest:
            self._longest *= 0.5
        return self._longest > SHORTEST * self._options.step

    def step(self, out: Field | None = None) -> bool:
        """One step down, once after each ``loss``; False, and nothing changed, where there is nothing to gain.

        Args:
            out: becomes ``field``, and the field before the step stays as it is; None: it is overwritten.
        """
        from ofg_deploy.kernels import compose
        from ofg_deploy.kernels.gaussian import smooth

        options = self._options
        if not self._described:  # otherwise it is the gradient already
            compose.scale_slope(self._slope, self._warped)
        # Where the weights of the correlation were, which are not needed any more.
        direction = self._buffers.take(VECTORS, (self.field.size,)).reshape(self.field.shape)
        smooth(self._slope, options.gradient_sigma, direction, self._buffers)
        longest, mean = compose.lengths(direction)
        if longest == 0:
            return False
        factor = self._longest / min(longest, options.limit * mean)
        compose.compose(self.field, direction, -factor, self._slope, self._longest)
        self.field = self.field if out is None else out
        smooth(self._slope, options.field_sigma, self.field, self._buffers)
        return True


def _check_steps_and_window(steps: int, window: int) -> None:
    if steps < 0 or window < 1 or window % 2 == 0:
        raise UsageError(f"steps {steps} must not be negative and window {window} must be odd and positive")


def _check(loss: float) -> None:
    if not math.isfinite(loss):
        raise InputError("the local NCC of the pair is not finite: field or images hold NaN or infinite values")


def checked_arrays(field: Any, moving: Any, fixed: Any) -> tuple[Field, Image, Image]:
    """The arrays as the kernels read them: float32, contiguous; copied only where they are not."""
    shape = np.shape(moving)
    if len(shape) != 3 or min(shape) < 2 or np.shape(fixed) != shape or np.shape(field) != (3, *shape):
        raise InputError(
            f"field {np.shape(field)}, moving {shape}, fixed {np.shape(fixed)}: "
            "expected (3, X, Y, Z) and twice (X, Y, Z), at least 2 voxels along each axis"
        )
    field, moving, fixed = (np.ascontiguousarray(a, dtype=np.float32) for a in (field, moving, fixed))
    return field, moving, fixed

"""Refine the network's field on its own pair, and keep the result only where it is better: ``refine`` and ``quality``.

Neither torch nor onnx: the compiled kernels' greedy steps. Those at coarse levels, which find what lies far away, are
judged together; those at full resolution one by one.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.field import Field
from ofg_deploy.geometry import Grid, Matrix, Shape, corner_voxels, transform_points
from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.kernels.multilevel import Multilevel
from ofg_deploy.kernels.refine import Descent, Greedy, Measure, checked_arrays
from ofg_deploy.options.words import Quality, StepSimilarity
from ofg_deploy.serve.engine import check_threads
from ofg_deploy.serve.similarity import Chosen, choose

Stop = Literal["steps", "stalled", "folding", "flat"]
STOPS: dict[Stop, str] = {
    "steps": "all steps taken",
    "stalled": "the energy stalled",
    "folding": "the next step would fold too much",
    "flat": "zero gradient: the images have no structure here",
}

LEVELS = 3  # coarse levels, each of half the resolution of the one before
BYTES_PER_VOXEL = 86  # see ``Refinement.memory_bytes``

# Shortest axis of the grid in voxels -> window of the local NCC, smoothing of the gradient, how many times the steps at
# full resolution of a quality. Small structures that fill their image want a small window (hippocampi, 35 voxels: 5 and
# 1.5) and steps cost little there; whole brains of two people want a large window, and for that a gradient that is
# smoothed less (160 voxels: 9 and 1). See benchmarks/NOTES.md.
SIZES = ((96, 9, 1.0, 1), (64, 7, 1.25, 2), (0, 5, 1.5, 3))
ACROSS = (1.5, 1.0)  # smoothing of gradient and field at coarse levels of ``mind``, in voxels
ACROSS_BELOW = 64  # voxels: on a shorter grid ``mind`` is followed at full resolution, too, as many steps as at half
# On a shorter grid the coarse levels are gone through from either image, and the mean taken (``Multilevel.both_ways``):
# hippocampi gain 0.006 in Dice, whole brains lose 0.002. See benchmarks/NOTES.md.
BOTH_WAYS_BELOW = 64
COARSEST = 8  # voxels along the shortest axis of the coarsest level, at least
STEP = 0.7  # voxels of the longest vector: 8 such at full resolution do what 16 of half a voxel do


@dataclass(frozen=True)
class Preset:
    """What a quality stands for: steps at an eighth, a quarter and half of the resolution, and at full resolution."""

    coarse_steps: tuple[int, ...]
    steps: int


PRESETS: dict[Quality, Preset] = {
    "fast": Preset((40, 30, 15), 3),
    "default": Preset((40, 30, 20), 12),
    "best": Preset((60, 60, 40), 40),
}


@dataclass(frozen=True)
class Refinement:
    """How far to refine.

    Attributes:
        optimiser: what steps at full resolution, and how many at most.
        coarse_steps: steps at each coarser level, coarsest first, each of half the resolution of the next; levels into
            which the window of the local NCC does not fit are left out, with ``by_size`` those below ``COARSEST``, too.
            None for as many as at full resolution, at each of ``LEVELS`` levels.
        by_size: window and smoothing of the gradient follow the size of the grid (``SIZES``), not ``optimiser``.
        similarity: what the steps follow (``serve.similarity``); steps that are not ``blind`` follow the local NCC.
        quality: what was asked for; then the number of steps at full resolution follows the size of the grid, too.
        smoothness: weight of the diffusion in the energy, which is local NCC loss + smoothness x diffusion.
        folding_percent: no more voxels than this fold in the end, unless the network's own field already does;
            then that is the bound.
        tolerance: share of the energy by which it must fall, otherwise it has not: over all, for the refined field to
            be taken (in flat windows a correlation moves a little for no reason), ...
        patience: ... and over each so many steps, for another one.
        threads: 0 for as many as are set; never more than the compiled kernels have. The result does not depend on it.

    Raises:
        UsageError: values out of range.
    """

    optimiser: Greedy
    coarse_steps: tuple[int, ...] | None = None
    by_size: bool = False
    similarity: StepSimilarity = "ncc"
    quality: Quality | None = None
    smoothness: float = 0.1
    folding_percent: float = 0.01
    tolerance: float = 1e-3
    patience: int = 5
    threads: int = 0

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.similarity not in get_args(StepSimilarity):
            raise UsageError(f"similarity {self.similarity!r} is unknown: use {', '.join(get_args(StepSimilarity))}")
        if self.similarity == "mind" and not self.optimiser.blind:
            raise UsageError("similarity 'mind' goes with blind steps")
        if self.optimiser.steps < 1 or self.patience < 1 or min(self.levels, default=0) < 0:
            raise UsageError(
                f"refinement by {self.optimiser.steps} steps, patience {self.patience}, coarse steps {self.levels}: "
                "at least one step and a patience of one are needed, and no negative number of steps"
            )
        if not (0 <= self.smoothness < np.inf and 0 <= self.folding_percent <= 100 and 0 <= self.tolerance < 1):
            raise UsageError(
                f"refinement with smoothness {self.smoothness}, folding {self.folding_percent} % and tolerance "
                f"{self.tolerance}: not negative, at most 100 % and below 1"
            )

    @classmethod
    def at_most(cls, steps: int, threads: int = 0, similarity: StepSimilarity = "auto") -> Refinement | None:
        """What ``refine`` means; None for 0. Raises UsageError for a negative number."""
        if steps < 0:
            raise UsageError(f"`refine` {steps}: give the number of steps to take at most, or 0 for none")
        if not steps:
            return None
        return cls(Greedy(steps, step=STEP, blind=True), by_size=True, similarity=similarity, threads=threads)

    @classmethod
    def of_quality(
        cls,
        quality: Quality,
        similarity: StepSimilarity = "auto",
        spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
        threads: int = 0,
    ) -> Refinement:
        """What ``quality`` means. Length and windows are in voxels of the grid, so its spacing changes nothing.

        Raises:
            UsageError: a quality or a similarity that does not exist.
        """
        if quality not in PRESETS:
            raise UsageError(f"quality {quality!r} is unknown: use {', '.join(PRESETS)}")
        preset = PRESETS[quality]
        steps = Greedy(preset.steps, step=STEP, blind=True)
        return cls(steps, preset.coarse_steps, by_size=True, similarity=similarity, quality=quality, threads=threads)

    @staticmethod
    def memory_bytes(shape: Shape) -> int:
        """Working memory of ``refine`` on a grid, at most: the images and the field given are not in it."""
        return BYTES_PER_VOXEL * math.prod(shape)

    @property
    def levels(self) -> tuple[int, ...]:
        """Steps at each coarse level, coarsest first, where the grid is large enough for all."""
        return (self.optimiser.steps,) * LEVELS if self.coarse_steps is None else self.coarse_steps

    def steps_on(self, shape: Shape) -> Greedy:
        """The steps at full resolution of a grid, their window as it will be."""
        if not self.by_size:
            return self.optimiser
        _, window, sigma, times = next(chosen for chosen in SIZES if min(shape) >= chosen[0])
        steps = self.optimiser.steps * (times if self.quality else 1)
        return replace(self.optimiser, steps=steps, window=window, gradient_sigma=sigma)

    def check_grid(self, shape: Shape) -> None:
        """Raises UsageError where the window of the local NCC does not fit into the model's grid."""
        if min(shape) < (window := self.steps_on(shape).window):
            raise UsageError(
                f"`refine`: the model's grid {'x'.join(map(str, shape))} is smaller than the window of "
                f"{window} voxels: register without it"
            )

    def coarse(self, shape: Shape, measure: Measure = "ncc") -> Multilevel | None:
        """The coarse levels, as many as the window fits into; None where it does not fit into any.

        Its own ``greedy`` are the steps along ``mind`` at full resolution, in place of the others (``ACROSS_BELOW``).
        """
        greedy, steps = self.steps_on(shape), self.levels
        if measure == "mind":
            fine = steps[-1] if min(shape) < ACROSS_BELOW else 0
            gradient, field = ACROSS
            greedy = replace(greedy, steps=fine, measure=measure, gradient_sigma=gradient, field_sigma=field)
        both_ways = self.by_size and greedy.blind and measure == "ncc" and min(shape) < BOTH_WAYS_BELOW
        for left_out in range(len(steps)):
            levels = Multilevel(greedy, steps[left_out:], both_ways=both_ways)
            if min(levels.coarsest(shape)) >= max(greedy.window, COARSEST if self.by_size else 0):
                return levels
        return None


@dataclass(frozen=True)
class Approach:
    """What the steps at coarse levels did, measured at full resolution.

    Attributes:
        steps: at each level, coarsest first.
        energy: behind them. folding_percent: likewise.
        taken: whether the steps at full resolution go on from there, or from the network's field.
    """

    steps: tuple[int, ...]
    energy: float
    folding_percent: float
    taken: bool


@dataclass(frozen=True, eq=False)
class Refined:
    """What came of it.

    Attributes:
        options: what was asked.
        greedy: the steps at full resolution as they were on this grid.
        similarity: what they followed; None where there was no choice.
        field: (3, X, Y, Z) voxels, the best one; the network's own if ``dropped``.
        network_energy: of the network's field.
        approach: the coarse levels; None without any.
        energies: at full resolution, before the first step and after each one taken.
        kept: how many steps at full resolution the best field has had.
        better: its energy is lower than the network's by more than the tolerance, and it is ``field``.
        stopped: why there were no more steps.
        folding_percent: of the network's field and of ``field``; ``allowed_percent`` is the bound.
        threads, seconds: that it took. Seconds include the compilation of the kernels, once on a machine.
    """

    options: Refinement
    greedy: Greedy
    similarity: Chosen | None
    field: Field
    network_energy: float
    approach: Approach | None
    energies: list[float]
    kept: int
    better: bool
    stopped: Stop
    folding_percent: tuple[float, float]
    allowed_percent: float
    threads: int
    seconds: float

    @property
    def dropped(self) -> str | None:
        """Why the network's field was kept, or None."""
        if self.better:
            return None
        tried, coarse, folds = self.energies[1:], self.approach, ""
        if coarse and not coarse.taken and coarse.energy < self.network_energy:  # left out, but not for its energy
            folds = f"; coarser ones would leave {coarse.folding_percent:.3g} % of the voxels folded"
        elif coarse:
            tried = [*tried, coarse.energy]
        if not tried:
            return STOPS[self.stopped] + folds
        enough = f"{100 * self.options.tolerance:g} %"
        count, coarser = len(self.energies) - 1, "" if folds or not coarse else " and no coarser ones"
        steps = f"none of {count} steps{coarser}" if count else "no step"
        energies = f"{self.network_energy:.6g} before, {min(tried):.6g} at best"
        return f"{steps} lowered the energy by more than {enough} ({energies}){folds}"

    @property
    def energy(self) -> float:
        """Of ``field``."""
        return self.energies[self.kept] if self.better else self.network_energy

    def warnings(self) -> list[str]:
        """What a user should know, one line each."""
        dropped = [f"refinement dropped, the network's field is kept: {self.dropped}"] if self.dropped else []
        return [*(self.similarity.warnings() if self.similarity else []), *dropped]

    def record(self) -> dict[str, Any]:
        """For the sidecar."""
        asked = asdict(self.options)
        return {
            "optimiser": {"name": "greedy", **asdict(self.greedy)},
            "options": {name: value for name, value in asked.items() if name not in ("optimiser", "threads")},
            "similarity": self.similarity.record() if self.similarity else None,
            "coarse": {**asdict(self.approach), "steps": list(self.approach.steps)} if self.approach else None,
            "steps_taken": len(self.energies) - 1,
            "steps_kept": self.kept,
            "stopped": STOPS[self.stopped],
            "dropped": self.dropped,
            "energy_before": self.network_energy,
            "energy_after": self.energy,
            "energies": self.energies,
            "folding_percent_before": self.folding_percent[0],
            "folding_percent_after": self.folding_percent[1],
            "folding_percent_allowed": self.allowed_percent,
            "threads": self.threads,
            "seconds": self.seconds,
        }


def known(image: npt.NDArray[Any], grid: Grid, source: Grid, source_from_grid: Matrix) -> npt.NDArray[Any]:
    """An image on a grid, NaN where the grid reaches beyond the field of view that the image came from.

    Args:
        image: (X, Y, Z) of ``grid``; not copied where all of it is within.
        source: the grid it came from. source_from_grid: (4, 4) RAS mm of ``grid`` -> RAS mm of ``source``.
    """
    matrix = source.vox_from_world @ source_from_grid @ grid.world_from_vox
    corners = transform_points(matrix, corner_voxels(grid.shape))
    if all(_within(at, size).all() for at, size in zip(corners, source.shape, strict=True)):
        return image
    found = np.empty(grid.shape, np.result_type(image, np.float32))
    y, z = np.ogrid[: grid.shape[1], : grid.shape[2]]
    for x, plane in enumerate(found):  # what is worked out for one plane stays in the cache
        inside = np.ones(plane.shape, bool)
        for (a, b, c, d), size in zip(matrix[:3], source.shape, strict=True):
            inside &= _within((a * x + b * y + d) + c * z, size)
        plane[...] = np.where(inside, image[x], np.float32(np.nan))
    return found


def _within(at: npt.NDArray[Any], size: int) -> npt.NDArray[np.bool_]:
    """Of voxel positions along an axis, which are in the field of view."""
    return np.asarray((at > -0.5) & (at < size - 0.5))


def refine(field: Field, moving: npt.NDArray[Any], fixed: npt.NDArray[Any], options: Refinement) -> Refined:
    """Go down from the network's field and keep what has the lowest energy, or that field if nothing has.

    The coarse levels come first, along the descriptors of ``mind`` where the contrasts differ (``similarity``). At full
    resolution the local NCC is followed, unless ``mind`` is there, too. With ``mind`` the moving image is then taken in
    the contrast of the fixed one, so all energies are local NCC of one contrast. Where the coarse levels raise the
    energy, or fold too much, they are left out. Then the energy of every step is known: its local NCC is the one whose
    gradient is stepped along (one more is computed after the last step), so only the diffusion and the folds are passes
    of their own.

    Args:
        field: (3, X, Y, Z) voxels of the network's grid, finite.
        moving, fixed: (X, Y, Z) float32 as the network saw them; NaN where nothing is known (``blind`` steps alone).

    Raises:
        InputError: arrays that do not fit together, or values that are not finite.
    """
    from ofg_deploy.kernels import compiled
    from ofg_deploy.kernels.regularity import folding_percent

    start, buffers = time.perf_counter(), Buffers()
    field, moving, fixed = checked_arrays(field, moving, fixed)
    lowest, highest = field.min(), field.max()
    if not np.isfinite((lowest, highest)).all():
        raise InputError("the field to be refined is not finite: it holds NaN or infinite values")
    nothing = lowest == highest == 0  # as without a network
    greedy = options.steps_on(moving.shape)

    with compiled.threads(min(options.threads, compiled.most_threads())) as threads:
        before = 0.0 if nothing else folding_percent(field)
        allowed = max(before, options.folding_percent)
        chosen = choose(options.similarity, field, moving, fixed) if greedy.blind else None
        coarse = options.coarse(moving.shape, chosen.taken if chosen else "ncc")
        near, followed = _approached(coarse, field, moving, fixed, threads, buffers) if coarse else (field, False)
        greedy = replace(greedy, steps=0) if followed else greedy
        if chosen:
            moving = chosen.comparable(moving, fixed, near)
        descent = Descent(greedy, near, moving, fixed, buffers, own=near is not field)
        if nothing and greedy.blind:
            network_energy = descent.unmoved()  # there is no diffusion in it
        else:
            mine, descent.field = descent.field, field
            network_energy = _energy(descent, options)
            descent.field = mine
        approach = None
        if coarse:
            folded = _unfolded(near, allowed, buffers)
            reached = _energy(descent, options)
            approach = Approach(coarse.coarse_steps, reached, folded, reached < network_energy and folded <= allowed)
        if approach and approach.taken:
            best, energies, kept, after, stopped = _down(
                descent, greedy.steps, options, buffers, approach.energy, approach.folding_percent, allowed
            )
        else:
            descent.restart(field)
            descent.loss()
            best, energies, kept, after, stopped = _down(
                descent, greedy.steps, options, buffers, network_energy, before, allowed
            )
    better = network_energy - energies[kept] > options.tolerance * abs(energies[kept])
    if not better:
        best, kept, after = field, 0, before
    seconds = round(time.perf_counter() - start, 4)
    return Refined(
        options,
        greedy,
        chosen,
        best,
        network_energy,
        approach,
        energies,
        kept,
        better,
        stopped,
        (before, after),
        allowed,
        threads,
        seconds,
    )


def _energy(descent: Descent, options: Refinement) -> float:
    """Of the field as it is; leaves the gradient of its local NCC behind."""
    from ofg_deploy.kernels.regularity import diffusion

    return descent.loss() + options.smoothness * diffusion(descent.field)


def _down(
    descent: Descent, steps: int, options: Refinement, buffers: Buffers, energy: float, folded: float, allowed: float
) -> tuple[Field, list[float], int, float, Stop]:
    """Steps at full resolution from a field, whose gradient is there already.

    Args:
        steps: at most. energy, folded: of the field. allowed: percentage of voxels that may fold.

    Returns:
        The best field, energies before the first and after each step, that of the best one among them, the share of
        its voxels that fold, and why there were no more steps.
    """
    energies, kept = [energy], 0
    stopped: Stop = "steps"
    # The best field stays as it is: steps from it go into a second array, in turns, so that none is copied.
    best, spare = descent.field, None
    for step in range(1, steps + 1):
        from_best = descent.field is best
        if from_best and spare is None:
            spare = np.empty_like(best)
        if not descent.step(spare if from_best else None):
            stopped = "flat"
            break
        share = _unfolded(descent.field, allowed, buffers)
        if share > allowed:
            stopped = "folding"
            break
        energies.append(_energy(descent, options))
        if energies[step] < energies[kept]:
            best, spare, kept, folded = descent.field, best, step, share
        if not _fell(energies, options.tolerance, options.patience):
            stopped = "stalled"
            break
    return best, energies, kept, folded, stopped


def _approached(
    coarse: Multilevel,
    field: Field,
    moving: npt.NDArray[Any],
    fixed: npt.NDArray[Any],
    threads: int,
    buffers: Buffers,
) -> tuple[Field, bool]:
    """After the coarse levels; and whether ``mind`` was followed at full resolution, too, as on small grids."""
    near = coarse.approach(field, moving, fixed, threads, buffers)
    if coarse.greedy.measure == "ncc" or not coarse.greedy.steps:
        return near, False
    return coarse.greedy.refine(near, moving, fixed, threads, buffers.part("mind")), True


def _unfolded(field: Field, allowed: float, buffers: Buffers) -> float:
    """Share of a field's folds, once they are taken out of it, in place, where they are more than allowed."""
    from ofg_deploy.kernels.regularity import folding_percent
    from ofg_deploy.kernels.unfold import unfold

    share = folding_percent(field)
    if share <= allowed:
        return share
    unfold(field, buffers)
    return folding_percent(field)


def _fell(energies: list[float], tolerance: float, steps: int) -> bool:
    """Whether the lowest energy fell by more than this share over the last ``steps``; True if there were fewer."""
    if len(energies) <= steps:
        return True
    lowest = min(energies)
    return min(energies[: len(energies) - steps]) - lowest > tolerance * abs(lowest)

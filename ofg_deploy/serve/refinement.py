"""Refine the network's field on its own pair, and keep the result only where it is better: ``ofg register --refine``.

Neither torch nor onnx: the compiled kernels' greedy steps. Those at coarse levels, which find what lies far away, are
judged together; those at full resolution one by one.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import UsageError
from ofg_deploy.field import Field
from ofg_deploy.geometry import Shape
from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.kernels.multilevel import Multilevel
from ofg_deploy.kernels.refine import Descent, Greedy
from ofg_deploy.serve.engine import check_threads

Quality = Literal["fast", "default", "best"]
Similarity = Literal["auto", "ncc", "mind"]
STEPS: dict[Quality, int] = {"fast": 10, "default": 20, "best": 40}

Stop = Literal["steps", "stalled", "folding", "flat"]
STOPS: dict[Stop, str] = {
    "steps": "all steps taken",
    "stalled": "the energy stalled",
    "folding": "the next step would fold too much",
    "flat": "nothing in the images pulls",
}


@dataclass(frozen=True)
class Refinement:
    """How far to refine.

    Attributes:
        optimiser: what steps at full resolution, and how many at most. As many go before at each coarse level.
        smoothness: weight of the diffusion in the energy, which is local NCC loss + smoothness x diffusion.
        folding_percent: a step is not taken if more voxels than this would fold, unless the network's own field
            already does; then that is the bound.
        tolerance: share of the energy by which it must fall, otherwise it has not: over all, for the refined field to
            be taken (in flat windows a correlation moves a little for no reason), ...
        patience: ... and over each so many steps, for another one.
        levels: coarse levels at most, each of half the resolution of the one before; fewer where the window of the
            local NCC does not fit.
        threads: 0 for as many as are set; never more than the compiled kernels have. The result does not depend on it.

    Raises:
        UsageError: values out of range.
    """

    optimiser: Greedy
    smoothness: float = 0.1
    folding_percent: float = 0.1
    tolerance: float = 1e-3
    patience: int = 5
    levels: int = 2
    threads: int = 0

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.optimiser.steps < 1 or self.patience < 1 or self.levels < 0:
            raise UsageError(
                f"refinement by {self.optimiser.steps} steps, patience {self.patience}, {self.levels} coarse levels: "
                "at least one step and a patience of one are needed, and no negative number of levels"
            )
        if not (0 <= self.smoothness < np.inf and 0 <= self.folding_percent <= 100 and 0 <= self.tolerance < 1):
            raise UsageError(
                f"refinement with smoothness {self.smoothness}, folding {self.folding_percent} % and tolerance "
                f"{self.tolerance}: not negative, at most 100 % and below 1"
            )

    @classmethod
    def at_most(cls, steps: int, threads: int = 0) -> Refinement | None:
        """What ``--refine STEPS`` means; None for 0. Raises UsageError for a negative number."""
        if steps < 0:
            raise UsageError(f"--refine {steps}: give the number of steps to take at most, or 0 for none")
        return cls(Greedy(steps), threads=threads) if steps else None

    @classmethod
    def of_quality(
        cls,
        quality: Quality,
        similarity: Similarity = "auto",
        spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
        threads: int = 0,
    ) -> Refinement:
        """What ``--quality`` means for a pair on a grid of voxels of this size.

        Raises:
            UsageError: a quality or a similarity that does not exist.
        """
        if quality not in STEPS:
            raise UsageError(f"quality {quality!r} is unknown: use {', '.join(STEPS)}")
        if similarity not in get_args(Similarity):
            raise UsageError(f"similarity {similarity!r} is unknown: use {', '.join(get_args(Similarity))}")
        return cls(Greedy(STEPS[quality]), threads=threads)

    def check_grid(self, shape: Shape) -> None:
        """Raises UsageError where the window of the local NCC does not fit into the model's grid."""
        if min(shape) < self.optimiser.window:
            raise UsageError(
                f"--refine: the model's grid {'x'.join(map(str, shape))} is smaller than the window of "
                f"{self.optimiser.window} voxels: register without it"
            )

    def coarse(self, shape: Shape) -> Multilevel | None:
        """The coarse levels, as many as the window fits into; None where it does not fit into any."""
        for depth in range(self.levels, 0, -1):
            levels = Multilevel(self.optimiser, (self.optimiser.steps,) * depth)
            if min(levels.coarsest(shape)) >= self.optimiser.window:
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
        steps = f"none of {len(self.energies) - 1} steps{'' if folds or not coarse else ' and no coarser ones'}"
        energies = f"{self.network_energy:.6g} before, {min(tried):.6g} at best"
        return f"{steps} lowered the energy by more than {enough} ({energies}){folds}"

    def warnings(self) -> list[str]:
        """What a user should know, one line each."""
        return [f"refinement dropped, the network's field is kept: {self.dropped}"] if self.dropped else []

    def record(self) -> dict[str, Any]:
        """For the sidecar."""
        asked = asdict(self.options)
        return {
            "optimiser": {"name": "greedy", **asked.pop("optimiser")},
            "options": {name: value for name, value in asked.items() if name != "threads"},
            "coarse": {**asdict(self.approach), "steps": list(self.approach.steps)} if self.approach else None,
            "steps_taken": len(self.energies) - 1,
            "steps_kept": self.kept,
            "stopped": STOPS[self.stopped],
            "dropped": self.dropped,
            "energy_before": self.network_energy,
            "energy_after": self.energies[self.kept] if self.better else self.network_energy,
            "energies": self.energies,
            "folding_percent_before": self.folding_percent[0],
            "folding_percent_after": self.folding_percent[1],
            "folding_percent_allowed": self.allowed_percent,
            "threads": self.threads,
            "seconds": self.seconds,
        }


def refine(field: Field, moving: npt.NDArray[Any], fixed: npt.NDArray[Any], options: Refinement) -> Refined:
    """Go down from the network's field and keep what has the lowest energy, or that field if nothing has.

    The coarse levels come first. Where they raise the energy at full resolution, or fold too much, they are left out.
    Then the energy of every step is known: its local NCC is the one whose gradient is stepped along (one more is
    computed after the last step), so only the diffusion and the folds are passes of their own.

    Args:
        field: (3, X, Y, Z) voxels of the network's grid, finite.
        moving, fixed: (X, Y, Z) float32 as the network saw them.

    Raises:
        InputError: arrays that do not fit together, or values that are not finite.
    """
    from ofg_deploy.kernels import compiled
    from ofg_deploy.kernels.regularity import diffusion, folding_percent

    start, buffers = time.perf_counter(), Buffers()

    def descent_from(there: Field) -> tuple[Descent, float]:
        descent = Descent(options.optimiser, there, moving, fixed, buffers)
        return descent, energy(descent)

    def energy(descent: Descent) -> float:
        return descent.loss() + options.smoothness * diffusion(descent.field)

    with compiled.threads(min(options.threads, compiled.most_threads())) as threads:
        before = folding_percent(field)
        allowed = max(before, options.folding_percent)
        descent, network_energy = descent_from(field)
        approach = None
        if coarse := options.coarse(moving.shape):
            near = coarse.approach(field, moving, fixed, threads, buffers)
            there, reached = descent_from(near)
            folded = folding_percent(near)
            approach = Approach(coarse.coarse_steps, reached, folded, reached < network_energy and folded <= allowed)
            descent = there if approach.taken else descent_from(field)[0]
        first = approach if approach and approach.taken else None
        energies, kept = [first.energy if first else network_energy], 0
        stopped: Stop = "steps"
        best, after = descent.field.copy(), first.folding_percent if first else before
        for step in range(1, options.optimiser.steps + 1):
            if not descent.step():
                stopped = "flat"
                break
            share = folding_percent(descent.field)
            if share > allowed:
                stopped = "folding"
                break
            energies.append(energy(descent))
            if energies[step] < energies[kept]:
                best[:], kept, after = descent.field, step, share
            if not _fell(energies, options.tolerance, options.patience):
                stopped = "stalled"
                break
    better = network_energy - energies[kept] > options.tolerance * abs(energies[kept])
    if not better:
        best, kept, after = field, 0, before
    seconds = round(time.perf_counter() - start, 4)
    return Refined(
        options,
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


def _fell(energies: list[float], tolerance: float, steps: int) -> bool:
    """Whether the lowest energy fell by more than this share over the last ``steps``; True if there were fewer."""
    if len(energies) <= steps:
        return True
    lowest = min(energies)
    return min(energies[: len(energies) - steps]) - lowest > tolerance * abs(lowest)

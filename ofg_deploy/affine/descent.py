"""Minimisation within bounds for a dozen parameters.

As SciPy's L-BFGS-B goes about it, but with the whole matrix and on one thread: the threads of the linear algebra
there took longer over a dozen numbers than the images did, and may change last bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

FARTHEST = 0.2  # that any parameter goes in one step
ENOUGH = 1e-4  # share of what the slope promises
HALVINGS = 8


def minimise(
    cost: Callable[[Vector], tuple[float, Vector]], start: Vector, low: Vector, high: Vector, steps: int, gain: float
) -> tuple[float, Vector]:
    """The lowest cost found, and where.

    Args:
        cost: (N,) -> value and (N,) slope.
        start: (N,). low, high: (N,) bounds, infinite where there is none.
        steps: at most.
        gain: steps that lower the cost by less than this are the last.
    """
    x = np.clip(start, low, high)
    value, slope = cost(x)
    inverse: npt.NDArray[np.float64] | None = None  # of the Hessian; None: not known yet
    for _ in range(steps):
        free = ~(((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0)))
        ahead = np.where(free, -slope, 0.0)
        if inverse is not None:
            ahead = np.where(free, (inverse * ahead).sum(axis=1), 0.0)
        if (longest := float(np.abs(ahead).max())) == 0:
            break
        ahead *= min(1.0, FARTHEST / longest) if inverse is not None else FARTHEST / 4 / longest
        found = _along(cost, x, value, slope, ahead, low, high)
        if found is None:
            if inverse is None:
                break
            inverse = None  # once more, straight down
            continue
        after, value_after, slope_after = found
        moved, turned, won = after - x, slope_after - slope, value - value_after
        inverse = _learned(inverse, moved, turned)
        x, value, slope = after, value_after, slope_after
        if won < gain:
            break
    return value, x


def _along(
    cost: Callable[[Vector], tuple[float, Vector]],
    x: Vector,
    value: float,
    slope: Vector,
    ahead: Vector,
    low: Vector,
    high: Vector,
) -> tuple[Vector, float, Vector] | None:
    """A point on the way that is lower by enough; None if there is none."""
    share = 1.0
    for _ in range(HALVINGS):
        there = np.clip(x + share * ahead, low, high)
        promised = float((slope * (there - x)).sum())
        if promised >= 0:
            return None
        found, slope_there = cost(there)
        if found <= value + ENOUGH * promised:
            return there, found, slope_there
        share *= min(max(-promised / (2 * (found - value - promised)), 0.1), 0.5)  # the lowest point of a parabola
    return None


def _learned(inverse: npt.NDArray[np.float64] | None, moved: Vector, turned: Vector) -> npt.NDArray[np.float64] | None:
    """The update of Broyden, Fletcher, Goldfarb and Shanno."""
    bent = float((moved * turned).sum())
    if bent <= 1e-10 * float(np.sqrt((moved**2).sum() * (turned**2).sum())):
        return inverse
    if inverse is None:
        inverse = np.eye(moved.size) * (bent / float((turned**2).sum()))
    across = (inverse * turned).sum(axis=1)
    both = np.outer(across, moved)
    scale = (1 + float((turned * across).sum()) / bent) / bent
    return inverse + scale * np.outer(moved, moved) - (both + both.T) / bent

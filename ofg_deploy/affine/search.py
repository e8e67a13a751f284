"""From starts to a map: many rotations at a coarse level, the best of them on to finer ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ofg_deploy.affine.agreement import Agreement
from ofg_deploy.affine.descent import minimise
from ofg_deploy.affine.parameters import (
    FREE,
    ROTATION,
    Freedom,
    Prior,
    Vector,
    limits,
    pulled_back,
    to_matrix,
)

# Rotations that are tried, in degrees: a lattice within a ball. The optimiser bridges half a step with ease.
STEP, FARTHEST = 25.0, 50.0
TRIED = 10  # turned starts that are optimised at the coarsest level
ENDS = (4, 2)  # that leave the first two levels; the others are left by one
STEPS = 40  # of an optimiser at one level
GAIN = 1e-5  # nats per place: a step that wins less is the last
APART = 0.1  # in the content's radius, radians and log scales: closer ends of the search are one


@dataclass(frozen=True, eq=False)
class Search:
    """Levels from coarse to fine, with what is believed beforehand.

    Attributes:
        levels: the measure at each resolution; the last one judges.
        places: how many independent places the images show: mean information times these compares with the prior.
        prior: see there.
    """

    levels: Sequence[Agreement]
    places: float
    prior: Prior

    def measure(self, p: Vector) -> float:
        """In nats per place, at the last level."""
        return self.levels[-1].value(to_matrix(p))

    def merit(self, p: Vector, level: int = -1) -> float:
        """Information that the images share, less what the map costs beforehand, in nats: a log posterior."""
        return self.places * self.levels[level].value(to_matrix(p)) - self.prior.cost(p)[0]

    def ends(self, starts: Sequence[Vector]) -> list[Vector]:
        """Where rigid searches from these starts, turned many ways, end at the coarsest level; the best, best first."""
        turned = []
        for turn in _turns():
            each = [_turned(start, turn) for start in starts]
            turned.append(max(((self.merit(p, 0), p) for p in each), key=lambda found: found[0]))
        turned.sort(key=lambda found: -found[0])
        tried = [*starts, *(p for _, p in turned[:TRIED])]
        return self._refined(tried, "rigid", 0, ENDS[0])

    def finest(self, ends: Sequence[Vector], freedom: Freedom) -> Vector:
        """The best end of searches that go on from these, up to the last level."""
        last = len(self.levels) - 1
        for level in range(min(1, last), last + 1):
            ends = self._refined(ends, freedom, level, ENDS[1] if level == 1 < last else 1)
        return ends[0]

    def _refined(self, starts: Sequence[Vector], freedom: Freedom, level: int, kept: int) -> list[Vector]:
        """Optimised at a level; so many of the best different ends, best first."""
        ends: list[Vector] = []
        for _, p in sorted((self._optimised(p, freedom, level) for p in starts), key=lambda end: -end[0]):
            if len(ends) < kept and all(np.abs(p - other).max() > APART for other in ends):
                ends.append(p)
        return ends

    def _optimised(self, start: Vector, freedom: Freedom, level: int) -> tuple[float, Vector]:
        count = FREE[freedom]

        def cost(free: Vector) -> tuple[float, Vector]:
            p = np.concatenate([free, start[count:]])
            value, by_matrix = self.levels[level].with_slope(to_matrix(p))
            cost, slope = self.prior.cost(p)
            return cost / self.places - value, (slope / self.places - pulled_back(p, by_matrix))[:count]

        value, free = minimise(cost, start[:count], *limits(freedom), STEPS, GAIN)
        return -value * self.places, np.concatenate([free, start[count:]])


def _turns() -> list[Vector]:
    """Rotation vectors in radians; no rotation is not among them."""
    reach = np.arange(-FARTHEST, FARTHEST + 1, STEP)
    lattice = (np.array(turn) for turn in product(reach, repeat=3))
    return [np.deg2rad(turn) for turn in lattice if 0 < float(turn @ turn) <= FARTHEST**2]


def _turned(start: Vector, turn: Vector) -> Vector:
    p = start.copy()
    p[ROTATION] = turn
    return p

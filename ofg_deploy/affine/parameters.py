"""The twelve numbers of a linear map, from translation to shear, and what is believed of them beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ofg_deploy.geometry import Matrix

Vector = npt.NDArray[np.float64]
Freedom = Literal["rigid", "affine"]

FREE: dict[Freedom, int] = {"rigid": 6, "affine": 12}  # parameters, from the first
MOST_SCALE = 2.0  # of an axis, either way: the same organ of another person stays well within
MOST_SHEAR = 0.5
TRANSLATION, ROTATION, SCALE, SHEAR = slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)
_UPPER = ((0, 1), (0, 2), (1, 2))  # where the shears stand in the triangular factor


def to_matrix(p: Vector) -> Matrix:
    """(12,) -> (4, 4): y = translation + R U x.

    R is the rotation by a vector in radians. U is upper triangular: exp(scale) on its diagonal, right of it the shears
    times the diagonal of their row.
    """
    matrix = np.eye(4)
    matrix[:3, :3] = _rotation(p[ROTATION])[0] @ _stretch(p)
    matrix[:3, 3] = p[TRANSLATION]
    return matrix


def pulled_back(p: Vector, by_matrix: Matrix) -> Vector:
    """Derivative by the parameters, of what has this derivative by the (4, 4) matrix."""
    rotation, turns = _rotation(p[ROTATION])
    stretch = _stretch(p)
    by_linear = by_matrix[:3, :3]
    by_stretch = rotation.T @ by_linear
    out = np.empty(12)
    out[TRANSLATION] = by_matrix[:3, 3]
    out[ROTATION] = [float((by_linear * (turn @ stretch)).sum()) for turn in turns]
    out[SCALE] = (by_stretch * stretch).sum(axis=1)
    out[SHEAR] = [by_stretch[row, column] * stretch[row, row] for row, column in _UPPER]
    return out


def limits(freedom: Freedom) -> tuple[Vector, Vector]:
    """Between what each free parameter may be."""
    high = np.array([np.inf] * 6 + [np.log(MOST_SCALE)] * 3 + [MOST_SHEAR] * 3)[: FREE[freedom]]
    return -high, high


def at_limits(p: Vector) -> tuple[str, ...]:
    """Which parameters are as far out as they may be, in words."""
    near = 0.999
    found = [f"scale of axis {'xyz'[n]}" for n in range(3) if abs(p[SCALE][n]) >= near * np.log(MOST_SCALE)]
    sheared = zip(_UPPER, p[SHEAR], strict=True)
    return (*found, *(f"shear of {'xyz'[a]} by {'xyz'[b]}" for (a, b), k in sheared if abs(k) >= near * MOST_SHEAR))


@dataclass(frozen=True, eq=False)
class Prior:
    """What is believed of a map beforehand, as the negative logarithm of a density, 0 for the map of the headers.

    Attributes:
        home: (12,) that map.

    Standard deviations: 0.3 of the content's radius (with heavy tails: a header may be far off), 15 degrees, 15 %
    of all scales together, 10 % of each against the others, shears of 0.1.
    """

    home: Vector

    def cost(self, p: Vector) -> tuple[float, Vector]:
        """In nats, and its (12,) slope."""
        slope = np.zeros(12)
        moved = (p[TRANSLATION] - self.home[TRANSLATION]) / 0.3
        tail = 1 + float(moved @ moved) / 4
        slope[TRANSLATION] = moved / tail / 0.3
        together = p[SCALE].mean()
        parts = [
            (ROTATION, p[ROTATION], np.deg2rad(15)),
            (SCALE, p[SCALE] - together, 0.1),
            (SHEAR, p[SHEAR], 0.1),
        ]
        total = 2 * np.log(tail) + (together / 0.15) ** 2 / 2
        for where, values, width in parts:
            total += float(values @ values) / width**2 / 2
            slope[where] = values / width**2
        slope[SCALE] += together / 0.15**2 / 3
        return float(total), slope


def _stretch(p: Vector) -> Matrix:
    stretch = np.diag(np.exp(p[SCALE]))
    for (row, column), shear in zip(_UPPER, p[SHEAR], strict=True):
        stretch[row, column] = shear * stretch[row, row]
    return stretch


def _rotation(w: Vector) -> tuple[Matrix, list[Matrix]]:
    """Of a rotation vector, and its three derivatives (Gallego and Yezzi, J Math Imaging Vis 51 (2015))."""
    square = float(w @ w)
    cross = _cross(w)
    axes = np.eye(3)
    if square < 1e-16:  # of radians, at the square root of what doubles resolve
        return np.eye(3) + cross, [_cross(axis) for axis in axes]
    angle = np.sqrt(square)
    rotation = np.eye(3) + np.sin(angle) / angle * cross + (1 - np.cos(angle)) / square * cross @ cross
    still = np.eye(3) - rotation
    turns = [(w[n] * cross + _cross(cross @ still @ axes[n])) / square @ rotation for n in range(3)]
    return rotation, turns


def _cross(w: Vector) -> Matrix:
    return np.array([[0.0, -w[2], w[1]], [w[2], 0.0, -w[0]], [-w[1], w[0], 0.0]])

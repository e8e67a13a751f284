"""Maps of world points, fixed mm -> moving mm: linear, by a displacement field, or one after another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError
from ofg_deploy.field import Field, sample
from ofg_deploy.geometry import Grid, Matrix, lattice, same_grid, transform_points
from ofg_deploy.nifti_space import FARTHEST_MM

Inside = npt.NDArray[np.bool_]
# What ITK writes into every component where a displacement is unknown: the largest number of its type.
MARKS = (float(np.finfo(np.float32).max), float(np.finfo(np.float64).max))
ROUNDING_WEIGHT = 1e-11  # of a voxel in an interpolation at another one, where only rounding gives it any


class WorldMap(Protocol):
    """What every map can do. ``domain`` is the grid outside which it is unknown; None if it is known everywhere.

    ``warnings``: what the headers of its files left open, in one line each.
    """

    @property
    def domain(self) -> Grid | None:
        """Where the map is known."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its files left open."""

    def displacement_mm(self, points: Matrix) -> tuple[Matrix, Inside]:
        """At world points (3, ...) in RAS mm: displacement (3, ...) in mm, 0 where unknown; and where it is known."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """``moving_from_fixed`` (4, 4): known everywhere."""

    moving_from_fixed: Matrix
    domain: Grid | None = None
    warnings: tuple[str, ...] = ()

    def displacement_mm(self, points: Matrix) -> tuple[Matrix, Inside]:
        """As ``WorldMap``."""
        return transform_points(self.moving_from_fixed, points) - points, np.ones(points.shape[1:], dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class FieldMap:
    """A displacement (3, X, Y, Z) in RAS mm, known on its own grid ``domain`` and linear between its voxels.

    As everywhere, a voxel reaches half a voxel beyond its centre. Past that the map is unknown: ITK would take it for
    the identity there, which would tear the affine part off.

    Attributes:
        unknown: (X, Y, Z) voxels that the file marks as unknown, None if there are none. What stands there is a
            continuation for solvers; wherever such a voxel has a weight in the interpolation, the map is unknown.
    """

    field: Field
    domain: Grid
    warnings: tuple[str, ...] = ()
    unknown: Inside | None = None

    def displacement_mm(self, points: Matrix) -> tuple[Matrix, Inside]:
        """As ``WorldMap``."""
        index = transform_points(self.domain.vox_from_world, points)
        displacement = np.stack([sample(c, index, fill=np.nan, dtype=np.float64) for c in self.field])
        inside = np.isfinite(displacement[0])
        if self.unknown is not None:
            inside &= sample(self.unknown.astype(np.float32), index, fill=1, dtype=np.float64) <= ROUNDING_WEIGHT
        return np.where(inside, displacement, 0.0), inside


def field_map(
    field: Field, domain: Grid, source: Path | str, warnings: tuple[str, ...] = (), unknown: Inside | None = None
) -> FieldMap:
    """What a file held or a model found, (3, X, Y, Z) RAS mm on ``domain``, and what a header left open.

    Args:
        source: what a user knows it by.
        unknown: (X, Y, Z) voxels that the file marks as unknown, whatever stands there.

    Raises:
        InputError: components that are not finite, or lead further than a scan can lie: beyond, float32 and the index
            arithmetic of every interpolator give out; a field that is unknown everywhere.
    """
    if unknown is not None and unknown.any():
        if unknown.all():
            raise InputError(f"{source} is marked as unknown in all of its voxels: there is no transform in it")
        field = _continued(field, unknown, domain)
        share = f"{100 * unknown.mean():.3g} %"
        line = f"{source}: unknown at {share} of its voxels, which its writer marked as leading out of the image"
        warnings = (*warnings, line)
    else:
        unknown = None
    if not (field.min() >= -FARTHEST_MM and field.max() <= FARTHEST_MM):  # False for NaN
        bad = int(field.size - np.count_nonzero(np.abs(field) <= FARTHEST_MM))
        raise InputError(f"{source} has {bad} components that are NaN, infinite or longer than {FARTHEST_MM:g} mm")
    return FieldMap(field, domain, warnings, unknown)


def marked(components: npt.NDArray[Any]) -> Inside:
    """Which numbers are ITK's mark of an unknown displacement."""
    if components.max() < MARKS[0] and components.min() > -MARKS[0]:  # False for NaN, as well
        return np.zeros(components.shape, np.bool_)
    return np.asarray(np.isin(np.abs(components), np.array(MARKS).astype(components.dtype)))


def _continued(field: Field, unknown: Inside, domain: Grid) -> Field:
    """With the affine map that fits the known voxels best in place of the unknown ones, for solvers that pass by."""
    known = np.flatnonzero(~unknown)
    index = np.array(np.unravel_index(known[:: 1 + known.size // 20_000], unknown.shape))
    values = field[:, index[0], index[1], index[2]].astype(np.float64)
    if not (np.abs(values) <= FARTHEST_MM).all():
        return np.where(unknown, np.float32(0), field)  # refused by who called
    points = transform_points(domain.world_from_vox, index.astype(np.float64))
    centre = points.mean(axis=1, keepdims=True)
    fit, *_ = np.linalg.lstsq(np.vstack([points - centre, np.ones(points.shape[1])]).T, values.T, rcond=None)
    filled = field.copy()
    missing = np.array(np.nonzero(unknown), dtype=np.float64)
    there = transform_points(domain.world_from_vox, missing) - centre
    filled[:, unknown] = fit[:3].T @ there + fit[3][:, None]
    return filled


@dataclass(frozen=True, eq=False)
class Chain:
    """Maps applied to a point one after another, the first one first."""

    maps: tuple[WorldMap, ...]

    @property
    def domain(self) -> Grid | None:
        """That of the first map: later ones get points that have moved."""
        return self.maps[0].domain if self.maps else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of all maps, once each."""
        return tuple(dict.fromkeys(line for each in self.maps for line in each.warnings))

    def displacement_mm(self, points: Matrix) -> tuple[Matrix, Inside]:
        """As ``WorldMap``; known where every map knows where to go on."""
        here, inside = points.astype(np.float64), np.ones(points.shape[1:], dtype=np.bool_)
        for each in self.maps:
            displacement, known = each.displacement_mm(here)
            here, inside = here + displacement, inside & known
        return np.where(inside, here - points, 0.0), inside


def on_grid(world_map: WorldMap, grid: Grid) -> tuple[Field, Inside]:
    """A map at every voxel of a grid: (3, X, Y, Z) float32 mm and where it is known. A field on its own grid stays."""
    if isinstance(world_map, FieldMap) and same_grid(grid, world_map.domain, 1e-5):
        unknown = world_map.unknown
        return world_map.field, np.ones(grid.shape, dtype=np.bool_) if unknown is None else ~unknown
    displacement, inside = world_map.displacement_mm(transform_points(grid.world_from_vox, lattice(grid.shape)))
    return displacement.astype(np.float32), inside

"""Maps of world points, fixed mm -> moving mm: linear, by a displacement field, or one after another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError
from ofg_deploy.field import Field, sample
from ofg_deploy.geometry import Grid, Matrix, lattice, same_grid, transform_points
from ofg_deploy.nifti import FARTHEST_MM

Inside = npt.NDArray[np.bool_]


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
    """

    field: Field
    domain: Grid
    warnings: tuple[str, ...] = ()

    def displacement_mm(self, points: Matrix) -> tuple[Matrix, Inside]:
        """As ``WorldMap``."""
        index = transform_points(self.domain.vox_from_world, points)
        displacement = np.stack([sample(c, index, fill=np.nan, dtype=np.float64) for c in self.field])
        inside = np.isfinite(displacement[0])
        return np.where(inside, displacement, 0.0), inside


def field_map(field: Field, domain: Grid, source: Path | str, warnings: tuple[str, ...] = ()) -> FieldMap:
    """What a file held or a model found, (3, X, Y, Z) RAS mm on ``domain``, and what a header left open.

    Args:
        source: what a user knows it by.

    Raises:
        InputError: components that are not finite, or lead further than a scan can lie: beyond, float32 and the index
            arithmetic of every interpolator give out.
    """
    if not (field.min() >= -FARTHEST_MM and field.max() <= FARTHEST_MM):  # False for NaN
        bad = int(field.size - np.count_nonzero(np.abs(field) <= FARTHEST_MM))
        raise InputError(f"{source} has {bad} components that are NaN, infinite or longer than {FARTHEST_MM:g} mm")
    return FieldMap(field, domain, warnings)


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
    """A map at every voxel of a grid: (3, X, Y, Z) float32 mm and (X, Y, Z). A field on its own grid stays as it is."""
    if isinstance(world_map, FieldMap) and same_grid(grid, world_map.domain, 1e-5):
        return world_map.field, np.ones(grid.shape, dtype=np.bool_)
    displacement, inside = world_map.displacement_mm(transform_points(grid.world_from_vox, lattice(grid.shape)))
    return displacement.astype(np.float32), inside

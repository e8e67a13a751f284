"""World points: read from a table, carried through a map, written in the same form with all that the table holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.geometry import LPS_FROM_RAS, Matrix, transform_points
from ofg_deploy.options.words import PointsFrame
from ofg_deploy.transform.maps import Inside, WorldMap
from ofg_deploy.transform.tables import Table, read_table


@dataclass(frozen=True, eq=False)
class Points:
    """Points of one image's space.

    Attributes:
        world: (3, N) RAS mm; nan where the table says that a point is not defined.
        frame: the world of the table, in which it is written again.
        table: all that the file holds.
        path: the file it came from.
    """

    world: Matrix
    frame: PointsFrame
    table: Table
    path: Path

    @property
    def defined(self) -> Inside:
        """(N,) whether a point has a position."""
        return np.asarray(np.isfinite(self.world).all(axis=0))

    @property
    def labels(self) -> tuple[str, ...]:
        """Of each point, "" for none."""
        return self.table.labels


@dataclass(frozen=True, eq=False)
class CarriedPoints:
    """Points in the other image's space: (3, N) RAS mm, and whether the map knows where each goes."""

    source: Points
    world: Matrix
    inside: Inside

    def warnings(self) -> list[str]:
        """How many of them the map does not know, in one line."""
        defined = self.source.defined
        if self.inside[defined].all():
            return []
        ask = "" if self.inside.any() else "; are they world mm, and is `points_frame` right?"
        return [
            f"{self.source.path.name}: {int((~self.inside[defined]).sum())} of {int(defined.sum())} points lie where "
            f"the transform is unknown, outside its field of view: nan, and inside=0 in the table{ask}"
        ]


def load_points(path: Path, frame: PointsFrame | None) -> Points:
    """Read a file of points: CSV with x, y, z in mm, or one of 3D Slicer's (``.fcsv``, ``.mrk.json``, its CSV).

    Args:
        frame: what x, y, z of a CSV are, RAS if None. Slicer's files say it themselves.

    Raises:
        InputError: as ``tables.read_table``; no point, or something that is not a finite number.
        UsageError: a frame that contradicts the file's own.
    """
    table = read_table(path)
    if frame is not None and table.frame is not None and frame != table.frame:
        raise UsageError(f"{path} is in {table.frame.upper()} by its own word: leave out `points_frame` {frame}")
    points = table.positions.T
    if not np.isfinite(points).all(axis=0).any():
        raise InputError(f"{path} has no landmarks, or some that are not finite")
    frame = table.frame or frame or "ras"
    world = transform_points(LPS_FROM_RAS, points) if frame == "lps" else points
    return Points(world, frame, table, path)


def carry(points: Points, world_map: WorldMap) -> CarriedPoints:
    """Through a map that starts in their image: forward for fixed points, the inverse for moving ones."""
    defined = points.defined
    world, inside = points.world.copy(), np.zeros(defined.shape, dtype=bool)
    displacement, inside[defined] = world_map.displacement_mm(points.world[:, defined])
    world[:, defined] += displacement
    return CarriedPoints(points, world, inside)


def save_points(path: Path, carried: CarriedPoints) -> None:
    """The same file with other positions, in its own form and frame. Raises OSError."""
    source = carried.source
    world = transform_points(LPS_FROM_RAS, carried.world) if source.frame == "lps" else carried.world
    source.table.save(path, world.T, carried.inside)

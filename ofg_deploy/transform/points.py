"""Tables of world points (CSV with x, y, z in mm): read, carried through a map, written with all their columns."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import LPS_FROM_RAS, Matrix, transform_points
from ofg_deploy.outputs import read_text
from ofg_deploy.transform.maps import Inside, WorldMap

PointsFrame = Literal["ras", "lps"]


@dataclass(frozen=True, eq=False)
class Points:
    """Points of one image's space.

    Attributes:
        world: (3, N) RAS mm.
        frame: the world of the table, in which it is written again.
        header: its columns. rows: its cells.
        path: the file it came from.
    """

    world: Matrix
    frame: PointsFrame
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    path: Path


@dataclass(frozen=True, eq=False)
class CarriedPoints:
    """Points in the other image's space: (3, N) RAS mm, and whether the map knows where each goes."""

    source: Points
    world: Matrix
    inside: Inside

    def warnings(self) -> list[str]:
        """How many of them the map does not know, in one line."""
        if self.inside.all():
            return []
        return [
            f"{self.source.path.name}: {int((~self.inside).sum())} of {self.inside.size} points lie where the "
            "transform is unknown, outside its field of view: nan, and inside=0 in the table"
        ]


def load_points(path: Path, frame: PointsFrame) -> Points:
    """Read a CSV whose header names x, y, z; other columns are kept as they are.

    Raises:
        InputError: no such columns, no row, or something that is not a finite number.
    """
    reader = csv.reader(read_text(path).splitlines())
    try:
        header, *rows = [row for row in reader if row] or [[]]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    columns = {name.strip().lower(): at for at, name in enumerate(header)}
    if not {"x", "y", "z"} <= columns.keys():
        raise InputError(f"{path} has the columns {list(columns)}: a header with x, y, z (world mm) is needed")
    try:
        numbers = [[float(row[columns[axis]]) for axis in "xyz"] for row in rows]
    except (IndexError, ValueError) as error:
        raise InputError(f"{path}: x, y and z must be numbers in every row ({error})") from error
    points = np.array(numbers, dtype=np.float64).reshape(-1, 3).T
    if not points.size or not np.isfinite(points).all():
        raise InputError(f"{path} has no landmarks, or some that are not finite")
    world = transform_points(LPS_FROM_RAS, points) if frame == "lps" else points
    return Points(world, frame, tuple(header), tuple(tuple(row) for row in rows), path)


def carry(points: Points, world_map: WorldMap) -> CarriedPoints:
    """Through a map that starts in their image: forward for fixed points, the inverse for moving ones."""
    displacement, inside = world_map.displacement_mm(points.world)
    return CarriedPoints(points, points.world + displacement, inside)


def save_points(path: Path, carried: CarriedPoints) -> None:
    """The same table with other x, y, z, in its own frame, and a column ``inside`` (1 or 0). Raises OSError."""
    source = carried.source
    world = transform_points(LPS_FROM_RAS, carried.world) if source.frame == "lps" else carried.world
    at = {name.strip().lower(): column for column, name in enumerate(source.header)}
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*source.header, "inside"])
        for number, row in enumerate(source.rows):
            cells = [*row, *[""] * (len(source.header) - len(row))]
            for axis, name in enumerate("xyz"):
                cells[at[name]] = f"{world[axis, number]:.6f}" if carried.inside[number] else "nan"
            writer.writerow([*cells, int(carried.inside[number])])

"""Tables of world points (CSV with x, y, z in mm): read, carried through a map, written with all their columns."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import LPS_FROM_RAS, Matrix, transform_points
from ofg_deploy.outputs import read_csv
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
        ask = "" if self.inside.any() else "; are they world mm, and is --points-frame right?"
        return [
            f"{self.source.path.name}: {int((~self.inside).sum())} of {self.inside.size} points lie where the "
            f"transform is unknown, outside its field of view: nan, and inside=0 in the table{ask}"
        ]


def load_points(path: Path, frame: PointsFrame) -> Points:
    """Read a CSV whose header names x, y, z; other columns are kept as they are.

    Raises:
        InputError: as ``outputs.read_csv``; no such columns, no row, or something that is not a finite number.
    """
    header, rows = read_csv(path)
    columns = [name.strip().lower() for name in header]
    if not {"x", "y", "z"} <= set(columns):
        raise InputError(f"{path} has the columns {columns}: a header with x, y, z (world mm) is needed")
    try:
        numbers = [[_number(row[columns.index(axis)]) for axis in "xyz"] for row in rows]
    except ValueError as error:
        raise InputError(f"{path}: x, y and z must be numbers in every row ({error})") from error
    points = np.array(numbers, dtype=np.float64).reshape(-1, 3).T
    if not points.size or not np.isfinite(points).all():
        raise InputError(f"{path} has no landmarks, or some that are not finite")
    world = transform_points(LPS_FROM_RAS, points) if frame == "lps" else points
    return Points(world, frame, tuple(header), tuple(map(tuple, rows)), path)


def _number(text: str) -> float:
    if "_" in text:  # Python takes 1_5 for 15
        raise ValueError(f"could not convert string to float: {text!r}")
    return float(text)


def carry(points: Points, world_map: WorldMap) -> CarriedPoints:
    """Through a map that starts in their image: forward for fixed points, the inverse for moving ones."""
    displacement, inside = world_map.displacement_mm(points.world)
    return CarriedPoints(points, points.world + displacement, inside)


def save_points(path: Path, carried: CarriedPoints) -> None:
    """The same table with other x, y, z, in its own frame, and ``inside`` (1 or 0) in place of one it may have.

    Raises OSError.
    """
    source = carried.source
    world = transform_points(LPS_FROM_RAS, carried.world) if source.frame == "lps" else carried.world
    names = [name.strip().lower() for name in source.header]
    kept = [column for column, name in enumerate(names) if name != "inside"]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*(source.header[column] for column in kept), "inside"])
        for row, point, inside in zip(source.rows, world.T, carried.inside, strict=True):
            moved = {axis: f"{value:.6f}" if inside else "nan" for axis, value in zip("xyz", point, strict=True)}
            writer.writerow([*(moved.get(names[column], row[column]) for column in kept), int(inside)])

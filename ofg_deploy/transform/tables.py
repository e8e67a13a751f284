"""Files of points in the forms people have: CSV of ours, and 3D Slicer's ``.fcsv``, ``.mrk.json`` and table (CSV).

Each is read into a table that keeps everything it holds, and is written back in the same form with other positions.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError
from ofg_deploy.options.words import PointsFrame
from ofg_deploy.outputs import parse_csv, read_csv, read_json, read_text, to_json
from ofg_deploy.records import fitted

Places = npt.NDArray[np.float64]  # (N, 3), in the frame of the file
Mask = npt.NDArray[np.bool_]  # (N,)

ENDINGS = (".fcsv", ".mrk.json", ".json", ".csv")
FRAMES: dict[str, PointsFrame] = {"0": "ras", "1": "lps", "RAS": "ras", "LPS": "lps"}  # as Slicer writes them
AXES: tuple[tuple[str, PointsFrame | None], ...] = (("xyz", None), ("lps", "lps"), ("ras", "ras"))
# Of an .fcsv that names none: what Slicer 4 and 5 write.
FCSV_COLUMNS = ["id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label", "desc", "associatedNodeID"]
MOST = float(np.finfo(np.float64).max)  # whole numbers of JSON have no end
OF_POINTS = ("Fiducial", "Line", "Angle", "Curve", "ClosedCurve")  # others have a size or axes beside their points


class Table(Protocol):
    """A file of points as read."""

    @property
    def frame(self) -> PointsFrame | None:
        """Of its positions by its own word; None where it says nothing."""
        ...

    @property
    def positions(self) -> Places:
        """(N, 3), nan where a point is not defined."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Of each point, "" for none."""
        ...

    def save(self, path: Path, positions: Places, known: Mask) -> None:
        """The same file with other positions; a point that is not known has none. Raises OSError."""
        ...


def ending(path: Path) -> str:
    """Which form a file of points has by its name: one of ``ENDINGS``; anything else is read as CSV."""
    return next((e for e in ENDINGS if path.name.lower().endswith(e)), ".csv")


def read_table(path: Path) -> Table:
    """Read a file of points.

    Raises:
        InputError: not such a file, or no number where a position should be.
    """
    kind = ending(path)
    if kind == ".fcsv":
        return _read_fcsv(path)
    return _read_markups(path) if kind.endswith(".json") else _read_csv(path)


@dataclass(frozen=True, eq=False)
class CsvTable:
    """Rows and columns; ``before`` are the lines of an ``.fcsv`` that come first, None for a CSV with a header."""

    frame: PointsFrame | None
    positions: Places
    labels: tuple[str, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    axes: str
    before: tuple[str, ...] | None = None

    def save(self, path: Path, positions: Places, known: Mask) -> None:
        """As ``Table``: a CSV of ours gets ``inside`` (1 or 0), Slicer's its own ``defined``."""
        names = [name.strip().lower() for name in self.header]
        ours = self.axes == "xyz" and self.before is None
        kept = [column for column, name in enumerate(names) if not (ours and name == "inside")]
        with path.open("w", encoding="utf-8", newline="") as stream:
            stream.writelines(f"{line}\n" for line in self.before or ())
            writer = csv.writer(stream, lineterminator="\n")
            if self.before is None:
                writer.writerow([*(self.header[column] for column in kept), *(["inside"] if ours else [])])
            for row, point, inside in zip(self.rows, positions, known, strict=True):
                new = {a: f"{value:.6f}" if inside else "nan" for a, value in zip(self.axes, point, strict=True)}
                if not inside and self.axes != "xyz":
                    new["defined"] = "0"
                cells = [new.get(names[column], row[column]) for column in kept]
                writer.writerow([*cells, *([int(inside)] if ours else [])])


@dataclass(frozen=True, eq=False)
class MarkupsTable:
    """A ``.mrk.json`` of 3D Slicer: every control point of its markups, in order."""

    frame: PointsFrame | None
    positions: Places
    labels: tuple[str, ...]
    document: Any

    def save(self, path: Path, positions: Places, known: Mask) -> None:
        """As ``Table``; the orientations of control points stay as they are."""
        document = deepcopy(self.document)
        points = [point for markup in document["markups"] for point in markup["controlPoints"]]
        for point, place, inside in zip(points, positions, known, strict=True):
            if inside:
                point["position"] = [round(float(value), 6) for value in place]
            else:
                point.pop("position", None)
                point["positionStatus"] = "undefined"
        path.write_text(to_json(document), encoding="utf-8")


def _read_csv(path: Path) -> CsvTable:
    header, rows = read_csv(path)
    names = [name.strip().lower() for name in header]
    found = [(axes, frame) for axes, frame in AXES if set(axes) <= set(names)]
    if len(found) != 1:
        which = "exactly one of x, y, z and l, p, s and r, a, s is needed"
        raise InputError(
            f"{path} has the columns {names}: {which}"
            if found
            else f"{path} has the columns {names}: a header with x, y, z (world mm), or 3D Slicer's l, p, s, is needed"
        )
    axes, frame = found[0]
    return _with_cells(path, CsvTable(frame, np.empty((0, 3)), (), tuple(header), tuple(map(tuple, rows)), axes))


def _read_fcsv(path: Path) -> CsvTable:
    lines = read_text(path).splitlines()
    before = tuple(line for line in lines if line.startswith("#"))
    said = {key.strip().lower(): value.strip() for key, _, value in (line[1:].partition("=") for line in before)}
    system = said.get("coordinatesystem", "0")  # versions before it was written were RAS
    if system.upper() not in FRAMES:
        raise InputError(f"{path} has CoordinateSystem {system!r}: LPS or RAS is needed (or 1 or 0)")
    header = said["columns"].split(",") if said.get("columns") else FCSV_COLUMNS
    names = [name.strip().lower() for name in header]
    if not {"x", "y", "z"} <= set(names):
        raise InputError(f"{path} has the columns {names}: x, y and z are needed among them")
    text = "\n".join(line for line in lines if not line.startswith("#"))
    _, rows = parse_csv(f"{','.join(header)}\n{text}", path)
    table = CsvTable(
        FRAMES[system.upper()], np.empty((0, 3)), (), tuple(header), tuple(map(tuple, rows)), "xyz", before
    )
    return _with_cells(path, table)


def _with_cells(path: Path, table: CsvTable) -> CsvTable:
    """The table with its positions and labels, from its cells."""
    names = [name.strip().lower() for name in table.header]
    columns = [names.index(axis) for axis in table.axes]
    defined = names.index("defined") if table.axes != "xyz" and "defined" in names else None
    try:
        positions = [
            [float("nan")] * 3
            if defined is not None and row[defined].strip() == "0"
            else [_number(row[column]) for column in columns]
            for row in table.rows
        ]
    except ValueError as error:
        axes = f"{table.axes[0]}, {table.axes[1]} and {table.axes[2]}"
        raise InputError(f"{path}: {axes} must be numbers in every row ({error})") from error
    by = next((name for name in ("label", "name", *(["id"] if table.before is None else [])) if name in names), None)
    labels = tuple(row[names.index(by)].strip() if by else "" for row in table.rows)
    return replace(table, positions=np.array(positions, dtype=np.float64).reshape(-1, 3), labels=labels)


def _number(text: str) -> float:
    if "_" in text:  # Python takes 1_5 for 15
        raise ValueError(f"could not convert string to float: {text!r}")
    value = float(text)
    if not np.isfinite(value):
        raise ValueError(f"not finite: {text!r}")
    return value


def _read_markups(path: Path) -> MarkupsTable:
    document = read_json(path)
    needed = "markups with controlPoints and their position are needed"
    markups = fitted(document, _Markups, f"{path} is no markups file of 3D Slicer", needed).markups
    frames = {_frame_of(markup, path) for markup in markups}
    points = [point for markup in markups for point in markup.control_points]
    if len(frames) > 1:
        raise InputError(f"{path} has markups in LPS and in RAS: save each of them as a file of its own")
    positions = np.array([_position(point, path) for point in points], dtype=np.float64).reshape(-1, 3)
    labels = tuple(str(point.label or "").strip() for point in points)
    return MarkupsTable(next(iter(frames), None), positions, labels, document)


class _Point(msgspec.Struct, rename="camel"):
    """A control point; its position is ``[x, y, z]`` where it is defined."""

    position: list[Any] = []
    position_status: Any = "defined"
    label: Any = ""


class _Markup(msgspec.Struct, rename="camel"):
    """One of a file's markups."""

    control_points: list[_Point]
    type: Any = "Fiducial"
    coordinate_system: Any = "LPS"
    coordinate_units: str | list[str] = "mm"


class _Markups(msgspec.Struct):
    """What is read of a ``.mrk.json``."""

    markups: list[_Markup]


def _frame_of(markup: _Markup, path: Path) -> PointsFrame:
    if markup.type not in OF_POINTS:
        raise InputError(
            f"{path} holds a markup of type {markup.type}: only its points could be moved, not its axes and size"
        )
    system = str(markup.coordinate_system).upper()
    if system not in FRAMES:
        raise InputError(f"{path} has coordinateSystem {system!r}: LPS or RAS is needed")
    units = markup.coordinate_units
    if {*([units] if isinstance(units, str) else units)} - {"mm"}:
        raise InputError(f"{path} has coordinateUnits {units!r}: mm is needed")
    return FRAMES[system]


def _position(point: _Point, path: Path) -> Sequence[float]:
    if point.position_status != "defined":
        return [float("nan")] * 3
    numbers = [v for v in point.position if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != 3 or len(point.position) != 3 or not all(abs(v) <= MOST for v in numbers):  # False for NaN
        raise InputError(f"{path} has the position {json.dumps(point.position)}: three finite numbers are needed")
    return [float(value) for value in point.position]

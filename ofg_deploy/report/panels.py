"""What is shown of a registration: fixed, moving, warped, checkerboard, differences, grid, Jacobian, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Matrix
from ofg_deploy.nifti import Volume, load_image, load_labels, load_transform
from ofg_deploy.report.measures import NONE
from ofg_deploy.report.png import FIXED, FOLD, MOVING, Index, grey, signed
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.view import Picture, View, Window, best_view, views

Points = npt.NDArray[np.float64]  # (points, 2): mm from the left and the bottom edge of a picture

SQUARES = 8  # of a checkerboard along the longer side
LINES = 20  # of the deformation grid along the longer side
KNOTS = 64  # of a line of it, about
OUTLINED = 12  # labels at most


@dataclass(frozen=True, eq=False)
class Curve:
    """Polylines in one colour; ``dashed`` tells them from others without colour."""

    colour: str
    lines: list[Points]
    dashed: bool = False


@dataclass(frozen=True, eq=False)
class Plane:
    """A panel's picture in one plane: an image, or curves over the fixed image, faint."""

    view: View
    image: Index | None
    curves: tuple[Curve, ...] = ()


@dataclass(frozen=True, eq=False)
class Panel:
    """One aspect of a registration in every plane.

    Attributes:
        key: a name without spaces.
        title, note: what it is, and the number of the whole volume that belongs to it.
    """

    key: str
    title: str
    note: str
    planes: tuple[Plane, ...]


@dataclass(frozen=True, eq=False)
class Shown:
    """What panels are drawn from.

    Attributes:
        fixed, moving: as they were registered.
        warped: (X, Y, Z) on the fixed grid.
        total: (3, X, Y, Z) RAS mm on the fixed grid, the total map.
        moving_from_fixed: (4, 4) the initial alignment.
        numbers: measures by name.
        labels: the fixed and the warped label map on the fixed grid; None without them.
    """

    fixed: Volume
    moving: Volume
    warped: npt.NDArray[Any]
    total: npt.NDArray[np.float32]
    moving_from_fixed: Matrix
    numbers: Mapping[str, Any]
    labels: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None


def panels(registration: Registration, one_plane: bool = False, radiological: bool = False) -> list[Panel]:
    """Every panel of a registration, from its files; labels only where there are some.

    Args:
        one_plane: only the plane of acquisition.
        radiological: the patient's right is on the left of axial and coronal pictures.

    Raises:
        InputError: a file is missing, damaged, or changed since.
    """
    fixed, moving = (load_image(registration.file(role)) for role in ("fixed", "moving"))
    warped = load_image(registration.file("warped"), constant=True).data
    total = load_transform(registration.file("transform"))[0]
    labels = None
    if registration.labelled:
        first, second = (load_labels(registration.file(role)).data for role in ("fixed_labels", "warped_labels"))
        labels = first, second
    for shape in (warped.shape, total.shape[1:], *(data.shape for data in labels or ())):
        _check_grid(registration, fixed, shape)
    shown = Shown(fixed, moving, warped, total, registration.moving_from_fixed, registration.numbers, labels)
    return panels_of(shown, one_plane, radiological)


def panels_of(of: Shown, one_plane: bool = False, radiological: bool = False) -> list[Panel]:
    """As ``panels``, from what is in memory."""
    fixed, numbers = of.fixed, of.numbers
    window, other = Window(fixed.data), Window(of.moving.data)
    found = [best_view(fixed, window, radiological)] if one_plane else views(fixed, window, radiological)
    target = [window(view.cut(fixed.data)) for view in found]
    start = [other(view.cut_moving(of.moving)) for view in found]
    result = [other(view.cut(of.warped)) for view in found]
    boards = [checkerboard(f, w, v.size_mm) for f, w, v in zip(target, result, found, strict=True)]

    def panel(key: str, title: str, note: str, pictures: list[Index]) -> Panel:
        planes = zip(found, pictures, strict=True)
        return Panel(key, title, note, tuple(Plane(view, _shrink(picture, view.block)) for view, picture in planes))

    shown = [
        panel("fixed", "fixed", "", [grey(p) for p in target]),
        panel("moving", "moving", "before registration", [grey(p) for p in start]),
        panel("warped", "warped", "", [grey(p) for p in result]),
        panel("checkerboard", "checkerboard", "fixed and warped", [grey(p) for p in boards]),
    ]
    for when, pictures in (("before", start), ("after", result)):
        differences = [signed(p - f) for p, f in zip(pictures, target, strict=True)]
        shown.append(panel(when, f"difference {when}", _note(numbers, f"ncc_{when}", "NCC {:.3f}"), differences))
    moves = [view.cut_deformation(of.total, of.moving_from_fixed) for view in found]
    curves = [(Curve(MOVING, lattice(view, *move)),) for view, move in zip(found, moves, strict=True)]
    note = _note(numbers, "displacement_mm_max", "up to {:.1f} mm")
    shown.append(Panel("grid", "deformation", note, _over(found, curves)))
    note = _note(numbers, "folding_percent", "folding {:.3f} %")
    jacobians = [jacobian_picture(view.cut_determinant(of.total)) for view in found]
    shown.append(panel("jacobian", "log Jacobian", note, jacobians))
    if of.labels:
        shown.append(_labels(of.labels, numbers, found))
    return shown


def checkerboard(fixed: Picture, warped: Picture, size_mm: tuple[float, float]) -> Picture:
    """Squares of both pictures in turn, the fixed one at the bottom left; a square is 1/8 of the longer side in mm."""
    side = max(size_mm) / SQUARES
    row, column = (
        ((np.arange(count) + 0.5) * mm / count // side).astype(int)
        for count, mm in zip(fixed.shape, size_mm[::-1], strict=True)
    )
    return np.where((row[:, None] + column) % 2 == 0, fixed, warped)


def jacobian_picture(determinant: Picture) -> Index:
    """Orange where volume grows from fixed to moving, blue where it shrinks, from 1/4 to 4; white where it folds."""
    shown = signed(np.log2(np.clip(determinant, 0.25, 4)) / 2)
    shown[determinant <= 0] = FOLD
    return shown


def lattice(view: View, dx: Picture, dy: Picture) -> list[Points]:
    """Where the lines of a regular lattice go that are displaced by dx, dy mm."""
    x, y = view.centres_mm()
    spacing = max(view.size_mm) / LINES
    columns, rows = (_every(at, spacing) for at in (x[0], y[:, 0]))
    where = np.stack([x + dx, y + dy], axis=-1)
    up, across = (max(1, count // KNOTS) for count in x.shape)
    return [*(where[::up, at] for at in columns), *(where[at, ::across] for at in rows)]


def outlines(view: View, labels: Picture) -> list[Points]:
    """The border of every label along the edges of its pixels, each stretch once."""
    rows, columns = labels.shape
    mm = np.array(view.size_mm) / (columns, rows)
    padded = np.pad(labels, 1)
    found = []
    for axis in (0, 1):  # borders between a row and the next, then between columns
        lines = np.diff(padded, axis=axis) != 0 if axis == 0 else (np.diff(padded, axis=axis) != 0).T
        inner = np.pad(lines[:, 1:-1], ((0, 0), (1, 1))).astype(np.int8)
        for at, row in enumerate(np.diff(inner, axis=1)):
            starts, stops = np.flatnonzero(row == 1), np.flatnonzero(row == -1)
            for start, stop in zip(starts, stops, strict=True):
                ends = [(start, at), (stop, at)] if axis == 0 else [(at, start), (at, stop)]
                found.append(np.array(ends) * mm)
    return found


def thumbnail(registration: Registration, side: int, radiological: bool = False) -> tuple[Index, float]:
    """The warped image and its difference to the fixed one, side by side and small; and width over height.

    Raises:
        InputError: a file is missing, damaged, or changed since; the moving image is looked at, too.
    """
    registration.file("moving")
    fixed, warped = load_image(registration.file("fixed")), load_image(registration.file("warped"), constant=True)
    _check_grid(registration, fixed, warped.data.shape)
    window = Window(fixed.data)
    view = best_view(fixed, window, radiological)
    target, result = window(view.cut(fixed.data)), Window(warped.data)(view.cut(warped.data))
    block = min(-(-max(result.shape) // side), *result.shape)
    parts = [grey(_mean(result, block)), signed(_mean(result - target, block))]
    return np.concatenate(parts, axis=1), 2 * view.size_mm[0] / view.size_mm[1]


def _labels(maps: tuple[npt.NDArray[Any], npt.NDArray[Any]], numbers: Mapping[str, Any], found: list[View]) -> Panel:
    seen = largest_labels([view.cut(maps[0]) for view in found])
    outlined = seen[:OUTLINED]
    fixed_lines, warped_lines = (
        [outlines(view, np.where(np.isin(cut := view.cut(data), outlined), cut, 0)) for view in found] for data in maps
    )
    curves = [
        (Curve(FIXED, ours), Curve(MOVING, theirs, dashed=True))
        for ours, theirs in zip(fixed_lines, warped_lines, strict=True)
    ]
    before, after = (_note(numbers, f"dice_{when}", "{:.3f}") for when in ("before", "after"))
    note = f"Dice {before or NONE} → {after or NONE}"
    if len(seen) > OUTLINED:  # more outlines would hide each other
        note += f", the largest {OUTLINED} of {len(seen)} labels outlined"
    return Panel("labels", "labels", note, _over(found, curves))


def largest_labels(cuts: Sequence[Picture]) -> list[int]:
    """Every label other than 0 in these pictures, those with the largest area first."""
    values, counts = np.unique(np.concatenate([cut[cut != 0].ravel() for cut in cuts]), return_counts=True)
    return [int(value) for value in values[np.argsort(-counts, kind="stable")]]


def _over(found: list[View], curves: Sequence[tuple[Curve, ...]]) -> tuple[Plane, ...]:
    return tuple(Plane(view, None, drawn) for view, drawn in zip(found, curves, strict=True))


def _every(at_mm: npt.NDArray[Any], spacing: float) -> list[int]:
    """Indices of pixels about ``spacing`` mm apart, none twice."""
    wanted = np.arange(at_mm[0] + spacing / 2, at_mm[-1] + spacing / 2, spacing)
    return sorted({int(np.abs(at_mm - mm).argmin()) for mm in wanted})


def _shrink(picture: Index, block: int) -> Index:
    """Averages over blocks; a fold stays one."""
    if block == 1:
        return picture
    folds = _mean(picture == FOLD, block) > 0
    return np.where(folds, np.uint8(FOLD), np.round(_mean(picture, block)).astype(np.uint8))


def _mean(picture: Picture, block: int) -> Picture:
    """Averages over square blocks; what fills no block is left out."""
    rows, columns = (n // block for n in picture.shape)
    blocks = picture[: rows * block, : columns * block].reshape(rows, block, columns, block)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _note(numbers: Mapping[str, Any], key: str, form: str) -> str:
    value = numbers.get(key)
    return "" if value is None else form.format(value)


def _check_grid(registration: Registration, fixed: Volume, shape: tuple[int, ...]) -> None:
    if shape != fixed.grid.shape:
        said = f"{shape}, not that of the fixed image, {fixed.grid.shape}"
        raise InputError(f"an output of {registration.sidecar} has the shape {said}: register again")

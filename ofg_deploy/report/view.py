"""A slice of the fixed image that is worth looking at, and how arrays become upright pictures of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from ofg_deploy.background import Background
from ofg_deploy.field import jacobian_determinant, sample
from ofg_deploy.geometry import Matrix, canonical, transform_points
from ofg_deploy.nifti import Volume

Picture = npt.NDArray[Any]  # (height, width), row 0 at the bottom

NAMES = ("sagittal", "coronal", "axial")  # planes by the canonical axis they are cut across
COARSEST = 4.0  # a plane whose pixels are this many times longer than wide shows stripes
CANDIDATES = 24  # slices looked at for the one with most contrast
LARGEST = 320  # pixels of a side; larger pictures are averaged over blocks
CONTENT = 0.05  # of the intensity window: above it there is something to see


class Window:
    """Intensities as shown: 0..1 between the 0.5 and the 99.5 percentile of the whole image (X, Y, Z)."""

    def __init__(self, whole: npt.NDArray[Any]) -> None:
        self.low, self.high = np.percentile(whole, (0.5, 99.5))

    def __call__(self, picture: Picture) -> Picture:
        """Values of the image -> 0..1."""
        if self.high == self.low:  # nearly all of it has one value
            return np.asarray(np.sign(picture - self.low).clip(0, 1))
        return np.asarray(np.clip((picture - self.low) / (self.high - self.low), 0, 1))


class View:
    """One slice across a canonical axis (0 sagittal, 1 coronal, 2 axial): that with most contrast in the middle half.

    Pictures are cropped to the content of the fixed image and a margin; they stand upright in canonical axes, the
    patient's right on the right, or on the left where the view is ``radiological``.

    Attributes:
        name: of the plane.
        block: pixels averaged into one, along both sides, so that no side is longer than ``LARGEST``; never more than
            the shorter side has.
        size_mm: width and height of a picture.
        ends: anatomical letters of its left and right edge.
    """

    def __init__(self, fixed: Volume, across: int, window: Window, radiological: bool = False) -> None:
        axes = "LAS" if radiological else "RAS"
        self._orientation = ornt_transform(io_orientation(fixed.grid.world_from_vox), axcodes2ornt(axes))
        self._grid = canonical(fixed.grid, axes)
        self._across = across
        self._plane = [axis for axis in range(3) if axis != across]
        self.name = NAMES[across]
        self.ends = "PA" if across == 0 else "RL" if radiological else "LR"
        self._pixel_mm = [self._grid.spacing_mm[axis] for axis in self._plane]
        slices = np.moveaxis(self._upright(fixed.data), across, 0)
        self._index = _most_contrast(slices)
        rows, columns = _content(window(slices[self._index].T) > CONTENT, self._pixel_mm)
        sides = rows.stop - rows.start, columns.stop - columns.start
        self.block = min(-(-max(sides) // LARGEST), *sides)
        rows, columns = (slice(s.start, s.stop - (s.stop - s.start) % self.block) for s in (rows, columns))
        self._box = rows, columns
        self.size_mm = (
            (columns.stop - columns.start) * self._pixel_mm[0],
            (rows.stop - rows.start) * self._pixel_mm[1],
        )

    def cut(self, data: npt.NDArray[Any]) -> Picture:
        """(X, Y, Z) on the fixed grid -> picture."""
        return np.asarray(self._upright(data).take(self._index, self._across).T[self._box])

    def cut_moving(self, moving: Volume) -> Picture:
        """The moving image where its header puts it: linear, its background outside; no more is computed than seen."""
        moving_from_here = moving.grid.vox_from_world @ self._grid.world_from_vox
        empty = Background.of(moving.data).value
        return sample(moving.data, transform_points(moving_from_here, self._indices()), fill=empty)

    def centres_mm(self) -> tuple[Picture, Picture]:
        """Horizontal and vertical position of every pixel's centre, from the left and bottom edge."""
        rows, columns = self._box
        x = (np.arange(columns.stop - columns.start) + 0.5) * self._pixel_mm[0]
        y = (np.arange(rows.stop - rows.start) + 0.5) * self._pixel_mm[1]
        across, up = np.meshgrid(x, y)
        return across, up

    def cut_determinant(self, total_mm: npt.NDArray[np.float32]) -> Picture:
        """(3, X, Y, Z) RAS mm -> Jacobian determinant of x + u."""
        first = max(self._index - 1, 0)  # with its neighbours, for the central differences
        near = range(first, min(self._index + 2, self._grid.shape[self._across]))
        slab = np.stack([self._upright(component).take(near, self._across) for component in total_mm])
        determinant = np.moveaxis(jacobian_determinant(slab, self._grid.world_from_vox), self._across, 0)
        return np.asarray(determinant[self._index - first].T[self._box])

    def cut_deformation(self, total_mm: npt.NDArray[np.float32], moving_from_fixed: Matrix) -> tuple[Picture, Picture]:
        """Horizontal and vertical displacement in mm without the affine start A: A^-1 (x + u) - x."""
        points = transform_points(self._grid.world_from_vox, self._indices())
        total = np.array([self.cut(component) for component in total_mm], dtype=np.float64)
        away = transform_points(np.linalg.inv(moving_from_fixed).astype(np.float64), points + total) - points
        directions = self._grid.world_from_vox[:3, :3] / np.array(self._grid.spacing_mm)
        dx, dy = (np.tensordot(directions[:, axis], away, axes=1) for axis in self._plane)
        return dx, dy

    def _indices(self) -> Matrix:
        """(3, height, width) canonical voxel index of every pixel."""
        rows, columns = self._box
        index = np.empty((3, rows.stop - rows.start, columns.stop - columns.start))
        index[self._across] = self._index
        index[self._plane[0]] = np.arange(columns.start, columns.stop)
        index[self._plane[1]] = np.arange(rows.start, rows.stop)[:, None]
        return index

    def _upright(self, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(apply_orientation(data, self._orientation))


def best_view(fixed: Volume, window: Window, radiological: bool = False) -> View:
    """The plane of acquisition: across the axis with the largest voxels, axial where they are about equal."""
    spacing = np.array(canonical(fixed.grid).spacing_mm)
    sizes = np.round(2 * spacing / spacing.min())
    return View(fixed, 2 - int(np.argmax(sizes[::-1])), window, radiological)


def views(fixed: Volume, window: Window, radiological: bool = False) -> list[View]:
    """Axial, coronal, sagittal, but for planes whose pixels are too long to make a picture of."""
    spacing = canonical(fixed.grid).spacing_mm
    planes = {axis: [spacing[a] for a in range(3) if a != axis] for axis in (2, 1, 0)}
    fine = [axis for axis, sides in planes.items() if max(sides) < COARSEST * min(sides)]
    return [View(fixed, axis, window, radiological) for axis in fine] or [best_view(fixed, window, radiological)]


def _most_contrast(slices: npt.NDArray[Any]) -> int:
    """(slices, ., .) -> index of the one with the largest sum of edges, in the middle half."""
    quarter = len(slices) // 4
    step = max(1, (len(slices) - 2 * quarter) // CANDIDATES)
    candidates = range(quarter, len(slices) - quarter, step)
    edges = [sum(float(np.abs(g).sum(dtype=np.float64)) for g in np.gradient(slices[at])) for at in candidates]
    return candidates[int(np.argmax(edges))]


def _content(there: npt.NDArray[np.bool_], pixel_mm: list[float]) -> tuple[slice, slice]:
    """Rows and columns of the content and a margin of 6 %; everything where there is no content."""
    if not there.any():
        return slice(0, there.shape[0]), slice(0, there.shape[1])
    spans = [np.flatnonzero(there.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    sizes_mm = [(high - low + 1) * mm for (low, high), mm in zip(spans, pixel_mm[::-1], strict=True)]
    found = []
    for (low, high), mm, length in zip(spans, pixel_mm[::-1], there.shape, strict=True):
        margin = int(0.06 * max(sizes_mm) / mm)
        found.append(slice(int(max(0, low - margin)), int(min(length, high + 1 + margin))))
    return found[0], found[1]

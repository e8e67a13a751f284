"""Where voxels lie in the world: float64 affines, RAS+ millimetres, no image data.

Names: a matrix called ``a_from_b`` maps b coordinates to a coordinates. Voxel centres sit at integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import aff2axcodes, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from ofg_deploy.errors import GeometryError

Matrix = npt.NDArray[np.float64]
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

# Cosine between two axes above which an affine counts as sheared. Rounding in float32 headers stays below 1e-5;
# beyond 1e-3 other tools refuse the file or silently read another orientation.
ORTHONORMAL_TOLERANCE = 1e-3

# RAS <-> LPS is its own inverse. World coordinates are RAS everywhere inside; LPS exists only at file boundaries.
LPS_FROM_RAS: Matrix = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular lattice of voxels in the world.

    Attributes:
        shape: voxels along each array axis (X, Y, Z).
        world_from_vox: (4, 4) float64, voxel index -> RAS+ mm.

    Raises:
        GeometryError: an axis shorter than 2 voxels, or an affine that is not finite, singular or sheared.
    """

    shape: Shape
    world_from_vox: Matrix

    def __post_init__(self) -> None:
        matrix = np.array(self.world_from_vox, dtype=np.float64)
        if len(self.shape) != 3 or min(self.shape) < 2:
            raise GeometryError(f"shape {self.shape} is not a volume: three axes of at least 2 voxels are needed")
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1]):
            raise GeometryError("the affine is not a finite 4x4 matrix with last row 0 0 0 1")
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        if lengths.min() <= 1e-6 * lengths.max():  # whatever the unit: a cell is as good a volume as a whole body
            raise GeometryError(f"the affine is singular: voxel sizes {_show(lengths)} mm")
        directions = matrix[:3, :3] / lengths
        if np.abs(directions.T @ directions - np.eye(3)).max() > ORTHONORMAL_TOLERANCE:
            raise GeometryError(
                "the affine is not orthonormal (sheared axes): resample the image onto an unsheared grid first"
            )
        matrix.flags.writeable = False
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "world_from_vox", matrix)

    @property
    def vox_from_world(self) -> Matrix:
        """(4, 4) float64, RAS+ mm -> voxel index."""
        return np.asarray(np.linalg.inv(self.world_from_vox), dtype=np.float64)

    @property
    def spacing_mm(self) -> Spacing:
        """Voxel size along each array axis, in mm."""
        x, y, z = np.linalg.norm(self.world_from_vox[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str:
        """Closest anatomical axis of each array axis, for example ``RAS`` or ``LIA``."""
        return "".join(aff2axcodes(self.world_from_vox))

    def corners_mm(self) -> Matrix:
        """(3, 8) world positions of the outer corners of the field of view (voxel faces, not centres)."""
        upper = np.array(self.shape, dtype=np.float64) - 0.5
        corners = np.array(np.meshgrid(*[(-0.5, u) for u in upper], indexing="ij")).reshape(3, 8)
        return transform_points(self.world_from_vox, corners)


def transform_points(matrix: Matrix, points: Matrix) -> Matrix:
    """Apply a (4, 4) matrix to points of shape (3, ...)."""
    offset = matrix[:3, 3].reshape(3, *[1] * (points.ndim - 1))
    return np.asarray(np.tensordot(matrix[:3, :3], points, axes=1) + offset)


def lattice(shape: Shape) -> Matrix:
    """(3, X, Y, Z) float64: the index of every voxel, components in array-axis order."""
    return np.indices(shape, dtype=np.float64)


def in_view(index: Matrix, shape: Shape) -> npt.NDArray[np.bool_]:
    """Which voxel positions (3, ...) lie in the field of view: a voxel reaches half a voxel beyond its centre."""
    upper = np.array(shape, dtype=np.float64).reshape(3, *[1] * (index.ndim - 1)) - 0.5
    return np.asarray(((index >= -0.5) & (index <= upper)).all(axis=0))


def thinned(shape: Shape) -> tuple[tuple[Any, ...], Matrix]:
    """At most 16 voxels along each axis, faces included: what picks them from an array, and their index (3, ...)."""
    picked: tuple[Any, ...] = np.ix_(*(np.unique(np.linspace(0, n - 1, 16).round().astype(int)) for n in shape))
    return picked, np.stack(np.broadcast_arrays(*picked)).astype(np.float64)


def canonical(grid: Grid, axes: str = "RAS") -> Grid:
    """The same voxels with axes permuted and flipped to lie closest to ``axes``. Oblique grids stay oblique."""
    orientation = ornt_transform(io_orientation(grid.world_from_vox), axcodes2ornt(axes))
    shape = [0, 0, 0]
    for axis, (target, _) in enumerate(orientation):
        shape[int(target)] = grid.shape[axis]
    return Grid((shape[0], shape[1], shape[2]), grid.world_from_vox @ inv_ornt_aff(orientation, grid.shape))


def check_axes(axes: str) -> None:
    """Raises GeometryError unless ``axes`` names three anatomical directions, as RAS or LIA do."""
    if len(axes) != 3 or sorted({"L": "R", "P": "A", "I": "S"}.get(a, a) for a in axes) != ["A", "R", "S"]:
        raise GeometryError(f"axes {axes!r} name no orientation: three letters like RAS or LIA are needed")


def network_grid(fixed: Grid, shape: Shape, spacing_mm: Spacing, axes: str = "RAS") -> Grid:
    """The lattice a network works on: along the fixed image's own axes, centred on its field of view.

    Args:
        shape, spacing_mm: of the lattice, in the order of ``axes``.
        axes: anatomical directions of the lattice's axes; each goes along the fixed image's axis closest to it.

    Where an axis keeps the fixed image's spacing, the centre moves by at most half a voxel so that the voxels of
    both grids coincide: the fixed image is then cropped or padded, not blurred.
    """
    source = canonical(fixed, axes)
    step = np.array(spacing_mm) / np.array(source.spacing_mm)
    coincides = np.isclose(step, 1.0, atol=1e-4)
    step = np.where(coincides, 1.0, step)
    start = (np.array(source.shape) - 1) / 2 - step * (np.array(shape) - 1) / 2
    start = np.where(coincides, np.floor(start), start)
    source_from_network = np.diag([*step, 1.0])
    source_from_network[:3, 3] = start
    return Grid(shape, source.world_from_vox @ source_from_network)


def overlap_fraction(fixed: Grid, moving: Grid, moving_from_fixed: Matrix) -> float:
    """Share of the fixed field of view (0..1) that the map places inside the moving field of view.

    Counted on a 24x24x24 lattice over the fixed field of view.
    """
    steps = [(np.arange(24) + 0.5) / 24 * n - 0.5 for n in fixed.shape]
    points = np.array(np.meshgrid(*steps, indexing="ij"))
    index = transform_points(moving.vox_from_world @ moving_from_fixed @ fixed.world_from_vox, points)
    return float(in_view(index, moving.shape).mean())


def same_grid(a: Grid, b: Grid, voxels: float) -> bool:
    """Same shape, and no corner further apart than this share of the smallest voxel size."""
    return a.shape == b.shape and bool(np.abs(a.corners_mm() - b.corners_mm()).max() <= voxels * min(a.spacing_mm))


def corner_voxels(shape: Shape) -> Matrix:
    """(3, 8) indices of the voxels in the corners."""
    return np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), dtype=np.float64).reshape(3, 8)


def squared(world_from_vox: Matrix) -> Matrix:
    """(4, 4) with the axes turned to the nearest right angles; the first voxel and the voxel sizes stay.

    Nearest by polar decomposition. It is what a qform can hold of an affine.
    """
    sizes = np.linalg.norm(world_from_vox[:3, :3], axis=0)
    left, _, right = np.linalg.svd(world_from_vox[:3, :3] / sizes)
    matrix = world_from_vox.copy()
    matrix[:3, :3] = left @ right * sizes
    return matrix


def shear_vox(grid: Grid) -> float:
    """How far, in voxels, the centre of a corner voxel goes where the axes are ``squared``, as ITK has them."""
    index = corner_voxels(grid.shape)
    moved = transform_points(grid.vox_from_world @ squared(grid.world_from_vox), index) - index
    return float(np.linalg.norm(moved, axis=0).max())


def describe_extent(grid: Grid) -> str:
    """World box of the field of view, for messages: ``x -90..91 y -126..91 z -72..109 mm``; decimals for small ones."""
    corners = grid.corners_mm()
    low, high = corners.min(axis=1), corners.max(axis=1)
    digits = max(0, 1 - int(np.floor(np.log10((high - low).max()))))
    spans = zip("xyz", low, high, strict=True)
    return " ".join(f"{axis} {a:.{digits}f}..{b:.{digits}f}" for axis, a, b in spans) + " mm"


def _show(values: npt.NDArray[np.float64]) -> str:
    return "x".join(f"{v:g}" for v in values)

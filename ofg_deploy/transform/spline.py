"""Free-form deformations: displacements by B-splines on a lattice of control points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ofg_deploy.geometry import Grid, Matrix, transform_points
from ofg_deploy.transform.maps import Inside

EDGE = 1e-6  # of a control point's distance: rounding must not put the last voxel of an image outside
SAMPLES = (4, 2, 1)  # for each distance of control points, where a lattice of voxels has to stand for the spline
MOST_SAMPLES = 4_000_000


@dataclass(frozen=True, eq=False)
class SplineMap:
    """x -> x + sum_k c_k B(index(x) - k), as ITK, elastix and 3D Slicer have it.

    Known where all control points that reach a point exist, as in ITK, which stands still beyond.

    Attributes:
        coefficients: (3, X, Y, Z) float64 RAS mm.
        control: where the control points lie.
        order: 1 to 3.
    """

    coefficients: Matrix
    control: Grid
    order: int = 3
    warnings: tuple[str, ...] = ()

    @property
    def domain(self) -> Grid:
        """The region in which the map is known, as voxels that sample it finely."""
        cells = np.array(self.control.shape) - self.order
        for samples in SAMPLES:
            shape = np.maximum(cells * samples, 2)
            if shape.prod() <= MOST_SAMPLES:
                break
        index = np.diag([*(cells / shape), 1.0])
        index[:3, 3] = (self.order - 1) / 2 + cells / shape / 2
        x, y, z = shape.tolist()
        return Grid((x, y, z), self.control.world_from_vox @ index)

    def displacement_mm(self, points: Matrix) -> tuple[Matrix, Inside]:
        """As ``WorldMap``."""
        index = transform_points(self.control.vox_from_world, points)
        low, high = self._ends(points.ndim)
        inside = np.asarray(((index >= low - EDGE) & (index <= high + EDGE)).all(axis=0))
        displacement = np.zeros(points.shape)
        displacement[:, inside] = self._at(index[:, inside])
        return displacement, inside

    def continued(self, points: Matrix) -> Matrix:
        """(3, ...) displacement in mm, held at its edge value beyond the region in which it is known."""
        return self._at(transform_points(self.control.vox_from_world, points))

    def _ends(self, axes: int) -> tuple[float, Matrix]:
        low = (self.order - 1) / 2
        return low, np.array(self.control.shape, dtype=np.float64).reshape(3, *[1] * (axes - 1)) - 1 - low

    def _at(self, index: Matrix) -> Matrix:
        from scipy.ndimage import map_coordinates

        held = np.clip(index, *self._ends(index.ndim))
        return np.stack(
            [map_coordinates(c, held, order=self.order, mode="mirror", prefilter=False) for c in self.coefficients]
        )

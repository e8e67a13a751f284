"""The other way: from moving points to fixed ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ofg_deploy.field import Field, turned
from ofg_deploy.geometry import Grid, Matrix, in_view, lattice, thinned, transform_points
from ofg_deploy.transform.maps import Chain, FieldMap, Inside, LinearMap, WorldMap
from ofg_deploy.transform.spline import SplineMap

STEPS = 60
TOLERANCE_VOX = 1e-4  # of the solver; where it stays above INVERTED_VOX there is no inverse (the map folds or tears)
INVERTED_VOX = 0.01
NEWTON_STEPS = 6  # from a start that is a hundredth of a voxel off or so


@dataclass(frozen=True, eq=False)
class InverseMap:
    """The inverse of a displacement field, found at each point by damped fixed-point iteration (``kernels/invert``).

    Beyond its grid the field's deviation from its affine part is held, so that the inverse is continuous there; it is
    *known* only where it leads into the grid.

    Attributes:
        forward: the field.
        affine: (4, 4) its affine part; None for the one that fits it best.
    """

    forward: FieldMap
    affine: Matrix | None = None
    domain: Grid | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the field."""
        return self.forward.warnings

    def displacement_mm(self, points: Matrix) -> tuple[Matrix, Inside]:
        """As ``WorldMap``."""
        displacement, error = self.continued(points)
        index = transform_points(self.forward.domain.vox_from_world, points + displacement)
        inside = in_view(index, self.forward.domain.shape) & (error <= INVERTED_VOX)
        if self.forward.unknown is not None:
            inside &= self.forward.displacement_mm(points + displacement)[1]
        return np.where(inside, displacement, 0.0), inside

    def continued(self, points: Matrix) -> tuple[Matrix, Matrix]:
        """At world points (3, ...): displacement in mm, also where it leads out of the grid; error in voxels."""
        from ofg_deploy.kernels.invert import invert

        grid = self.forward.domain
        affine = best_affine(self.forward) if self.affine is None else self.affine
        target = transform_points(grid.vox_from_world, points).reshape(3, -1)
        found, error = np.empty_like(target), np.empty(target.shape[1])
        in_vox = grid.vox_from_world @ affine @ grid.world_from_vox
        invert(self._deviation_vox(affine), in_vox, target, STEPS, TOLERANCE_VOX, found, error)
        reached = transform_points(grid.world_from_vox, found).reshape(points.shape)
        return reached - points, error.reshape(points.shape[1:])

    def _deviation_vox(self, affine: Matrix) -> Field:
        """What the field adds to its affine part, in voxels of its grid."""
        grid = self.forward.domain
        still = grid.vox_from_world @ (np.eye(4) - affine) @ grid.world_from_vox
        return np.ascontiguousarray(turned(self.forward.field, still, grid.vox_from_world))


@dataclass(frozen=True, eq=False)
class InverseSpline:
    """The inverse of a spline, at each point by Newton's method from that of the field which samples it."""

    forward: SplineMap
    domain: Grid | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the spline."""
        return self.forward.warnings

    def displacement_mm(self, points: Matrix) -> tuple[Matrix, Inside]:
        """As ``WorldMap``; known where it leads to a point that the spline carries back to within ``INVERTED_VOX``."""
        grid = self.forward.domain
        samples = self.forward.continued(transform_points(grid.world_from_vox, lattice(grid.shape)))
        start, _ = InverseMap(FieldMap(samples.astype(np.float32), grid)).continued(points)
        target = points.reshape(3, -1)
        here, best = target + start.reshape(3, -1), np.empty(target.shape)
        error = np.full(target.shape[1], np.inf)
        for _ in range(NEWTON_STEPS):
            rest = here + self.forward.continued(here) - target
            length = np.linalg.norm(rest, axis=0)
            better = length < error
            best[:, better], error[better] = here[:, better], length[better]
            slope = self._slope(here)
            sound = np.abs(np.linalg.det(slope)) > 0.01
            here[:, sound] -= np.linalg.solve(slope[sound], rest.T[sound][..., None])[..., 0].T
        known = self.forward.displacement_mm(best)[1] & (error <= INVERTED_VOX * min(grid.spacing_mm))
        inside = known.reshape(points.shape[1:])
        return np.where(inside, best.reshape(points.shape) - points, 0.0), inside

    def _slope(self, points: Matrix) -> Matrix:
        """(N, 3, 3) derivative of the map at (3, N)."""
        step = 1e-4 * min(self.forward.control.spacing_mm)
        columns = []
        for offset in step * np.eye(3)[..., None]:
            ahead, behind = (self.forward.continued(points + sign * offset) for sign in (1, -1))
            columns.append((ahead - behind) / (2 * step) + offset / step)
        return np.moveaxis(np.stack(columns, axis=-1), 1, 0)


def invert(world_map: WorldMap) -> WorldMap:
    """The inverse of any map."""
    if isinstance(world_map, LinearMap):
        return LinearMap(np.asarray(np.linalg.inv(world_map.moving_from_fixed), dtype=np.float64))
    if isinstance(world_map, Chain):
        return Chain(tuple(invert(each) for each in reversed(world_map.maps)))
    if isinstance(world_map, InverseMap):
        return world_map.forward
    if isinstance(world_map, SplineMap):
        return InverseSpline(world_map)
    if isinstance(world_map, InverseSpline):
        return world_map.forward
    assert isinstance(world_map, FieldMap)
    return InverseMap(world_map)


def best_affine(world_map: FieldMap) -> Matrix:
    """(4, 4) the affine nearest to a field in the sense of least squares over its voxels, some 4,000 of them."""
    grid = world_map.domain
    picked, index = thinned(grid.shape)
    points = transform_points(grid.world_from_vox, index).reshape(3, -1)
    reached = points + world_map.field[(slice(None), *picked)].reshape(3, -1)
    homogeneous = np.vstack([points, np.ones(points.shape[1])])
    fit, *_ = np.linalg.lstsq(homogeneous.T, reached.T, rcond=None)
    return np.vstack([fit.T, [0, 0, 0, 1]])


@dataclass(frozen=True, eq=False)
class InverseField:
    """An inverse on a grid of the moving side, ready to be written.

    Attributes:
        field: (3, X, Y, Z) RAS mm on ``grid``, from a moving point to its fixed point.
        without_percent: share of its voxels, of those that lead into the fixed field of view, at which there is none.
        consistency_mm: mean, 99th percentile and largest distance of fixed voxels from where they come back to, there
            by the forward map and back by this field as others will interpolate it; voxels that leave the moving
            field of view, or pass a voxel without an inverse, are not counted but for ``percent_counted``.
    """

    field: Field
    grid: Grid
    without_percent: float
    consistency_mm: dict[str, float]


def inverse_field(forward: FieldMap, affine: Matrix, moving: Grid) -> InverseField:
    """The inverse of A(x + d(x)) on the moving image's grid, and how far there and back leads astray."""
    inverse = InverseMap(forward, affine)
    points = transform_points(moving.world_from_vox, lattice(moving.shape))
    displacement, error = inverse.continued(points)
    missing = error > INVERTED_VOX
    index = transform_points(forward.domain.vox_from_world, points + displacement)
    relevant = in_view(index, forward.domain.shape)
    field = displacement.astype(np.float32)
    without = 100.0 * float((missing & relevant).sum()) / max(int(relevant.sum()), 1)
    return InverseField(field, moving, without, _consistency(forward, FieldMap(field, moving), missing))


def _consistency(forward: FieldMap, back: FieldMap, missing: Inside) -> dict[str, float]:
    """Plane by plane, because the whole in float64 would be many times the field."""
    holes = (
        FieldMap(np.broadcast_to(missing.astype(np.float32), (3, *missing.shape)), back.domain)
        if missing.any()
        else None
    )
    gaps, voxels = [], 0
    for plane in range(forward.domain.shape[0]):
        index = lattice((1, *forward.domain.shape[1:]))
        index[0] += plane
        displacement = forward.field[:, plane : plane + 1].astype(np.float64)
        there = transform_points(forward.domain.world_from_vox, index) + displacement
        again, inside = back.displacement_mm(there)
        if holes is not None:
            inside &= holes.displacement_mm(there)[0][0] == 0
        gaps.append(np.linalg.norm(displacement + again, axis=0)[inside])
        voxels += inside.size
    gap = np.concatenate(gaps)
    if not gap.size:
        return {"percent_counted": 0.0}
    return {
        "mean": float(gap.mean()),
        "p99": float(np.percentile(gap, 99)),
        "max": float(gap.max()),
        "percent_counted": 100.0 * gap.size / voxels,
    }

"""Inverses against closed forms, SimpleITK's inverter and the forward map itself."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from scipy.ndimage import gaussian_filter, map_coordinates

from ofg_deploy.geometry import Grid
from ofg_deploy.kernels.velocity import integrate
from ofg_deploy.transform.inverse import InverseMap, best_affine, inverse_field, invert
from ofg_deploy.transform.maps import Chain, FieldMap, LinearMap


def points_of(grid: Grid) -> np.ndarray:
    """(3, X, Y, Z) RAS mm."""
    return np.moveaxis(apply_affine(grid.world_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)


def carried(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.moveaxis(apply_affine(matrix, np.moveaxis(points, 0, -1)), -1, 0)


@pytest.fixture(params=["RAS", "oblique-permuted", "left-handed"])
def scene(request, make_grid, some_affine) -> tuple[FieldMap, np.ndarray, Grid]:
    """A(x + d(x)) with slopes of d up to 0.6 on an anisotropic grid, A, and a moving grid of another kind."""
    fixed = make_grid(request.param, (22, 25, 18), (2.6, 2.1, 3.2), (2.0, -4.0, 3.0))
    moving = make_grid("oblique", (19, 23, 21), (3.1, 2.7, 2.2), (5.0, -6.0, 4.0))
    points = points_of(fixed)
    x, y, z = points / 7
    before = np.array([4 * np.sin(y + 0.3), 3.5 * np.cos(z * 1.1), -3 * np.sin(x) - 2])
    total = carried(some_affine, points + before) - points
    return FieldMap(total.astype(np.float32), fixed), some_affine, moving


def there_by_scipy(forward: FieldMap, points: np.ndarray) -> np.ndarray:
    """The forward map at points (3, ...) inside the lattice of voxel centres; NaN elsewhere."""
    index = carried(np.linalg.inv(forward.domain.world_from_vox), points)
    moved = [map_coordinates(c.astype(float), index, order=1, mode="constant", cval=np.nan) for c in forward.field]
    return points + np.array(moved)


def test_the_inverse_solves_the_map_to_a_hundredth_of_a_voxel(scene):
    forward, affine, moving = scene
    found = inverse_field(forward, affine, moving)
    back = points_of(moving) + found.field
    gap = np.linalg.norm(there_by_scipy(forward, back) - points_of(moving), axis=0)
    counted = np.isfinite(gap)
    assert counted.mean() > 0.3
    assert np.nanmax(gap) < 0.01 * min(forward.domain.spacing_mm)
    assert found.without_percent == 0
    assert np.linalg.norm(found.field, axis=0)[counted].min() > 0.5


def test_a_scaling_by_formula_far_beyond_the_grid(make_grid, some_affine):
    """u(x) = A(x + 0.3 (x - c)) - x is an affine: its inverse is known everywhere, also where d is held."""
    fixed = make_grid("left-handed", (12, 14, 10), (3.0, 2.5, 3.5), (1.0, 2.0, 3.0))
    stretched = some_affine @ np.array([[1.3, 0, 0, 2], [0, 1.3, 0, -1], [0, 0, 1.3, 0.5], [0, 0, 0, 1.0]])
    forward = FieldMap((carried(stretched, points_of(fixed)) - points_of(fixed)).astype(np.float32), fixed)
    np.testing.assert_allclose(best_affine(forward), stretched, atol=1e-5)
    points = np.array([[-80.0, 5, 90], [40, -3, -70], [3, 8, 55]])
    displacement, error = InverseMap(forward).continued(points)
    np.testing.assert_allclose(points + displacement, carried(np.linalg.inv(stretched), points), atol=2e-3)
    assert error.max() < 1e-3
    _, inside = InverseMap(forward).displacement_mm(points)
    assert inside.tolist() == [False, True, False]


def test_as_simpleitks_inverter(scene, to_sitk):
    """Its iterative inverter on a mild field without an affine, inside the grid."""
    forward, _, _ = scene
    grid = forward.domain
    x, y, z = np.indices(grid.shape) / 6
    mild = FieldMap(np.array([1.5 * np.sin(y), -1.2 * np.cos(z), 1.1 * np.sin(x + 1)], dtype=np.float32), grid)
    lps = (mild.field * np.array([-1, -1, 1], dtype=np.float32)[:, None, None, None]).transpose(3, 2, 1, 0)
    image = sitk.GetImageFromArray(lps.astype(float), isVector=True)
    image.CopyInformation(to_sitk(np.zeros(grid.shape), grid))
    inverter = sitk.InvertDisplacementFieldImageFilter()
    inverter.SetMaximumNumberOfIterations(200)
    inverter.SetMeanErrorToleranceThreshold(1e-6)
    inverter.SetMaxErrorToleranceThreshold(1e-5)
    inverter.EnforceBoundaryConditionOff()
    expected = sitk.GetArrayFromImage(inverter.Execute(image)).transpose(3, 2, 1, 0) * np.array([-1, -1, 1]).reshape(
        3, 1, 1, 1
    )
    found = inverse_field(mild, np.eye(4), grid).field
    inner = (slice(None), *[slice(4, -4)] * 3)
    assert np.abs(expected[inner]).max() > 0.8
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.01)


def test_there_and_back_is_measured_as_others_would(scene):
    """By scipy: every fixed voxel through the forward field, then through the inverse as it lies in the file."""
    forward, affine, moving = scene
    found = inverse_field(forward, affine, moving)
    there = points_of(forward.domain) + forward.field
    again = there_by_scipy(FieldMap(found.field, moving), there)
    gap = np.linalg.norm(again - points_of(forward.domain), axis=0)
    counted = gap[np.isfinite(gap)]
    told = found.consistency_mm
    # Ours counts the outer half voxel of the moving grid too, so the figures are near, not equal.
    assert told["mean"] == pytest.approx(counted.mean(), rel=0.25)
    assert counted.mean() < told["max"] < 1.5
    assert told["mean"] <= told["p99"] <= told["max"]
    assert 100 * counted.size / gap.size <= told["percent_counted"] < 100


def test_voxels_that_leave_the_moving_image_are_not_counted(make_grid):
    """A shift by 3 of 16 voxels, then by 5 of 14: what stays within half a voxel of the last centre counts."""
    grid = make_grid("RAS", (16, 14, 12), (2.0, 2.5, 3.0))
    for axis, shift_mm, left in ((0, 6.0, 13 / 16), (1, -12.5, 9 / 14)):
        field = np.zeros((3, *grid.shape), np.float32)
        field[axis] = shift_mm
        told = inverse_field(FieldMap(field, grid), np.eye(4), grid).consistency_mm
        assert told["percent_counted"] == pytest.approx(100 * left, abs=1e-9)
        assert told["max"] < 1e-3


def test_where_a_folding_map_is_not_solved_is_counted(make_grid):
    """Noise of several voxels: the share that our figure calls unsolved is the share that scipy finds so."""
    grid = make_grid("RAS", (16, 14, 12), (2.0, 2.5, 3.0))
    noise = np.random.default_rng(1).normal(0, 4, (3, *grid.shape)).astype(np.float32)
    forward = FieldMap(noise, grid)
    found = inverse_field(forward, np.eye(4), grid)
    back = points_of(grid) + found.field
    gap = carried(np.diag([1 / 2.0, 1 / 2.5, 1 / 3.0, 1]), there_by_scipy(forward, back) - points_of(grid))
    size = np.linalg.norm(gap, axis=0)
    assert found.without_percent > 5
    assert 100 * (size[np.isfinite(size)] > 0.01).mean() == pytest.approx(found.without_percent, abs=6)
    assert np.isfinite(found.field).all()


def test_of_a_velocitys_flow_it_is_nearer_than_the_flow_of_the_negated_velocity(make_grid):
    """Exact in theory, that flow is integrated on a grid: of the forward field as it is, it is the worse inverse."""
    grid = make_grid("RAS", (36, 40, 32), (1, 1, 1))
    noise = np.random.default_rng(1).normal(size=(3, *grid.shape))
    velocity = np.array([gaussian_filter(component, 5) for component in noise])
    velocity = (6 * velocity / np.abs(velocity).max()).astype(np.float32)
    forward = FieldMap(integrate(velocity), grid)
    assert np.abs(forward.field).max() > 4
    points = points_of(grid)
    found = inverse_field(forward, np.eye(4), grid)
    assert found.without_percent == 0
    residuals = []
    for back in (found.field, integrate(-velocity)):
        gap = np.linalg.norm(there_by_scipy(forward, points + back) - points, axis=0)
        residuals.append(gap[np.isfinite(gap)])
        assert residuals[-1].size > 0.5 * gap.size
    assert residuals[0].max() < 2e-4  # voxels
    assert residuals[1].mean() > 50 * residuals[0].mean()
    inner = (slice(None), *[slice(4, -4)] * 3)  # and both are the same map but for that
    assert np.abs(found.field - integrate(-velocity))[inner].mean() < 0.05


@pytest.mark.parametrize("threads", [1, 2])
def test_inverses_of_chains_and_back(scene, threads):
    from ofg_deploy.kernels import compiled

    forward, affine, _ = scene
    chain = Chain((LinearMap(affine), forward))
    points = np.random.default_rng(3).uniform(-8, 8, (3, 50)) + np.array([[2.0], [-4], [3]])
    start = apply_affine(np.linalg.inv(affine), points.T).T
    with compiled.threads(min(threads, compiled.most_threads())):
        displacement, inside = chain.displacement_mm(start)
        back, known = invert(chain).displacement_mm(start + displacement)
    assert inside.all()
    assert known.all()
    np.testing.assert_allclose(back, -displacement, atol=2e-3)
    twice, _ = invert(invert(chain)).displacement_mm(start)
    np.testing.assert_allclose(twice, displacement, atol=1e-9)

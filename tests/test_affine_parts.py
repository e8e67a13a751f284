"""The parts of the affine start: the measure and its slope, parameters, descent, centres of mass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

from ofg_deploy.affine import agreement
from ofg_deploy.affine.agreement import Agreement, Frames
from ofg_deploy.affine.descent import minimise
from ofg_deploy.affine.parameters import Prior, pulled_back, to_matrix
from ofg_deploy.affine.pictures import Picture, _shrunk
from ofg_deploy.kernels.agreement import look_up
from ofg_deploy.nifti import Volume

SOME = np.array([0.11, -0.07, 0.13, 0.2, -0.15, 0.1, 0.08, -0.05, 0.03, 0.04, -0.06, 0.02])


@pytest.fixture(scope="module")
def pictures(make_grid, world_image):
    """Fixed and moving as a start sees them, the moving one with a mask."""
    fixed = make_grid("oblique", (26, 24, 22), (3.0, 2.8, 3.2), (1.0, -2.0, 1.5))
    moving = make_grid("left-handed", (20, 25, 23), (2.9, 3.3, 3.1), (4.0, -3.0, 2.0))
    mask = np.ones(moving.shape, np.uint8)
    mask[:, :6] = 0
    return (
        Picture.of(Volume(world_image(fixed), fixed, Path("f.nii")), None),
        Picture.of(Volume(800 - world_image(moving), moving, Path("m.nii")), Volume(mask, moving, Path("k.nii"))),
    )


def test_the_slope_is_that_of_the_measure(pictures):
    """Central differences; the mask and the faces of both fields of view are crossed."""
    measure = Agreement.between(*pictures, Frames.of(*pictures), 2e4, 6000)
    slope = pulled_back(SOME, measure.with_slope(to_matrix(SOME))[1])
    step = 1e-4
    for n, found in enumerate(slope):
        ahead, behind = SOME.copy(), SOME.copy()
        ahead[n] += step
        behind[n] -= step
        expected = (measure.value(to_matrix(ahead)) - measure.value(to_matrix(behind))) / (2 * step)
        assert found == pytest.approx(expected, rel=2e-2, abs=2e-3), n


def test_both_directions_side_by_side_give_the_same_bits(pictures, monkeypatch):
    found = []
    for alone in (0, np.inf):
        monkeypatch.setattr(agreement, "ALONE", alone)
        measure = Agreement.between(*pictures, Frames.of(*pictures), 2e4, 6000)
        value, slope = measure.with_slope(to_matrix(SOME))
        found.append((value, *slope.ravel(), measure.value(to_matrix(SOME)), *measure.backward.points.ravel()))
    np.testing.assert_array_equal(*found)


def test_means_of_blocks_are_those_of_numpy():
    """Sums of slices, to the bit, whichever axis is the one that lies close together in memory."""
    drawn = np.random.default_rng(3).normal(size=(12, 17, 22)).astype(np.float32)
    for data in (drawn, np.asfortranarray(drawn)):
        for factors in ((2, 3, 1), (1, 7, 9), (3, 1, 2)):
            expected = data
            for axis, f in enumerate(factors):
                n = expected.shape[axis] // f
                cut = expected[(slice(None),) * axis + (slice(n * f),)]
                split = cut.reshape(*cut.shape[:axis], n, f, *cut.shape[axis + 1 :])
                expected = split.mean(axis=axis + 1, dtype=np.float32)
            np.testing.assert_array_equal(_shrunk(data, np.eye(4), factors)[0], expected)


def test_the_measure_cannot_be_had_by_collapse_or_lost_overlap(pictures):
    frames = Frames.of(*pictures)
    agreement = Agreement.between(*pictures, frames, 2e4, 6000)
    right = frames.from_world(np.eye(4))
    whole = agreement.value(right)
    for scale in (0.02, 0.3, 3.0, 50.0):
        for shape in (np.diag([scale, 1, 1, 1.0]), np.diag([scale, scale, scale, 1.0])):
            assert agreement.value(right @ shape) < 0.5 * whole
    for way in np.vstack([np.eye(3), -np.eye(3)]):
        away = right.copy()
        away[:3, 3] += 1.5 * way
        assert agreement.value(away) < 0.5 * whole
    swapped = Agreement.between(*pictures[::-1], Frames.of(*pictures[::-1]), 2e4, 6000)
    assert swapped.value(np.linalg.inv(right)) == pytest.approx(whole)


def test_values_between_voxels_are_scipys_and_weights_end_at_the_faces():
    rng = np.random.default_rng(3)
    data = rng.random((7, 5, 6), dtype=np.float32)
    matrix = np.array([[1.1, 0.2, -0.1, 0.3], [0.0, 0.9, 0.3, 0.2], [-0.2, 0.1, 1.0, 0.4]])
    points = rng.uniform(-2, 7, (4000, 3))
    found = np.zeros((4000, 8))
    look_up(data, matrix, points, found)
    at = points @ matrix[:, :3].T + matrix[:, 3]
    beyond = np.maximum(np.maximum(-0.5 - at, at - (np.array(data.shape) - 0.5)), 0)
    expected = np.clip(1 - beyond, 0, None).prod(axis=1)
    np.testing.assert_allclose(found[:, 1], expected, atol=1e-12)
    seen = expected > 0
    values = map_coordinates(data.astype(np.float64), at[seen].T, order=1, mode="nearest")
    np.testing.assert_allclose(found[seen, 0], values, atol=1e-12)
    assert 0.1 < seen.mean() < 0.9


def test_parameters_make_the_matrix_they_promise():
    x, y, z = SOME[3:6]
    rotation = expm(np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
    a, b, c = np.exp(SOME[6:9])
    stretch = np.array([[a, SOME[9] * a, SOME[10] * a], [0, b, SOME[11] * b], [0, 0, c]])
    np.testing.assert_allclose(to_matrix(SOME)[:3, :3], rotation @ stretch, atol=1e-12)
    np.testing.assert_array_equal(to_matrix(SOME)[:3, 3], SOME[:3])
    assert np.linalg.det(to_matrix(SOME)[:3, :3]) == pytest.approx(a * b * c)


@pytest.mark.parametrize("p", [SOME, np.r_[SOME[:3], np.zeros(3), SOME[6:]]])
def test_slopes_by_parameters_and_of_the_prior(p):
    weights = np.random.default_rng(5).normal(size=(4, 4))
    weights[3] = 0
    prior = Prior(np.r_[0.3, -0.2, 0.1, np.zeros(9)])
    for n in range(12):
        step = np.zeros(12)
        step[n] = 1e-6
        by_matrix = (weights * (to_matrix(p + step) - to_matrix(p - step))).sum() / 2e-6
        assert pulled_back(p, weights)[n] == pytest.approx(by_matrix, rel=1e-6, abs=1e-8)
        by_prior = (prior.cost(p + step)[0] - prior.cost(p - step)[0]) / 2e-6
        assert prior.cost(p)[1][n] == pytest.approx(by_prior, rel=1e-6, abs=1e-7)
    assert prior.cost(prior.home)[0] == 0


def test_descent_ends_where_scipys_does():
    """A curved valley, with a bound that matters and one that does not."""

    def cost(x):
        value = (0.3 - x[0]) ** 2 + 8 * (x[1] - x[0] ** 2) ** 2 + (x[2] + 0.4) ** 2 + x[0] * x[2]
        slope = [
            -2 * (0.3 - x[0]) - 32 * x[0] * (x[1] - x[0] ** 2) + x[2],
            16 * (x[1] - x[0] ** 2),
            2 * (x[2] + 0.4) + x[0],
        ]
        return float(value), np.array(slope)

    low, high = np.array([-2.0, -2.0, -0.3]), np.array([2.0, 2.0, np.inf])
    expected = minimize(cost, np.array([-0.8, 0.9, 0.5]), jac=True, bounds=list(zip(low, high, strict=True)))
    value, x = minimise(cost, np.array([-0.8, 0.9, 0.5]), low, high, 200, 1e-12)
    assert x[2] == -0.3
    np.testing.assert_allclose(x, expected.x, atol=1e-4)
    assert value == pytest.approx(expected.fun, abs=1e-8)


def test_the_centre_of_mass_is_antspys(make_grid, world_image, foreign, to_sitk):
    ants = foreign("ants")
    grid = make_grid("oblique-permuted", (26, 24, 30), (3.0, 3.3, 2.9), (6.0, -4.0, 3.0))
    data = np.clip(world_image(grid) - 150, 0, None)
    expected = np.array(ants.get_center_of_mass(ants.from_sitk(to_sitk(data, grid)))) * (-1, -1, 1)
    for offset, times in ((0, 1), (-1024, 1), (900, -1)):  # MR, CT, dark on a bright ground
        picture = Picture.of(Volume((data * times + offset).astype(np.float32), grid, Path("x.nii")), None)
        assert np.abs(picture.centre_of_mass() - expected).max() < 0.3  # the brightest 0.5 % are clipped

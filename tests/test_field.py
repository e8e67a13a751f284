"""Sampling, composition and Jacobians against SimpleITK and against maps whose answer is known by formula."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from ofg_deploy.field import _on_voxels, jacobian_determinant, resample, sample, total_displacement_mm, warp
from ofg_deploy.geometry import Grid, canonical, network_grid, transform_points

PAIRS = [("RAS", "LPS"), ("LAS", "oblique"), ("oblique-permuted", "left-handed"), ("left-handed", "LAS")]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request, make_grid) -> tuple[Grid, Grid]:
    """Two grids of different shape, spacing, orientation and place, partly overlapping."""
    first, second = request.param
    return (
        make_grid(first, (17, 21, 14), (3.1, 2.4, 3.9), (2.0, -4.0, 3.0)),
        make_grid(second, (20, 15, 18), (2.7, 3.3, 2.9), (-3.0, 5.0, -2.0)),
    )


def test_linear_resampling_is_simpleitks(pair, world_image, to_sitk, sitk_affine, sitk_resample, some_affine):
    target, source = pair
    data = world_image(source)
    expected = sitk_resample(to_sitk(data, source), to_sitk(np.zeros(target.shape), target), sitk_affine(some_affine))
    found = resample(data, source, target, some_affine)
    assert found.dtype == np.float32
    assert 0.05 < (expected == 0).mean() < 0.6  # part of the target lies outside the source: the border is compared too
    np.testing.assert_allclose(found, expected, atol=1e-3 * data.max())


def test_nearest_resampling_is_simpleitks(pair, world_labels, to_sitk, sitk_affine, sitk_resample, some_affine):
    target, source = pair
    labels = world_labels(source)
    reference = to_sitk(np.zeros(target.shape), target)
    expected = sitk_resample(to_sitk(labels, source), reference, sitk_affine(some_affine), nearest=True)
    found = resample(labels, source, target, some_affine, order=0)
    assert found.dtype == np.int16
    assert set(np.unique(expected)) == {0, 3, 7, 12}
    np.testing.assert_array_equal(found, expected)


def test_a_voxel_reaches_half_a_voxel_beyond_its_centre():
    data = np.arange(1.0, 25.0).reshape(2, 3, 4)
    along_y = np.array([[0.0] * 6, [-0.51, -0.49, -0.2, 2.2, 2.49, 2.51], [1.0] * 6])
    np.testing.assert_array_equal(sample(data, along_y, fill=-7), [-7, 2, 2, 10, 10, -7])
    np.testing.assert_array_equal(sample(data, along_y, order=0, fill=-7), [-7, 2, 2, 10, 10, -7])
    np.testing.assert_allclose(sample(data, np.array([[0.5], [1.25], [2.0]])), 1 + 0.5 * 12 + 1.25 * 4 + 2)


def test_sampling_at_the_voxels_gives_them_back_exactly():
    data = np.random.default_rng(1).normal(size=(5, 7, 6)).astype(np.float32)
    np.testing.assert_array_equal(sample(data, np.indices(data.shape, dtype=float)), data)


@pytest.mark.parametrize("nearest", [False, True])
def test_warp_is_simpleitks_displacement_field(pair, world_image, world_labels, to_sitk, sitk_resample, nearest):
    fixed, moving = pair
    data = world_labels(moving) if nearest else world_image(moving)
    x, y, z = np.indices(fixed.shape) / 6
    displacement = np.array([5 * np.sin(x + 0.3), -4 * np.cos(y * 1.3) + z, 3 * np.sin(z + x)], dtype=np.float32)
    lps = displacement * np.array([-1, -1, 1], dtype=np.float32)[:, None, None, None]
    image = to_sitk(np.zeros(fixed.shape), fixed)
    field = sitk.GetImageFromArray(lps.transpose(3, 2, 1, 0).astype(float), isVector=True)
    field.CopyInformation(image)
    expected = sitk_resample(to_sitk(data, moving), image, sitk.DisplacementFieldTransform(field), nearest, fill=-50)
    found = warp(data, moving, fixed, displacement, order=0 if nearest else 1, fill=-50)
    assert (expected == -50).any()
    assert (expected != -50).mean() > 0.3
    np.testing.assert_allclose(found, expected, atol=0 if nearest else 1e-3 * data.max())


@pytest.mark.parametrize("name", ["LAS", "oblique-permuted", "left-handed"])
def test_the_total_map_of_a_linear_field_is_known_by_formula(make_grid, some_affine, name):
    """d(i) = G (i - c) in voxels is reproduced exactly by linear interpolation, so u = A(x + M G M^-1 (x - c)) - x."""
    network = make_grid("oblique", (16, 14, 18), (3.0, 3.5, 2.5), (1.0, 2.0, -1.0))
    fixed = make_grid(name, (9, 12, 7), (2.1, 1.7, 3.2), (0.0, 1.0, 2.0))  # inside the network's grid
    rng = np.random.default_rng(8)
    gradient = rng.normal(0, 0.08, (3, 3))
    centre = np.array([6.2, 7.9, 8.1])
    index = np.indices(network.shape, dtype=float) - centre.reshape(3, 1, 1, 1)
    field = np.einsum("ij,jxyz->ixyz", gradient, index).astype(np.float32)
    found = total_displacement_mm(field, network, fixed, some_affine)

    matrix = network.world_from_vox[:3, :3]
    centre_mm = matrix @ centre + network.world_from_vox[:3, 3]
    for voxel in ((0, 0, 0), (8, 0, 6), (3, 11, 2), (4, 5, 1)):
        point = (fixed.world_from_vox @ [*voxel, 1])[:3]
        displaced = point + matrix @ gradient @ np.linalg.inv(matrix) @ (point - centre_mm)
        expected = (some_affine @ [*displaced, 1])[:3] - point
        np.testing.assert_allclose(found[(slice(None), *voxel)], expected, atol=2e-4)


@pytest.mark.parametrize("codes", ["LIA", "PSR", "RAS"])
def test_where_voxels_coincide_nothing_is_interpolated_and_the_values_are_those_of_the_interpolation(codes):
    axes = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    matrix = np.eye(4)
    matrix[:3] = np.hstack([np.array([axes[c] for c in codes], float).T * (1.1, 0.9, 1.3), [[3], [-7], [11]]])
    fixed = Grid((11, 14, 9), matrix)
    source = canonical(fixed)
    rng = np.random.default_rng(2)
    affine = np.eye(4)
    affine[:3] += rng.normal(0, 0.05, (3, 4))
    for wider in ((0, 0, 0), (4, 2, 6)):  # a network's grid that is the image's, or reaches beyond it
        network = network_grid(fixed, tuple(np.add(source.shape, wider)), source.spacing_mm)
        index = network.vox_from_world @ fixed.world_from_vox
        assert _on_voxels(np.zeros((3, *network.shape), np.float32), index[:3], fixed.shape) is not None
        field = rng.normal(size=(3, *network.shape)).astype(np.float32)
        # By hand: voxel by voxel where the grids say that it is.
        at = np.rint(transform_points(index, np.indices(fixed.shape, dtype=float))).astype(int)
        moved = np.einsum("ij,jxyz->ixyz", network.world_from_vox[:3, :3], field[:, at[0], at[1], at[2]])
        here = transform_points(fixed.world_from_vox, np.indices(fixed.shape, dtype=float))
        expected = transform_points(affine, here + moved) - here
        np.testing.assert_allclose(total_displacement_mm(field, network, fixed, affine), expected, atol=2e-6)
        seen = resample(field[0], network, fixed, np.eye(4), layout="F")
        np.testing.assert_array_equal(seen, field[0][at[0], at[1], at[2]])
        # A millionth of a millimetre off, and the interpolating kernel does the same.
        nudged = Grid(fixed.shape, fixed.world_from_vox + 3e-6 * np.eye(4, k=3)[:, :4])
        assert _on_voxels(field, (network.vox_from_world @ nudged.world_from_vox)[:3], fixed.shape) is None
        np.testing.assert_allclose(total_displacement_mm(field, network, nudged, affine), expected, atol=5e-5)
    smaller = network_grid(fixed, tuple(np.subtract(source.shape, 2)), source.spacing_mm)  # edge values to be held
    assert _on_voxels(field, (smaller.vox_from_world @ fixed.world_from_vox)[:3], (40, 40, 40)) is None


def test_beyond_the_network_grid_the_field_keeps_its_edge_value(make_grid):
    network = make_grid("RAS", (6, 5, 4), (2.0, 3.0, 4.0))
    fixed = make_grid("RAS", (30, 5, 4), (2.0, 3.0, 4.0))  # 12 voxels more on either side along x
    field = np.random.default_rng(2).normal(size=(3, 6, 5, 4)).astype(np.float32)
    found = total_displacement_mm(field, network, fixed, np.eye(4))
    in_mm = field * np.array([2, 3, 4], dtype=np.float32).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(found[:, 12:18], in_mm, atol=1e-5)
    np.testing.assert_allclose(found[:, :12], np.broadcast_to(in_mm[:, :1], (3, 12, 5, 4)), atol=1e-5)
    np.testing.assert_allclose(found[:, 18:], np.broadcast_to(in_mm[:, -1:], (3, 12, 5, 4)), atol=1e-5)


def test_the_jacobian_of_an_affine_is_its_determinant_everywhere(make_grid, some_affine):
    grid = make_grid("left-handed", (7, 9, 6), (1.4, 2.2, 3.1), (4.0, 5.0, 6.0))
    index = np.indices(grid.shape, dtype=float)
    points = np.einsum("ij,jxyz->ixyz", grid.world_from_vox[:3, :3], index)
    displacement = np.einsum("ij,jxyz->ixyz", some_affine[:3, :3] - np.eye(3), points)
    found = jacobian_determinant(displacement, grid.world_from_vox)
    np.testing.assert_allclose(found, 1.06 * 0.95 * 1.02, rtol=1e-6)


def test_the_jacobian_in_voxels_is_the_one_of_the_formula():
    """phi = (x + a sin(y k), y + b z^2, z + c x y): det expanded by hand below."""
    a, b, c, k = 0.9, 0.03, 0.009, 0.4
    x, y, z = np.indices((12, 40, 15), dtype=float)
    found = jacobian_determinant(np.array([a * np.sin(k * y), b * z**2, c * x * y]))
    # rows: (1, a k cos ky, 0), (0, 1, 2 b z), (c y, c x, 1)
    expected = 1 - 2 * b * z * c * x + a * k * np.cos(k * y) * 2 * b * z * c * y
    assert np.ptp(expected) > 0.2
    # central differences are exact for the quadratics and off by k^2/6 = 2.7% of the cosine's slope
    np.testing.assert_allclose(found[1:-1, 1:-1, 1:-1], expected[1:-1, 1:-1, 1:-1], atol=0.02)


@pytest.mark.parametrize("name", ["LPS", "oblique-permuted"])
def test_the_jacobian_in_mm_is_simpleitks_inside(make_grid, name):
    grid = make_grid(name, (11, 13, 9), (2.0, 1.5, 3.0), (3.0, -2.0, 1.0))
    displacement = np.random.default_rng(4).normal(0, 0.8, (3, *grid.shape))
    # The filter ignores an image's directions, so it gets the vectors along the array axes.
    directions = grid.world_from_vox[:3, :3] / grid.spacing_mm
    along_axes = np.einsum("ji,jxyz->xyzi", directions, displacement)
    image = sitk.GetImageFromArray(along_axes.transpose(2, 1, 0, 3), isVector=True)
    image.SetSpacing(grid.spacing_mm)
    expected = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image)).transpose(2, 1, 0)
    inside = (slice(1, -1),) * 3  # ITK differentiates across the border by another rule
    found = jacobian_determinant(displacement, grid.world_from_vox)
    assert (expected[inside] < 0.5).any()
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)


def test_folding_is_where_the_map_runs_backwards():
    displacement = np.zeros((3, 8, 6, 5))
    displacement[1, :, 3:] = -2.5  # y of 2, 3 goes to 2, 0.5
    found = jacobian_determinant(displacement)
    assert set(zip(*np.nonzero(found <= 0), strict=True)) == {
        (i, j, k) for i in range(8) for j in (2, 3) for k in range(5)
    }
    np.testing.assert_allclose(found[:, 2:4], 1 - 2.5 / 2)

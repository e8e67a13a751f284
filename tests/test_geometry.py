"""Grids against nibabel, SimpleITK and geometry done by hand."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine, voxel_sizes
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from ofg_deploy.errors import GeometryError
from ofg_deploy.geometry import (
    Grid,
    canonical,
    describe_extent,
    in_view,
    lattice,
    network_grid,
    overlap_fraction,
    same_grid,
    shear_vox,
    squared,
    transform_points,
)

SHAPE, SPACING, CENTRE = (9, 12, 7), (1.3, 2.1, 3.4), (5.0, -20.0, 31.0)
ALL_CODES = ["".join(axes) for order in permutations(("RL", "AP", "SI")) for axes in product(*order)]


def affine_of(codes: str, degrees: tuple[float, float, float]) -> np.ndarray:
    ornt = nib.orientations.axcodes2ornt(codes)
    directions = np.zeros((3, 3))
    for axis, (target, sign) in enumerate(ornt):
        directions[int(target), axis] = sign
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ directions * SPACING
    affine[:3, 3] = CENTRE
    return affine


@pytest.mark.parametrize("degrees", [(0, 0, 0), (8, -13, 19)], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", ALL_CODES)
def test_canonical_is_nibabels_closest_canonical(codes, degrees):
    affine = affine_of(codes, degrees)
    expected = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(SHAPE, np.float32), affine))
    found = canonical(Grid(SHAPE, affine))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.world_from_vox, expected.affine, atol=1e-12)
    assert found.orientation == "RAS"


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_grid_says_what_nibabel_says(codes):
    affine = affine_of(codes, (5, 9, -7))
    grid = Grid(SHAPE, affine)
    assert grid.orientation == codes
    np.testing.assert_allclose(grid.spacing_mm, voxel_sizes(affine), rtol=1e-12)
    np.testing.assert_allclose(grid.vox_from_world @ affine, np.eye(4), atol=1e-12)


def test_corners_are_voxel_faces_as_simpleitk_places_them(make_grid):
    grid = make_grid("oblique-permuted", SHAPE, SPACING, CENTRE)
    image = sitk.Image(*SHAPE, sitk.sitkUInt8)
    lps = np.diag([-1, -1, 1, 1]) @ grid.world_from_vox
    image.SetSpacing(SPACING)
    image.SetDirection((lps[:3, :3] / SPACING).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    faces = product(*[(-0.5, n - 0.5) for n in SHAPE])
    expected = {
        tuple(np.round(np.diag([-1, -1, 1]) @ image.TransformContinuousIndexToPhysicalPoint(f), 6)) for f in faces
    }
    assert {tuple(c) for c in np.round(grid.corners_mm().T, 6)} == expected


def test_transform_points_is_apply_affine_for_any_trailing_shape():
    affine = affine_of("PSL", (30, 10, -40))
    points = np.random.default_rng(1).normal(size=(3, 4, 5, 6))
    expected = np.moveaxis(apply_affine(affine, np.moveaxis(points, 0, -1)), -1, 0)
    np.testing.assert_allclose(transform_points(affine, points), expected, atol=1e-12)


def test_lattice_counts_in_array_axis_order():
    index = lattice((2, 3, 4))
    assert [index[axis][1, 2, 3] for axis in range(3)] == [1, 2, 3]


def sheared(cosine: float) -> np.ndarray:
    affine = affine_of("RAS", (8, -13, 19))
    affine[:3, 1] = SPACING[1] * (
        cosine * affine[:3, 0] / SPACING[0] + np.sqrt(1 - cosine**2) * affine[:3, 1] / SPACING[1]
    )
    return affine


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((9, 12), np.eye(4), "not a volume"),
        ((9, 1, 7), np.eye(4), "not a volume"),
        (SHAPE, np.eye(3), "4x4"),
        (SHAPE, np.diag([1, np.nan, 1, 1]), "finite"),
        (SHAPE, np.diag([1, 1, np.inf, 1]), "finite"),
        (SHAPE, np.diag([1, 1, 1, 2.0]), "last row"),
        (SHAPE, np.diag([1, 0, 1, 1.0]), "singular"),
        (SHAPE, np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "singular|sheared|orthonormal"),
        (SHAPE, sheared(0.02), "sheared"),
    ],
)
def test_an_unusable_grid_cannot_be_made(shape, affine, message):
    with pytest.raises(GeometryError, match=message):
        Grid(shape, affine)


def test_header_rounding_is_not_shear():
    assert Grid(SHAPE, sheared(1e-5)).shape == SHAPE
    assert Grid(SHAPE, affine_of("LIP", (33, 44, 55)).astype(np.float32)).orientation


def test_a_grid_does_not_change_with_the_array_it_was_made_from():
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    grid = Grid(SHAPE, affine)
    affine[0, 0] = 99
    assert grid.spacing_mm == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="read-only"):
        grid.world_from_vox[0, 0] = 5


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS", "oblique", "oblique-permuted", "left-handed"])
def test_network_grid_is_centred_on_the_field_of_view(make_grid, orientation):
    fixed = make_grid(orientation, SHAPE, SPACING, CENTRE)
    grid = network_grid(fixed, (8, 6, 11), (2.2, 1.9, 2.7))
    np.testing.assert_allclose(grid.world_from_vox @ [3.5, 2.5, 5, 1], [*CENTRE, 1], atol=1e-9)
    np.testing.assert_allclose(grid.spacing_mm, (2.2, 1.9, 2.7), rtol=1e-12)
    expected = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(SHAPE, np.float32), fixed.world_from_vox)).affine
    np.testing.assert_allclose(
        grid.world_from_vox[:3, :3] / grid.spacing_mm, expected[:3, :3] / voxel_sizes(expected), atol=1e-12
    )


@pytest.mark.parametrize("orientation", ["LPS", "oblique-permuted", "left-handed"])
@pytest.mark.parametrize("axes", ["LIA", "PSR", "ASL"])
def test_network_grid_in_other_axes_holds_the_same_voxels(make_grid, orientation, axes):
    fixed = make_grid(orientation, SHAPE, SPACING, CENTRE)
    plain = canonical(fixed)
    order = ["RAS".index({"L": "R", "P": "A", "I": "S"}.get(a, a)) for a in axes]
    turned = network_grid(fixed, tuple(plain.shape[n] for n in order), tuple(plain.spacing_mm[n] for n in order), axes)
    assert "".join(nib.aff2axcodes(turned.world_from_vox)) == axes
    # A voxel of the plain grid, found again by counting along its axes from the other end where the letter differs.
    index = np.array([1, 2, 3])
    there = [plain.shape[n] - 1 - index[n] if a in "LPI" else index[n] for n, a in zip(order, axes, strict=True)]
    np.testing.assert_allclose(turned.world_from_vox @ [*there, 1], plain.world_from_vox @ [*index, 1], atol=1e-9)


@pytest.mark.parametrize("shape", [(9, 12, 7), (8, 13, 10), (20, 5, 7)])
def test_network_grid_shares_voxels_where_the_spacing_is_kept(make_grid, shape):
    fixed = make_grid("left-handed", SHAPE, SPACING, CENTRE)
    plain = canonical(fixed)
    # float32 headers never hold a spacing exactly: a relative 1e-5 is still the same spacing
    grid = network_grid(fixed, shape, tuple(s * (1 + 1e-5) for s in plain.spacing_mm))
    plain_from_network = np.linalg.inv(plain.world_from_vox) @ grid.world_from_vox
    np.testing.assert_allclose(plain_from_network[:3, :3], np.eye(3), atol=1e-12)
    shift = plain_from_network[:3, 3]
    np.testing.assert_allclose(shift, np.round(shift), atol=1e-9)
    centred = (np.array(plain.shape) - np.array(shape)) / 2
    assert np.abs(shift - centred).max() <= 0.5 + 1e-9


def test_network_grid_treats_each_axis_by_itself(make_grid):
    fixed = make_grid("RAS", (9, 12, 7), (1.0, 2.0, 3.0))
    grid = network_grid(fixed, (4, 8, 7), (1.0, 2.5, 3.0))
    start = (fixed.vox_from_world @ grid.world_from_vox)[:3, 3]
    np.testing.assert_allclose(start, [2, 5.5 - 1.25 * 3.5, 0], atol=1e-12)  # by hand: 2.5 floors to 2


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_overlap_of_a_shifted_copy_is_what_is_left(make_grid, axis, share):
    fixed = make_grid("oblique", SHAPE, SPACING, CENTRE)
    shift = np.eye(4)
    shift[:3, 3] = fixed.world_from_vox[:3, axis] * SHAPE[axis] * (1 - share)
    assert overlap_fraction(fixed, fixed, shift) == pytest.approx(share, abs=1 / 24)


def test_overlap_of_a_square_turned_by_45_degrees(make_grid):
    fixed = make_grid("RAS", (10, 20, 6), (2.0, 1.0, 3.0))  # 20 by 20 mm in x and y
    moving = make_grid("LPS", (40, 8, 9), (0.5, 2.5, 2.0))
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", 45, degrees=True).as_matrix()
    assert overlap_fraction(fixed, moving, turn) == pytest.approx(2 * (np.sqrt(2) - 1), abs=0.03)


def test_overlap_needs_the_affine_in_the_right_direction(make_grid):
    fixed = make_grid("RAS", SHAPE, SPACING, (0, 0, 0))
    moving = make_grid("LAS", SHAPE, SPACING, (100, 0, 0))
    moving_from_fixed = np.eye(4)
    moving_from_fixed[0, 3] = 100
    assert overlap_fraction(fixed, moving, np.eye(4)) == 0
    assert overlap_fraction(fixed, moving, moving_from_fixed) == 1
    assert overlap_fraction(fixed, moving, np.linalg.inv(moving_from_fixed)) == 0


def test_extent_in_words():
    grid = Grid((10, 20, 30), np.array([[-2, 0, 0, 9], [0, 1, 0, -5], [0, 0, 3, 0.5], [0, 0, 0, 1.0]]))
    assert describe_extent(grid) == "x -10..10 y -6..14 z -1..89 mm"
    small = Grid((4, 5, 6), np.array([[0.1, 0, 0, 400], [0, 0.1, 0, -500], [0, 0, 0.1, 600], [0, 0, 0, 1.0]]))
    assert describe_extent(small) == "x 399.95..400.35 y -500.05..-499.55 z 599.95..600.55 mm"


def test_a_slightly_sheared_grid_is_squared_by_polar_decomposition():
    """scipy's, of the directions; sizes and the first voxel stay, and the corner that goes furthest is the measure."""
    affine = affine_of("PIR", (8, -13, 19))
    affine[:3, 1] += 8e-4 * np.linalg.norm(affine[:3, 1]) / np.linalg.norm(affine[:3, 0]) * affine[:3, 0]
    grid, sizes = Grid(SHAPE, affine), voxel_sizes(affine)
    found = squared(affine)
    np.testing.assert_allclose(found[:3, :3], polar(affine[:3, :3] / sizes)[0] * sizes, atol=1e-12)
    np.testing.assert_array_equal(found[:, 3], affine[:, 3])
    np.testing.assert_allclose(voxel_sizes(found), sizes, rtol=1e-12)
    corners = np.array(list(product(*[(0, n - 1) for n in SHAPE])), float)
    apart = apply_affine(np.linalg.inv(affine), apply_affine(found, corners)) - corners
    assert shear_vox(grid) == pytest.approx(np.linalg.norm(apart, axis=1).max(), rel=1e-9)
    assert 1e-3 < shear_vox(grid) < 0.02
    assert shear_vox(Grid(SHAPE, affine_of("PIR", (8, -13, 19)))) < 1e-9


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_what_is_singular_does_not_depend_on_the_unit(unit):
    thin, thinner = (np.diag([2.0 * unit, unit, least * unit, 1]) for least in (3e-6, 1.9e-6))
    assert Grid((2, 2, 2), thin).spacing_mm == pytest.approx((2 * unit, unit, 3e-6 * unit))
    with pytest.raises(GeometryError, match="singular"):
        Grid((2, 2, 2), thinner)


def test_grids_are_the_same_within_a_share_of_the_smallest_voxel(make_grid):
    shape, spacing = (7, 9, 8), (4.0, 0.5, 2.0)
    grid = make_grid("oblique-permuted", shape, spacing)
    for along, share, same in ((0, 0.08, True), (0, 0.12, False), (2, 0.08, True), (2, -0.12, False)):
        moved = grid.world_from_vox.copy()
        moved[along, 3] += share * 0.5
        assert same_grid(grid, Grid(shape, moved), 0.1) is same
    longer = grid.world_from_vox.copy()
    longer[:3, 2] *= 1 + 0.12 * 0.5 / 16  # at the far corners 0.06 mm away along an oblique axis
    assert np.abs(Grid(shape, longer).corners_mm() - grid.corners_mm()).max() > 0.05
    assert not same_grid(grid, Grid(shape, longer), 0.1)
    assert not same_grid(grid, Grid((7, 9, 9), grid.world_from_vox), 0.1)


def test_the_field_of_view_ends_with_the_faces_of_its_outer_voxels():
    edges = np.array([[-0.5, 0, 0], [6.5, 8.5, 4.5], [-0.5001, 4, 2], [3, 8.5001, 2], [3, 4, 4.5001], [3, 4, -0.6]]).T
    assert in_view(edges, (7, 9, 5)).tolist() == [True, True, False, False, False, False]
    assert in_view(edges[:, ::-1, None], (7, 9, 5)).tolist() == [[False]] * 4 + [[True]] * 2

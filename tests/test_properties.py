"""What holds for every geometry: oblique, left-handed, anisotropic grids drawn by hypothesis, the same in each run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from ofg_deploy.field import jacobian_determinant, resample, total_displacement_mm, warp
from ofg_deploy.geometry import Grid, canonical, in_view, lattice, network_grid, same_grid, transform_points
from ofg_deploy.transform.dialects import ON_ONE_GRID, Registration, load_linear, load_map, roundtrip_mm, write
from ofg_deploy.transform.inverse import invert
from ofg_deploy.transform.itk import read_composite, save_affine
from ofg_deploy.transform.maps import Chain, LinearMap, field_map

always_the_same = settings(max_examples=20, deadline=None, derandomize=True, database=None)
NAMES = {"itk": "w_Warp.nii.gz", "ants": "w_1Warp.nii.gz", "itk-h5": "w.h5", "fsl": "w_fsl.nii.gz"}
NAMES |= {"l2r": "disp.nii.gz", "voxelmorph": "w.npz"}


@st.composite
def grids(draw: Any) -> Grid:
    """Any rotation, handedness, order of axes, voxel size and place."""
    shape = tuple(draw(st.lists(st.integers(5, 11), min_size=3, max_size=3)))
    spacing = draw(st.lists(st.floats(0.4, 6.0), min_size=3, max_size=3))
    angles = draw(st.lists(st.floats(-180, 180), min_size=3, max_size=3))
    turn = Rotation.from_euler("zyx", angles, degrees=True).as_matrix()
    if draw(st.booleans()):
        turn[:, draw(st.integers(0, 2))] *= -1
    matrix = np.eye(4)
    matrix[:3, :3] = turn * spacing
    matrix[:3, 3] = draw(st.lists(st.floats(-300, 300), min_size=3, max_size=3))
    return Grid(shape, matrix)


@st.composite
def affines(draw: Any) -> np.ndarray:
    """A rotation, unequal scales, a shear and a shift."""
    angles = draw(st.lists(st.floats(-40, 40), min_size=3, max_size=3))
    scales = np.diag(draw(st.lists(st.floats(0.7, 1.4), min_size=3, max_size=3)))
    scales[0, 1] = draw(st.floats(-0.2, 0.2))
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ scales
    matrix[:3, 3] = draw(st.lists(st.floats(-60, 60), min_size=3, max_size=3))
    return matrix


def smooth(grid: Grid, seed: int, share: float = 0.15) -> np.ndarray:
    """(3, X, Y, Z) mm without symmetry; its slope stays below ``share``, so that x + u can be inverted."""
    rng = np.random.default_rng(seed)
    phase = lattice(grid.shape) * rng.uniform(0.3, 0.6, (3, 1, 1, 1)) + rng.uniform(0, 6, (3, 1, 1, 1))
    waves = np.stack([np.sin(phase[a]) * np.cos(phase[b]) for a, b in ((0, 1), (1, 2), (2, 0))])
    return (share * min(grid.spacing_mm) * waves).astype(np.float32)


def points_in(grid: Grid, seed: int, count: int = 40) -> np.ndarray:
    """(3, count) world points well within the field of view."""
    rng = np.random.default_rng(seed)
    index = rng.uniform(0.1, 0.9, (3, count)) * (np.array(grid.shape)[:, None] - 1)
    return transform_points(grid.world_from_vox, index)


def stored_otherwise(data: np.ndarray, grid: Grid, axes: list[int], flips: tuple[bool, ...]) -> tuple[np.ndarray, Grid]:
    """(..., X, Y, Z) with axes permuted and reversed, and the grid on which each voxel is where it was."""
    turn = np.zeros((4, 4))  # old index from new index
    turn[3, 3] = 1
    for new, old in enumerate(axes):
        turn[old, new] = -1 if flips[old] else 1
        turn[old, 3] = grid.shape[old] - 1 if flips[old] else 0
    first = data.ndim - 3
    stored = np.flip(data, [first + axis for axis in range(3) if flips[axis]])
    stored = np.ascontiguousarray(stored.transpose(*range(first), *(first + axis for axis in axes)))
    return stored, Grid(stored.shape[first:], grid.world_from_vox @ turn)


def off_the_faces(index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Where (3, ...) voxel indices are not on the face of the field of view: there rounding decides what is inside."""
    upper = np.array(shape)[:, None, None, None] - 0.5
    return np.minimum(abs(index + 0.5), abs(index - upper)).min(axis=0) > 1e-3


@pytest.mark.parametrize("dialect", sorted(NAMES))
@always_the_same
@given(grid=grids(), other=grids(), affine=affines(), seed=st.integers(0, 99))
def test_every_dialect_holds_the_whole_map(
    dialect: Any, grid: Grid, other: Grid, affine: np.ndarray, seed: int
) -> None:
    """Written and read back, at points between voxels: within the rounding of float32."""
    moving = Grid(grid.shape, grid.world_from_vox) if dialect in ON_ONE_GRID else other
    total = total_displacement_mm(smooth(grid, seed) / min(grid.spacing_mm), grid, grid, affine)
    found = Registration(total, affine, grid, moving)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / NAMES[dialect]]
        write(paths[0], dialect, found)
        if dialect == "ants":
            paths.append(Path(folder) / "w_0GenericAffine.mat")
            save_affine(paths[1], affine)
        assert roundtrip_mm(paths, dialect, found) < 1e-3
        if dialect == "itk-h5":  # what is ours needs no process of its own to be read in
            back = Chain(tuple(read_composite(paths[0])))
        else:
            back = Chain(tuple(load_map(path, dialect, grid, moving) for path in paths))
        points = points_in(grid, seed)
        there, known = back.displacement_mm(points)
        expected, _ = field_map(total, grid, "found").displacement_mm(points)
        assert known.all()
        # Between voxels an affine part that was folded in and one applied afterwards are the same but for rounding.
        np.testing.assert_allclose(there, expected, atol=2e-3)
        if dialect in ("itk", "itk-h5"):
            lps = np.array([-1.0, -1.0, 1.0])[:, None]
            if dialect == "itk":
                image = sitk.ReadImage(str(paths[0]), sitk.sitkVectorFloat64)
                transform: sitk.Transform = sitk.DisplacementFieldTransform(image)
            else:
                transform = sitk.ReadTransform(str(paths[0]))
            reached = np.array([transform.TransformPoint(p) for p in (points * lps).T.tolist()]).T * lps
            np.testing.assert_allclose(reached, points + expected, atol=2e-3)


@always_the_same
@given(grid=grids(), affine=affines(), seed=st.integers(0, 99))
def test_inverting_and_applying_comes_home(grid: Grid, affine: np.ndarray, seed: int) -> None:
    forward = Chain((field_map(smooth(grid, seed), grid, "found"), LinearMap(affine)))
    points = points_in(grid, seed)
    away, _ = forward.displacement_mm(points)
    back, known = invert(forward).displacement_mm(points + away)
    assert known.all()
    np.testing.assert_allclose(points + away + back, points, atol=1e-3 * min(grid.spacing_mm))


@always_the_same
@given(affine=affines())
def test_an_affine_file_holds_the_affine(affine: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_affine(Path(folder) / "a.mat", affine)
        np.testing.assert_allclose(load_linear(Path(folder) / "a.mat"), affine, atol=1e-9, rtol=1e-9)


@always_the_same
@given(
    fixed=grids(),
    moving=grids(),
    axes=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.booleans()] * 3),
    seed=st.integers(0, 99),
)
def test_the_order_of_the_moving_voxels_does_not_matter(
    fixed: Grid, moving: Grid, axes: list[int], flips: tuple[bool, ...], seed: int
) -> None:
    """The same voxels at the same places, stored in another order and direction, give the same warped image."""
    data = np.random.default_rng(seed).random(moving.shape).astype(np.float32)
    stored, again = stored_otherwise(data, moving, axes, flips)
    to_centre = np.eye(4)
    to_centre[:3, 3] = (moving.corners_mm() - fixed.corners_mm()).mean(axis=1)
    one, two = (resample(d, g, fixed, to_centre) for d, g in ((data, moving), (stored, again)))
    index = transform_points(moving.vox_from_world @ to_centre @ fixed.world_from_vox, lattice(fixed.shape))
    compared = off_the_faces(index, moving.shape)
    np.testing.assert_allclose(one[compared], two[compared], atol=1e-4)
    displacement = (smooth(fixed, seed).reshape(3, -1) + to_centre[:3, 3:]).reshape(3, *fixed.shape).astype(np.float32)
    one, two = (warp(d, g, fixed, displacement) for d, g in ((data, moving), (stored, again)))
    index += np.tensordot(moving.vox_from_world[:3, :3], displacement - to_centre[:3, 3:, None, None], axes=1)
    compared = off_the_faces(index, moving.shape)
    np.testing.assert_allclose(one[compared], two[compared], atol=1e-3)  # the displacement is in float32
    outside = compared & ~in_view(index, moving.shape)
    assert not one[outside].any(), "nothing was said of what lies outside, so it is 0"


@always_the_same
@given(
    fixed=grids(),
    moving=grids(),
    affine=affines(),
    axes=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.booleans()] * 3),
    seed=st.integers(0, 99),
)
def test_the_order_of_the_fixed_voxels_does_not_matter(
    fixed: Grid, moving: Grid, affine: np.ndarray, axes: list[int], flips: tuple[bool, ...], seed: int
) -> None:
    """A network's field on the fixed grid stored otherwise is the same map, and its inverse and Jacobian are."""
    affine = affine.copy()  # brings the middle of one grid to that of the other
    middles = [grid.corners_mm().mean(axis=1) for grid in (fixed, moving)]
    affine[:3, 3] = middles[1] - affine[:3, :3] @ middles[0]
    field = smooth(fixed, seed) / min(fixed.spacing_mm)  # voxels, components along the axes
    stored, again = stored_otherwise(field, fixed, axes, flips)
    signs = np.array([-1.0 if flips[old] else 1.0 for old in axes], np.float32)
    stored = np.ascontiguousarray(stored[list(axes)] * signs[:, None, None, None])
    totals = [total_displacement_mm(f, g, g, affine) for f, g in ((field, fixed), (stored, again))]
    expected, _ = stored_otherwise(totals[0], fixed, axes, flips)
    np.testing.assert_allclose(totals[1], expected, atol=1e-3)
    jacobians = [jacobian_determinant(t, g.world_from_vox) for t, g in zip(totals, (fixed, again), strict=True)]
    np.testing.assert_allclose(jacobians[1], stored_otherwise(jacobians[0], fixed, axes, flips)[0], atol=1e-3)
    data = np.random.default_rng(seed).random(moving.shape).astype(np.float32)
    warped = [warp(data, moving, g, t) for g, t in ((fixed, totals[0]), (again, totals[1]))]
    places = transform_points(fixed.world_from_vox, lattice(fixed.shape)) + totals[0]
    compared = off_the_faces(transform_points(moving.vox_from_world, places), moving.shape)
    kept, _ = stored_otherwise(compared, fixed, axes, flips)
    wanted, _ = stored_otherwise(warped[0], fixed, axes, flips)
    np.testing.assert_allclose(warped[1][kept], wanted[kept], atol=2e-3)


@always_the_same
@given(fixed=grids(), moving=grids(), affine=affines(), seed=st.integers(0, 99))
def test_resampling_is_scipys_at_the_same_places(fixed: Grid, moving: Grid, affine: np.ndarray, seed: int) -> None:
    """Inside the outermost voxel centres, where both have the same rule."""
    data = np.random.default_rng(seed).random(moving.shape)
    index = transform_points(moving.vox_from_world @ affine @ fixed.world_from_vox, lattice(fixed.shape))
    inner = ((index >= 0) & (index <= np.array(moving.shape)[:, None, None, None] - 1)).all(axis=0)
    found = resample(data, moving, fixed, affine)
    np.testing.assert_allclose(found[inner], map_coordinates(data, index, order=1)[inner], atol=1e-9)


@always_the_same
@given(grid=grids(), affine=affines())
def test_the_jacobian_of_an_affine_is_its_determinant(grid: Grid, affine: np.ndarray) -> None:
    points = transform_points(grid.world_from_vox, lattice(grid.shape))
    displacement = transform_points(affine, points) - points
    found = jacobian_determinant(displacement, grid.world_from_vox)
    np.testing.assert_allclose(found, np.linalg.det(affine[:3, :3]), rtol=1e-4)


@always_the_same
@given(grid=grids(), axes=st.sampled_from(["RAS", "LIA", "LPS", "PIR"]))
def test_canonical_axes_move_no_voxel(grid: Grid, axes: str) -> None:
    """The same set of world positions, along the axes asked for as closely as the grid allows."""
    other = canonical(grid, axes)
    one, two = (transform_points(g.world_from_vox, lattice(g.shape)).reshape(3, -1) for g in (grid, other))
    order = [np.lexsort(np.round(p, 3)) for p in (one, two)]
    np.testing.assert_allclose(np.sort(one.ravel()), np.sort(two.ravel()), atol=1e-6)
    assert len(order[0]) == len(order[1])
    np.testing.assert_allclose(grid.corners_mm().mean(axis=1), other.corners_mm().mean(axis=1), atol=1e-6)
    signs = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    directions = other.world_from_vox[:3, :3] / other.spacing_mm
    along = sum(directions[signs[a][0], n] * signs[a][1] for n, a in enumerate(axes))
    assert along > 1  # each of three axes within a quarter turn of what was asked for, together
    assert all(directions[signs[a][0], n] * signs[a][1] > 0 for n, a in enumerate(axes))


@always_the_same
@given(grid=grids(), spacing=st.lists(st.floats(0.5, 5), min_size=3, max_size=3))
def test_a_networks_grid_is_centred_on_the_field_of_view(grid: Grid, spacing: list[float]) -> None:
    found = network_grid(grid, (16, 16, 32), tuple(spacing))  # type: ignore[arg-type]
    middle = (np.array(found.shape) - 1) / 2
    centre = transform_points(found.world_from_vox, middle[:, None])[:, 0]
    wanted = grid.corners_mm().mean(axis=1)
    assert np.linalg.norm(centre - wanted) <= np.linalg.norm(spacing) / 2 + 1e-6
    np.testing.assert_allclose(found.spacing_mm, spacing, rtol=1e-6)


@always_the_same
@given(grid=grids(), seed=st.integers(0, 99))
def test_a_grid_is_the_same_as_far_as_its_corners_are(grid: Grid, seed: int) -> None:
    """Up to the share of the smallest voxel size that was asked for, and no further."""
    way = np.random.default_rng(seed).choice([-1.0, 1.0], 3)
    for moved, same in ((0.09, True), (0.11, False)):
        matrix = grid.world_from_vox.copy()
        matrix[:3, 3] += moved * min(grid.spacing_mm) * way
        assert same_grid(grid, Grid(grid.shape, matrix), 0.1) is same
    assert not same_grid(grid, Grid((*grid.shape[:2], grid.shape[2] + 1), grid.world_from_vox), 1e6)


def test_the_faces_of_the_field_of_view_belong_to_it() -> None:
    """A voxel reaches half a voxel beyond its centre, as ITK has it; two voxels are enough for an axis."""
    shape = Grid((2, 3, 4), np.eye(4)).shape
    for axis, n in enumerate(shape):
        for at, inside in ((-0.5, True), (-0.501, False), (n - 0.5, True), (n - 0.499, False)):
            index = np.full((3, 1), 0.7)
            index[axis] = at
            assert in_view(index, shape).tolist() == [inside], (axis, at)

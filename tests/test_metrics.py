"""Measures against SimpleITK's filters, brute force and formulas."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import correlate, gaussian_filter
from scipy.spatial.distance import cdist
from scipy.stats import pearsonr

from ofg_deploy.field import jacobian_determinant
from ofg_deploy.geometry import Grid, transform_points
from ofg_deploy.metrics import (
    dice,
    folding_percent,
    hausdorff_mm,
    hd95_mm,
    mean,
    ncc,
    non_diffeomorphic_percent,
    sdlogj,
    sdlogj_l2r,
)

SPACING = (0.8, 1.9, 3.1)


@pytest.fixture(scope="module")
def maps(make_grid, world_labels) -> tuple[np.ndarray, np.ndarray]:
    """The same ellipsoids, the second time shifted, so that every label overlaps in part."""
    shape = (60, 31, 17)
    return (
        world_labels(make_grid("RAS", shape, SPACING, (1.0, 2.0, -1.0))),
        world_labels(make_grid("RAS", shape, SPACING, (3.5, -1.5, 1.0))),
    )


def to_image(labels: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(labels.astype(np.int16).transpose(2, 1, 0))
    image.SetSpacing(SPACING)
    return image


def test_dice_is_simpleitks(maps):
    a, b = maps
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(to_image(a), to_image(b))
    expected = {label: overlap.GetDiceCoefficient(label) for label in (3, 7, 12)}
    assert dice(a, b) == pytest.approx(expected, rel=1e-9)
    assert 0.2 < min(expected.values()) < max(expected.values()) < 0.95


def test_dice_of_a_label_in_one_map_only_is_zero_and_background_is_not_a_label():
    a, b = np.zeros((3, 4, 5), np.int32), np.zeros((3, 4, 5), np.uint8)
    a[0], b[2] = 4, 9
    a[1, 1, 1] = -2
    assert dice(a, b) == {-2: 0.0, 4: 0.0, 9: 0.0}
    assert dice(np.zeros((2, 2, 2), int), np.zeros((2, 2, 2), int)) == {}


def surface(mask: np.ndarray) -> np.ndarray:
    """Indices of voxels with a 6-neighbour outside, found by shifting the mask."""
    padded = np.pad(mask, 1)
    whole = np.ones_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            whole &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~whole)


def brute_force(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...] = SPACING, percentile: float = 95) -> float:
    """The larger of both directed percentiles, from all pairs of surface voxels."""
    distances = cdist(surface(a) * spacing, surface(b) * spacing)
    return max(float(np.percentile(distances.min(axis=axis), percentile)) for axis in (0, 1))


def test_hd95_is_the_larger_directed_percentile(maps):
    a, b = maps
    found = hd95_mm(a, b, SPACING)
    assert set(found) == {3, 7, 12}
    for label, value in found.items():
        assert value == pytest.approx(brute_force(a == label, b == label), rel=1e-9)


@pytest.fixture(scope="module", params=["RAS", "oblique-permuted", "left-handed"])
def blobs(request, make_grid) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Two random maps of three ragged labels (5, 40, 1000), alike in part, and their anisotropic grid."""
    grid = make_grid(request.param, (31, 26, 22), (0.9, 2.1, 3.4), (12.0, -7.0, 3.0))
    rng = np.random.default_rng(len(request.param))
    first = gaussian_filter(rng.standard_normal(grid.shape), 2.5)
    second = first + 0.35 * gaussian_filter(rng.standard_normal(grid.shape), 2.0)
    steps = np.quantile(first, [0.6, 0.8, 0.93])
    names = np.array([0, 5, 40, 1000])
    return names[np.digitize(first, steps)].astype(np.uint16), names[np.digitize(second, steps)].astype(np.int32), grid


def test_overlap_and_distance_of_random_blobs_are_simpleitks(blobs, to_sitk):
    a, b, grid = blobs
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(to_sitk(a.astype(np.int32), grid), to_sitk(b, grid))
    assert dice(a, b) == pytest.approx({k: overlap.GetDiceCoefficient(k) for k in (5, 40, 1000)}, rel=1e-9)
    assert 0.1 < min(dice(a, b).values()) < max(dice(a, b).values()) < 0.9
    found = hd95_mm(a, b, grid.spacing_mm)
    for label in (5, 40, 1000):
        masks = [to_sitk((labels == label).astype(np.uint8), grid) for labels in (a, b)]
        # The filter measures between sets of voxels: given the surfaces, taken by its own erosion, between surfaces.
        shells = [m - sitk.BinaryErode(m, (1, 1, 1), sitk.sitkCross, 0, 1, False) for m in masks]
        hausdorff = sitk.HausdorffDistanceImageFilter()
        hausdorff.Execute(*shells)
        whole = hausdorff_mm(a == label, b == label, grid.spacing_mm, percentile=100)
        assert whole == pytest.approx(hausdorff.GetHausdorffDistance(), rel=1e-5)
        assert found[label] == pytest.approx(brute_force(a == label, b == label, grid.spacing_mm), rel=1e-9)
        assert 0 < found[label] < whole


def test_hd95_takes_the_worse_direction_and_does_not_pool():
    """Everything of the small one is close to the large one, not the other way round."""
    a, b = np.zeros((40, 9, 8), np.uint8), np.zeros((40, 9, 8), np.uint8)
    a[2:6, 2:6, 2:5] = 1
    b[2:38, 2:6, 2:5] = 1
    expected = brute_force(a == 1, b == 1)
    assert hd95_mm(a, b, SPACING) == hd95_mm(b, a, SPACING) == {1: pytest.approx(expected)}
    assert expected > 29 * SPACING[0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_hd95_of_a_plate_moved_across_is_the_way_it_went(axis):
    """Every surface distance of a one voxel thin plate is the same: percentile and Hausdorff distance coincide."""
    a, b = np.zeros((9, 9, 9), np.uint8), np.zeros((9, 9, 9), np.uint8)
    index = [slice(None)] * 3
    for labels, at in ((a, 2), (b, 5)):
        index[axis] = at
        labels[tuple(index)] = 1
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(to_image(a), to_image(b))
    assert hd95_mm(a, b, SPACING) == {1: pytest.approx(3 * SPACING[axis])}
    assert hausdorff.GetHausdorffDistance() == pytest.approx(3 * SPACING[axis], rel=1e-6)


def test_hd95_of_labels_that_touch_the_border_and_of_missing_ones():
    a, b = np.zeros((6, 5, 4), np.int16), np.zeros((6, 5, 4), np.int16)
    a[:], b[:] = 1, 1
    b[:2] = 2
    found = hd95_mm(a, b, SPACING)
    assert set(found) == {1}  # 2 is in one map only: no distance
    assert found[1] == pytest.approx(brute_force(a == 1, b == 1), rel=1e-9)
    assert found[1] > 0


def test_folding_counts_zero_as_folded():
    assert folding_percent(np.array([1.0, 0.5, 0.0, -1.0, 2.0])) == pytest.approx(40.0)


def test_sdlogj_of_a_lognormal_is_its_sigma():
    logs = np.random.default_rng(6).normal(0.3, 0.17, (40, 50, 30))
    assert sdlogj(np.exp(logs).astype(np.float32)) == pytest.approx(logs.std(), rel=1e-4)
    assert sdlogj(np.array([-1.0, 1.0])) == pytest.approx(np.log(1e9) / 2)


def learn2reg_jacobian(field_vox: np.ndarray) -> np.ndarray:
    """(3, X, Y, Z) -> determinants without the outer two voxels, by correlation as Learn2Reg has it."""
    kernels = [np.array([-0.5, 0, 0.5]).reshape([3 if a == axis else 1 for a in range(3)]) for axis in range(3)]
    rows = [[correlate(u.astype(float), k, mode="constant") for k in kernels] for u in field_vox]
    matrices = np.moveaxis(np.array(rows), (0, 1), (-2, -1)) + np.eye(3)
    return np.linalg.det(matrices)[2:-2, 2:-2, 2:-2]


def smooth_field(shape: tuple[int, int, int], size: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return size * np.array([gaussian_filter(rng.standard_normal(shape), 1.5) for _ in range(3)])


def test_sdlogj_of_learn2reg_is_that_of_its_script():
    field = smooth_field((19, 17, 14), 9)
    expected = np.log(np.clip(learn2reg_jacobian(field) + 3, 1e-9, 1e9)).std()
    assert sdlogj_l2r(jacobian_determinant(field)) == pytest.approx(expected, rel=1e-5)
    assert 0.05 < expected < 0.9 * sdlogj(jacobian_determinant(field))
    assert sdlogj_l2r(np.ones((4, 9, 9))) is None


def world_field(grid: Grid) -> np.ndarray:
    """A displacement given by formulas in world mm, linear in each coordinate within 1 percent on small grids."""
    x, y, z = transform_points(grid.world_from_vox, np.indices(grid.shape, dtype=float)) / 40
    return 6 * np.array([np.sin(x + 0.3 * y) + 0.2 * z, np.cos(y - 0.5 * z), 0.4 * x * z + np.sin(z)])


def test_jacobians_in_the_world_do_not_depend_on_the_grid(make_grid):
    """The same map on lattices of other orientation and spacing, against its derivative by formulas at the centre."""
    centre = (4.0, -3.0, 2.0)
    grids = [
        make_grid(name, (21, 21, 21), spacing, centre)
        for name, spacing in (("RAS", (1, 1, 1)), ("oblique", (1, 1, 1)), ("left-handed", (0.6, 1.4, 0.9)))
    ]
    determinants = [jacobian_determinant(world_field(g), g.world_from_vox)[10, 10, 10] for g in grids]
    x, y, z = np.array(centre) / 40
    c, s, w = np.cos(x + 0.3 * y), np.sin(y - 0.5 * z), 6 / 40
    gradient = w * np.array([[c, 0.3 * c, 0.2], [0, -s, 0.5 * s], [0.4 * z, 0, 0.4 * x + np.cos(z)]])
    assert determinants == pytest.approx([np.linalg.det(np.eye(3) + gradient)] * 3, rel=1e-3)
    same_place = make_grid("LPS", (42, 21, 63), (0.5, 1.0, 1 / 3), centre)
    spreads = [sdlogj(jacobian_determinant(world_field(g), g.world_from_vox)) for g in (grids[0], same_place)]
    assert spreads[1] == pytest.approx(spreads[0], rel=0.01)
    folded = [non_diffeomorphic_percent(-40 * world_field(g), g.world_from_vox) for g in (grids[0], same_place)]
    assert folded[1] == pytest.approx(folded[0], rel=0.02)
    assert folded[0] > 5


def test_an_affine_after_the_map_adds_a_constant_to_the_logarithm(make_grid, some_affine):
    grid = make_grid("oblique-permuted", (15, 13, 17), (2.0, 3.0, 1.5))
    points = transform_points(grid.world_from_vox, np.indices(grid.shape, dtype=float))
    inner = world_field(grid)
    total = transform_points(some_affine, points + inner) - points
    a, b = (jacobian_determinant(u, grid.world_from_vox) for u in (inner, total))
    assert sdlogj(a) == pytest.approx(sdlogj(b), rel=1e-4)
    assert np.log(b.mean() / a.mean()) == pytest.approx(np.log(np.linalg.det(some_affine)), abs=1e-4)


def slow_non_diffeomorphic(displacement: np.ndarray, world_from_vox: np.ndarray) -> float:
    """Cube by cube and tetrahedron by tetrahedron: corners listed by hand, volumes by ``numpy.linalg.det``."""
    shape = displacement.shape[1:]
    one_way = [("000", "100", "010", "001"), ("110", "100", "010", "111"), ("101", "100", "001", "111"),
               ("011", "010", "001", "111"), ("100", "010", "001", "111")]  # fmt: skip
    mirrored = [tuple("".join("10"[int(d)] if i == 0 else d for i, d in enumerate(c)) for c in t) for t in one_way]
    lost = whole = 0.0
    for cube in np.ndindex(*(n - 1 for n in shape)):
        for tetrahedron in one_way + mirrored:
            index = np.array([[cube[i] + int(d) for i, d in enumerate(corner)] for corner in tetrahedron])
            rest = index @ world_from_vox[:3, :3].T
            moved = rest + displacement[:, index[:, 0], index[:, 1], index[:, 2]].T
            before, after = (np.linalg.det(p[1:] - p[0]) / 6 for p in (rest, moved))
            whole += abs(before) / 2
            lost += max(0.0, -after * np.sign(before)) / 2
    return 100 * lost / whole


@pytest.mark.parametrize("name", ["RAS", "oblique", "left-handed"])
def test_non_diffeomorphic_volume_is_that_of_a_slow_loop(make_grid, name):
    grid = make_grid(name, (7, 6, 8), (1.1, 2.3, 0.7))
    displacement = smooth_field(grid.shape, 12, seed=3)
    expected = slow_non_diffeomorphic(displacement, grid.world_from_vox)
    assert 1 < expected < 60
    assert non_diffeomorphic_percent(displacement.astype(np.float32), grid.world_from_vox) == pytest.approx(
        expected, rel=1e-5
    )


def test_non_diffeomorphic_volume_of_maps_known_exactly(make_grid, some_affine):
    grid = make_grid("oblique-permuted", (9, 12, 10), (2.0, 0.8, 1.3))
    points = transform_points(grid.world_from_vox, np.indices(grid.shape, dtype=float))
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    for matrix, expected in ((np.eye(4), 0), (some_affine, 0), (mirror, 100), (np.diag([2, -0.5, 3, 1]), 300)):
        displacement = transform_points(matrix, points) - points
        assert non_diffeomorphic_percent(displacement, grid.world_from_vox) == pytest.approx(expected, abs=1e-9)
    # Plane 4 of 9 jumps over its neighbour by 1.5 voxels: the cubes behind it arrive turned over, half their size.
    jump = np.zeros((3, 9, 12, 10))
    jump[0, 4] = 1.5
    assert non_diffeomorphic_percent(jump) == pytest.approx(100 * 0.5 / 8)


def test_a_checkerboard_that_central_differences_cannot_see():
    """One voxel moved far: its own central difference is blind to it (Liu et al., figure 1), the volume is not."""
    displacement = np.zeros((3, 7, 7, 7))
    displacement[:, 3, 3, 3] = (2.5, 0, 0)
    assert jacobian_determinant(displacement)[3, 3, 3] == 1
    found = non_diffeomorphic_percent(displacement)
    assert found == pytest.approx(slow_non_diffeomorphic(displacement, np.eye(4)))
    assert found > 0


def test_ncc_is_pearsons_correlation(make_grid, world_image):
    grid = make_grid("RAS", (20, 22, 18), (3, 2, 4))
    a = world_image(grid)
    b = a + np.random.default_rng(2).normal(0, 80, a.shape).astype(np.float32)
    assert ncc(a, b) == pytest.approx(pearsonr(a.ravel().astype(float), b.ravel().astype(float)).statistic, rel=1e-9)
    assert ncc(a, -3 * a + 7) == pytest.approx(-1, abs=1e-6)
    assert ncc(a, np.full_like(a, 5)) == 0.0


def test_ncc_survives_a_large_offset():
    """Float32 sums would lose all digits here."""
    signal = np.random.default_rng(3).normal(size=(30, 30, 30))
    assert ncc((1e4 + signal).astype(np.float32), signal.astype(np.float32)) == pytest.approx(1, abs=1e-5)


def test_mean_over_labels():
    assert mean({3: 0.5, 7: 0.25}) == 0.375
    assert mean({}) is None

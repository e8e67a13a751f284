"""Measures against SimpleITK's filters, brute force and formulas."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.distance import cdist
from scipy.stats import pearsonr

from ofg_deploy.metrics import dice, folding_percent, hd95_mm, mean, ncc, sdlogj

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
    assert dice(a, b) == {4: 0.0, 9: 0.0}
    assert dice(np.zeros((2, 2, 2), int), np.zeros((2, 2, 2), int)) == {}


def surface(mask: np.ndarray) -> np.ndarray:
    """Indices of voxels with a 6-neighbour outside, found by shifting the mask."""
    padded = np.pad(mask, 1)
    whole = np.ones_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            whole &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~whole)


def brute_force_hd95(a: np.ndarray, b: np.ndarray) -> float:
    distances = cdist(surface(a) * SPACING, surface(b) * SPACING)
    return float(np.percentile(np.concatenate([distances.min(axis=0), distances.min(axis=1)]), 95))


def test_hd95_is_the_percentile_of_all_surface_distances(maps):
    a, b = maps
    found = hd95_mm(a, b, SPACING)
    assert set(found) == {3, 7, 12}
    for label, value in found.items():
        assert value == pytest.approx(brute_force_hd95(a == label, b == label), rel=1e-9)
        hausdorff = sitk.HausdorffDistanceImageFilter()
        hausdorff.Execute(to_image(a == label), to_image(b == label))
        assert 0 < value <= hausdorff.GetHausdorffDistance() + 1e-5


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
    assert found[1] == pytest.approx(brute_force_hd95(a == 1, b == 1), rel=1e-9)
    assert found[1] > 0


def test_folding_counts_zero_as_folded():
    assert folding_percent(np.array([1.0, 0.5, 0.0, -1.0, 2.0])) == pytest.approx(40.0)


def test_sdlogj_of_a_lognormal_is_its_sigma():
    logs = np.random.default_rng(6).normal(0.3, 0.17, (40, 50, 30))
    assert sdlogj(np.exp(logs).astype(np.float32)) == pytest.approx(logs.std(), rel=1e-4)
    assert sdlogj(np.array([-1.0, 1.0])) == pytest.approx(np.log(1e9) / 2)


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

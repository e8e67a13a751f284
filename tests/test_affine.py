"""The affine start finds a known map, the same one every time; its file says the same to SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from ofg_deploy.affine import _to_sitk, align
from ofg_deploy.errors import GeometryError
from ofg_deploy.nifti import Volume
from ofg_deploy.transform.itk import save_affine


def affine(degrees, scales, translation) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(scales)
    matrix[:3, 3] = translation
    return matrix


@pytest.fixture(scope="module")
def make_pair(make_grid, world_image):
    """(fixed orientation, moving orientation, moving_from_fixed) -> two volumes of one anatomy so related."""

    def make(first: str, second: str, moving_from_fixed: np.ndarray) -> tuple[Volume, Volume]:
        fixed = make_grid(first, (26, 28, 24), (3.0, 2.8, 3.2), (1.0, -2.0, 1.5))
        centre = tuple((moving_from_fixed @ [2.0, 1.0, -1.0, 1.0])[:3])
        moving = make_grid(second, (28, 25, 26), (2.9, 3.3, 3.1), centre)
        from_moving = np.linalg.inv(moving_from_fixed)
        return (
            Volume(world_image(fixed), fixed, Path("fixed.nii.gz")),
            Volume(600 - 0.4 * world_image(moving, from_moving), moving, Path("moving.nii.gz")),  # another contrast
        )

    return make


@pytest.mark.parametrize(
    ("first", "second", "truth"),
    [
        ("RAS", "LPS", affine((5, -8, 11), (1.07, 0.94, 1.03), (6, -4, 3))),
        ("oblique-permuted", "LAS", affine((-7, 9, -12), (0.95, 1.05, 0.97), (-5, 7, 4))),
        ("left-handed", "oblique", affine((4, 6, -5), (1.04, 0.98, 1.06), (30, -25, 20))),
    ],
)
def test_a_known_affine_is_found_to_less_than_a_voxel(make_pair, first, second, truth):
    fixed, moving = make_pair(first, second, truth)
    found = align(fixed, moving)
    corners = np.vstack([fixed.grid.corners_mm(), np.ones(8)])
    error = np.linalg.norm((found - truth) @ corners, axis=0)
    assert error.max() < 1.4  # half a voxel, at the outer corners of the field of view
    assert np.linalg.norm((truth - np.eye(4)) @ corners, axis=0).max() > 10


def test_the_same_pair_gives_the_same_matrix(make_pair):
    fixed, moving = make_pair("LAS", "oblique", affine((3, 2, -4), (1.02, 0.97, 1.0), (2, -3, 4)))
    mine = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    found = []
    try:
        for threads in (2, 5):  # of the caller, left as they were
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            found.append(align(fixed, moving))
            assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(mine)
    np.testing.assert_array_equal(*found)


def test_a_large_image_is_binned_without_moving(make_grid):
    """A ramp along one world direction still says where each voxel lies."""
    grid = make_grid("oblique-permuted", (151, 128, 120), (1.1, 1.3, 0.9), (5.0, -3.0, 8.0))
    direction = np.array([0.6, -0.3, 0.74])
    along = direction @ grid.world_from_vox[:3, :3]
    ramp = np.indices(grid.shape, dtype=np.float32, sparse=True)
    data = sum(a * i for a, i in zip(along, ramp, strict=True)) + direction @ grid.world_from_vox[:3, 3]
    image = _to_sitk(Volume(data.astype(np.float32), grid, Path("large.nii.gz")))
    assert np.prod(image.GetSize()) < data.size / 4
    for share in ((0.5, 0.5, 0.5), (0.4, 0.6, 0.3), (0.55, 0.35, 0.7)):
        index = tuple(int(s * n) for s, n in zip(share, image.GetSize(), strict=True))
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        assert image.GetPixel(index) == pytest.approx(direction @ point, abs=1e-2)


def test_an_optimiser_that_fails_is_one_clean_error(make_pair, monkeypatch):
    def fail(*_):
        raise RuntimeError("Exception thrown in SimpleITK\nITK ERROR: All samples map outside moving image buffer.")

    monkeypatch.setattr("ofg_deploy.affine._optimise", fail)
    with pytest.raises(GeometryError, match=r"moving.nii.gz on fixed.nii.gz \(ITK ERROR: All samples.*--init none"):
        align(*make_pair("RAS", "LAS", np.eye(4)))


def test_the_affine_file_maps_points_in_simpleitk(tmp_path, some_affine):
    path = tmp_path / "pair_0GenericAffine.mat"
    save_affine(path, some_affine)
    transform = sitk.ReadTransform(str(path))
    lps = np.array([-1, -1, 1])
    for point in np.random.default_rng(1).uniform(-90, 90, (20, 3)):
        expected = (some_affine @ [*point, 1])[:3]
        np.testing.assert_allclose(
            np.array(transform.TransformPoint((lps * point).tolist())) * lps, expected, atol=1e-9
        )


def test_the_affine_file_is_an_affine_to_ants(tmp_path, some_affine, foreign):
    ants = foreign("ants")
    path = tmp_path / "pair_0GenericAffine.mat"
    save_affine(path, some_affine)
    transform = ants.read_transform(str(path))
    point = np.array([12.0, -34.0, 21.0])
    expected = (some_affine @ [*point, 1])[:3] * [-1, -1, 1]
    np.testing.assert_allclose(transform.apply_to_point((point * [-1, -1, 1]).tolist()), expected, atol=1e-4)

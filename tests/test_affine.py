"""The affine start finds a known map, the same one every time; its file says the same to SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from ofg_deploy.affine import align
from ofg_deploy.kernels.compiled import threads
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
    found = align(fixed, moving).moving_from_fixed
    corners = np.vstack([fixed.grid.corners_mm(), np.ones(8)])
    error = np.linalg.norm((found - truth) @ corners, axis=0)
    assert error.max() < 1.4  # half a voxel, at the outer corners of the field of view
    assert np.linalg.norm((truth - np.eye(4)) @ corners, axis=0).max() > 10


def test_the_same_pair_gives_the_same_bits(make_pair):
    """Whatever threads the caller uses, and SimpleITK's own number is left as it was."""
    fixed, moving = make_pair("LAS", "oblique", affine((3, 2, -4), (1.02, 0.97, 1.0), (2, -3, 4)))
    mine = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    found = []
    for count in (1, 2):
        with threads(count):
            found.append(align(fixed, moving).moving_from_fixed)
    np.testing.assert_array_equal(*found)
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == mine


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

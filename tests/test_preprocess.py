"""The way onto the network's grid against SimpleITK's resampler and intensity recipes done by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ofg_deploy.errors import GeometryError, InputError, UsageError
from ofg_deploy.geometry import network_grid
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import Intensity, NetworkInput, Start, prepare_pair


def volume(data: np.ndarray, grid, name: str = "image.nii.gz") -> Volume:
    return Volume(np.asarray(data, dtype=np.float32), grid, Path(name))


@pytest.fixture(scope="module")
def fixed(make_grid, world_image) -> Volume:
    grid = make_grid("oblique-permuted", (23, 27, 20), (3.0, 2.6, 3.4), (1.0, -2.0, 3.0))
    return volume(world_image(grid), grid, "fixed.nii.gz")


@pytest.fixture(scope="module")
def moving(make_grid, world_image) -> Volume:
    grid = make_grid("LAS", (25, 21, 22), (2.8, 3.2, 3.1), (-4.0, 3.0, 1.0))
    return volume(world_image(grid) + 100, grid, "moving.nii.gz")


WANTED = NetworkInput((16, 12, 14), (4.5, 5.0, 4.0), Intensity("minmax"), "none")


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("percentile:1,99", Intensity("percentile", 1, 99)),
        ("percentile", Intensity("percentile", 0.5, 99.5)),
        ("minmax", Intensity("minmax")),
        ("window:-1000,400", Intensity("window", -1000, 400)),
    ],
)
def test_recipes_as_text(text, recipe):
    assert Intensity.parse(text) == recipe
    assert Intensity.parse(str(recipe)) == recipe


@pytest.mark.parametrize(
    "text",
    [
        "", "zscore", "window", "window:5", "window:5,5", "window:9,1", "window:a,b", "window:1,2,3",
        "percentile:-1,50", "percentile:1,101", "percentile:99,1", "window:nan,1", "window:-inf,inf",
    ],
)  # fmt: skip
def test_senseless_recipes_are_usage_errors(text):
    with pytest.raises(UsageError):
        Intensity.parse(text)


def test_percentile_recipe(fixed):
    ordered = np.sort(fixed.data.ravel().astype(float))
    low, high = (np.interp(p / 100 * (ordered.size - 1), np.arange(ordered.size), ordered) for p in (2, 97))
    found = Intensity("percentile", 2, 97).apply(fixed)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.clip((fixed.data - low) / (high - low), 0, 1), atol=1e-5)
    assert (found == 0).mean() > 0.01
    assert found.max() == pytest.approx(1, abs=1e-6)


def test_window_and_minmax_recipes(make_grid):
    grid = make_grid("RAS", (2, 2, 2), (1, 1, 1))
    image = volume([[[-2000, -1000], [-500, 0]], [[100, 200], [300, 3000]]], grid)
    window = Intensity("window", -1000, 1000).apply(image).ravel()
    np.testing.assert_allclose(window, [0, 0, 0.25, 0.5, 0.55, 0.6, 0.65, 1])
    np.testing.assert_allclose(Intensity("minmax").apply(image).ravel()[[0, 1, 7]], [0, 0.2, 1])


def test_a_recipe_that_leaves_nothing_names_the_file(fixed):
    with pytest.raises(InputError, match=r"fixed.nii.gz is constant within .* window:5000,6000"):
        Intensity("window", 5000, 6000).apply(fixed)


@pytest.mark.parametrize(
    "changed",
    [
        *({"shape": (16, 1, 14)}, {"spacing_mm": (1, 0, 1)}, {"spacing_mm": (1, np.nan, 1)}, {"init": "elastic"}),
        *({"axes": axes} for axes in ("RLS", "ras", "RA")),
    ],
)
def test_an_unusable_network_input_cannot_be_made(changed):
    with pytest.raises(UsageError):
        NetworkInput(
            **{"shape": (16, 12, 14), "spacing_mm": (1, 1, 1), "intensity": Intensity(), "init": "none"} | changed
        )


def test_both_images_arrive_as_simpleitk_resamples_them(fixed, moving, to_sitk, sitk_resample):
    pair = prepare_pair(fixed, moving, WANTED)
    grid = network_grid(fixed.grid, WANTED.shape, WANTED.spacing_mm)  # its place has tests of its own
    reference = to_sitk(np.zeros(grid.shape), grid)
    for image, found in ((fixed, pair.fixed), (moving, pair.moving)):
        unit = (image.data - image.data.min()) / np.ptp(image.data)
        expected = sitk_resample(to_sitk(unit, image.grid), reference, sitk.Transform(3, sitk.sitkIdentity))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert found.dtype == np.float32
        assert found.shape == WANTED.shape
    np.testing.assert_array_equal(pair.grid.world_from_vox, grid.world_from_vox)
    np.testing.assert_array_equal(pair.moving_from_fixed, np.eye(4))


def test_an_affine_start_is_applied_to_the_moving_image_alone(
    fixed, make_grid, world_image, some_affine, to_sitk, sitk_affine, sitk_resample
):
    # what lies at some_affine(x) in the moving world is the anatomy of x: the start has to find about this affine
    grid = make_grid("LAS", (30, 32, 28), (2.6, 2.8, 2.5), (1.0, -2.0, 3.0))
    moving = volume(world_image(grid, np.linalg.inv(some_affine)), grid, "moving.nii.gz")
    pair = prepare_pair(fixed, moving, WANTED, Start("affine"))
    points = np.array([[-20, 15, 10, 1], [25, -18, 12, 1], [0, 20, -18, 1]], dtype=float).T
    assert np.abs(pair.moving_from_fixed @ points - some_affine @ points).max() < 2.0
    unit = (moving.data - moving.data.min()) / np.ptp(moving.data)
    reference = to_sitk(np.zeros(pair.grid.shape), pair.grid)
    expected = sitk_resample(to_sitk(unit, grid), reference, sitk_affine(pair.moving_from_fixed))
    np.testing.assert_allclose(pair.moving, expected, atol=1e-4)
    plain = prepare_pair(fixed, moving, WANTED)
    np.testing.assert_array_equal(pair.fixed, plain.fixed)
    assert np.abs(pair.moving - plain.moving).max() > 0.1


def test_a_grid_at_the_images_spacing_crops_without_blur(make_grid, world_image):
    grid = make_grid("RAS", (20, 24, 18), (3.0, 2.5, 3.5), (1.0, 2.0, 3.0))
    image = volume(world_image(grid), grid)
    wanted = NetworkInput((12, 26, 18), (3.0, 2.5, 3.5), Intensity("minmax"), "none")
    pair = prepare_pair(image, image, wanted)
    unit = (image.data - image.data.min()) / np.ptp(image.data)
    expected = np.pad(unit[4:16], ((0, 0), (1, 1), (0, 0)))
    np.testing.assert_allclose(pair.fixed, expected, atol=1e-6)
    np.testing.assert_allclose(pair.moving, expected, atol=1e-6)


def test_images_apart_are_refused_with_both_places(fixed, make_grid, world_image):
    grid = make_grid("RAS", (10, 11, 12), (2, 2, 2), (500.0, 0.0, 0.0))
    far = volume(np.random.default_rng(0).random(grid.shape), grid, "far.nii.gz")
    for init in ("none", "header", "rigid", "affine"):
        with pytest.raises(GeometryError, match=r"fixed.nii.gz .* far.nii.gz \(x 490..510 .*do not overlap"):
            prepare_pair(fixed, far, WANTED, Start(init))


def test_little_overlap_and_content_outside_are_measured_and_reported(make_grid):
    grid = make_grid("RAS", (20, 20, 20), (2.0, 2.0, 2.0))
    x, y, _ = np.indices(grid.shape)
    ramp = volume(np.where(x < 10, 0, 10.0 + y), grid)
    shifted = make_grid("RAS", (20, 20, 20), (2.0, 2.0, 2.0), (32.0, 0.0, 0.0))
    moving = volume(ramp.data, shifted)
    # The network sees x of -8..8 mm: of the content (voxels 10..19, at 1, 3, ... 19 mm) 4 of 10 are inside.
    pair = prepare_pair(ramp, moving, NetworkInput((4, 20, 20), (4.0, 2.0, 2.0), Intensity("minmax"), "none"))
    assert pair.overlap == pytest.approx(0.2, abs=1 / 24)
    assert pair.outside == pytest.approx(0.6)
    warnings = pair.warnings()
    assert len(warnings) == 2
    assert "covers only" in warnings[0]
    assert "60% of the fixed image's content lies outside" in warnings[1]
    whole = prepare_pair(ramp, ramp, NetworkInput((20, 20, 20), (2.0, 2.0, 2.0), Intensity("minmax"), "none"))
    assert (whole.overlap, whole.outside, whole.warnings()) == (1.0, 0.0, [])

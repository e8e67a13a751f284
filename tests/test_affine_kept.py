"""No start is worse than the headers; neither the unit of length nor the scale of intensities matters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from ofg_deploy.affine import Alignment, align
from ofg_deploy.geometry import Grid, describe_extent
from ofg_deploy.nifti import Volume, load_image
from ofg_deploy.preprocess import Start

FAULTS = Path(__file__).resolve().parents[2] / "shared/faults"
needs_faults = pytest.mark.skipif(not FAULTS.is_dir(), reason="../shared/faults is not here")


def linear(degrees, scales, translation) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(scales)
    matrix[:3, 3] = translation
    return matrix


def error_mm(found: np.ndarray, truth: np.ndarray, volume: Volume) -> float:
    corners = np.vstack([volume.grid.corners_mm(), np.ones(8)])
    return float(np.linalg.norm((found - truth) @ corners, axis=0).max())


@pytest.fixture(scope="module")
def make_pair(make_grid, world_image):
    """moving_from_fixed -> volumes of one anatomy so related, on different oblique grids."""

    def make(truth: np.ndarray) -> tuple[Volume, Volume]:
        fixed = make_grid("oblique", (26, 28, 24), (3.0, 2.8, 3.2), (1.0, -2.0, 1.5))
        moving = make_grid("left-handed", (30, 25, 26), (2.7, 3.3, 3.1), tuple((truth @ [3.0, -2.0, 2.0, 1.0])[:3]))
        return (
            Volume(world_image(fixed), fixed, Path("fixed.nii.gz")),
            Volume(world_image(moving, np.linalg.inv(truth)), moving, Path("moving.nii.gz")),
        )

    return make


def gland_dice(moving_from_fixed: np.ndarray, fixed: Path, moving: Path) -> float:
    """Overlap of label maps through a map, by SimpleITK."""
    lps = np.diag([-1.0, -1, 1, 1]) @ moving_from_fixed @ np.diag([-1.0, -1, 1, 1])
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    a, b = (sitk.ReadImage(str(path), sitk.sitkUInt8) for path in (fixed, moving))
    warped = sitk.GetArrayFromImage(sitk.Resample(b, a, transform, sitk.sitkNearestNeighbor)) > 0
    still = sitk.GetArrayFromImage(a) > 0
    return 2 * np.count_nonzero(warped & still) / (np.count_nonzero(warped) + np.count_nonzero(still))


@needs_faults
@pytest.mark.parametrize("names", [("us", "mr"), ("mr", "us")])
def test_ultrasound_and_mr_of_a_prostate_do_not_collapse(names):
    """Two smooth images that tell little of each other: mutual information can be had at any scale."""
    folder = FAULTS / "affine_collapse_prostate"
    images = [folder / f"{name}_images_000026.nii.gz" for name in names]
    labels = [folder / f"{name}_labels_000026.nii.gz" for name in names]
    found = align(*map(load_image, images))
    assert gland_dice(found.moving_from_fixed, *labels) >= gland_dice(np.eye(4), *labels)
    assert np.abs(np.log(np.linalg.svd(found.moving_from_fixed[:3, :3])[1])).max() < np.log(1.25)
    assert found.kept == "header"
    [line] = found.warnings()
    assert "the affine start agreed no better than the header" in line


@needs_faults
@pytest.mark.parametrize("names", [("mt0", "mt1"), ("mt1", "mt0")])
def test_a_slab_of_five_slices_stays_where_it_is(names, to_sitk, sitk_affine, sitk_resample):
    fixed, moving = (load_image(FAULTS / "affine_start_slab" / f"{name}.nii.gz") for name in names)
    found = align(fixed, moving).moving_from_fixed
    images = [to_sitk(v.data, v.grid) for v in (fixed, moving)]

    def ncc(matrix):
        warped = sitk_resample(images[1], images[0], sitk_affine(matrix))[3:-3, 3:-3]
        return np.corrcoef(warped.ravel(), fixed.data[3:-3, 3:-3].ravel())[0, 1]

    assert ncc(found) > ncc(np.eye(4)) > 0.6
    assert error_mm(found, np.eye(4), fixed) < 3
    assert np.abs(np.linalg.svd(found[:3, :3])[1] - 1).max() < 0.03


def test_noise_on_noise_is_left_alone():
    """Nothing to find: what is found is chance, and the headers are believed."""
    rng = np.random.default_rng(4)
    fixed, moving = (
        Volume(rng.normal(size=shape).astype(np.float32), Grid(shape, np.diag([2.0, 2.2, 1.9, 1.0])), Path("x.nii"))
        for shape in ((30, 34, 28), (32, 28, 30))
    )
    found = align(fixed, moving)
    assert found.kept == "header"
    np.testing.assert_array_equal(found.moving_from_fixed, np.eye(4))


def test_what_headers_align_already_is_not_touched_and_not_warned_of(make_pair):
    found = align(*make_pair(np.eye(4)))
    assert (found.kept, found.warnings()) == ("header", [])
    np.testing.assert_array_equal(found.moving_from_fixed, np.eye(4))


def test_a_wrong_centre_does_not_replace_right_headers(make_grid, world_image):
    """A field of view cut on one side: neither its centre nor that of mass is where the other image has it."""
    fixed = make_grid("RAS", (26, 28, 24), (3.0, 2.8, 3.2))
    moving = make_grid("LAS", (15, 28, 26), (3.0, 2.9, 3.1), (16.0, 4.0, -2.0))
    found = align(*(Volume(world_image(grid), grid, Path("x.nii")) for grid in (fixed, moving)), "centre")
    assert found.kept == "header"
    assert found.measure["header"] > found.measure["centre"]
    assert "the centre start agreed no better than the header" in found.warnings()[0]


@pytest.mark.parametrize("times", [0.001, 100.0])
def test_the_unit_of_length_does_not_matter(make_pair, times):
    truth = linear((6, -9, 14), (1.06, 0.95, 1.02), (9, -7, 5))
    fixed, moving = make_pair(truth)
    matrix = np.diag([times, times, times, 1.0])
    far = [replace(v, grid=Grid(v.grid.shape, matrix @ v.grid.world_from_vox)) for v in (fixed, moving)]
    found, scaled = align(fixed, moving), align(*far)
    assert error_mm(found.moving_from_fixed, truth, fixed) < 1.4  # half a voxel, at the corners
    np.testing.assert_allclose(scaled.moving_from_fixed, matrix @ found.moving_from_fixed @ np.linalg.inv(matrix), 1e-6)
    assert scaled.measure == pytest.approx(found.measure)


@pytest.mark.parametrize(("times", "plus"), [(1e-9, 0.0), (1.0, -1024.0), (3e-3, -1.3)])
def test_scale_and_offset_of_intensities_do_not_matter(make_pair, times, plus):
    """As MR, as CT, in SI units, z-scored: the same start, and the centre of mass that ITK finds in the anatomy."""
    fixed, moving = make_pair(linear((9, -8, 12), (1, 1, 1), (40, -25, 30)))
    other = [replace(v, data=(v.data * np.float64(times) + plus).astype(np.float32)) for v in (fixed, moving)]
    for kind in ("centre", "rigid"):
        plain, same = align(fixed, moving, kind), align(*other, kind)
        assert same.kept == plain.kept == kind
        assert error_mm(same.moving_from_fixed, plain.moving_from_fixed, fixed) < 0.05


@needs_faults
def test_a_ct_starts_by_the_centre_of_mass_that_itk_finds_in_its_content(to_sitk):
    fixed, moving = (load_image(FAULTS / "ct_pair" / f"{name}_ct.nii.gz") for name in ("fixed", "moving"))
    images = [to_sitk(v.data + 1024, v.grid) for v in (fixed, moving)]
    moments = sitk.CenteredTransformInitializerFilter.MOMENTS
    transform = sitk.Euler3DTransform(sitk.CenteredTransformInitializer(*images, sitk.Euler3DTransform(), moments))
    expected = np.array(transform.GetTranslation()) * (-1, -1, 1)
    found = align(fixed, moving, "centre")
    assert (
        np.abs(found.moving_from_fixed[:3, 3] - expected).max() < 1.0
    )  # ITK weighs the extremes that are clipped here
    assert np.abs(found.moving_from_fixed[:3, 3] - (55, 50, -40)).max() < 1.0


@needs_faults
@pytest.mark.parametrize(
    ("names", "truth"),
    [
        (("si_units/fixed_m2s", "si_units/moving_m2s"), (55, 50, -40)),
        (("ct_pair/fixed_ct", "ct_pair/moving_ct"), (55, 50, -40)),
    ],
)
def test_si_units_and_ct_find_what_was_done(names, truth):
    fixed, moving = (load_image(FAULTS / f"{name}.nii.gz") for name in names)
    found = align(fixed, moving).moving_from_fixed
    assert error_mm(found, linear((0, 0, 0), (1, 1, 1), truth), fixed) < 1.5  # half a voxel, at the corners


@pytest.mark.parametrize("case", ["40 degrees", "crop in whole", "two slices"])
def test_large_displacements_and_small_views(make_grid, world_image, case):
    truth = {
        "40 degrees": linear((24, -22, 26), (1, 1, 1), (35, -30, 28)),
        "crop in whole": linear((5, -6, 4), (1, 1, 1), (6, -5, 4)),
        "two slices": linear((0, 0, 7), (1, 1, 1), (8, -6, 0)),
    }[case]
    fixed = make_grid("RAS", (30, 32, 28), (3.0, 2.8, 3.2))
    moving = {
        "40 degrees": make_grid("LPS", (34, 36, 30), (2.8, 2.9, 3.1), (20.0, -22.0, 17.0)),
        "crop in whole": make_grid("oblique", (19, 18, 20), (2.2, 2.3, 2.1), (8.0, -6.0, 6.0)),
        "two slices": make_grid("LAS", (36, 34, 2), (2.6, 2.7, 14.0), (5.0, -4.0, 0.0)),
    }[case]
    if case == "two slices":
        fixed = make_grid("RAS", (32, 34, 2), (2.8, 2.7, 14.0))
    pair = (
        Volume(world_image(fixed), fixed, Path("fixed.nii.gz")),
        Volume(world_image(moving, np.linalg.inv(truth)), moving, Path("moving.nii.gz")),
    )
    found = align(*pair, "rigid").moving_from_fixed
    index = np.argwhere(pair[0].data > 100).T
    points = fixed.world_from_vox @ np.vstack([index, np.ones(index.shape[1])])
    assert np.linalg.norm((found - truth) @ points, axis=0).max() < 2.0


def test_a_bound_that_is_reached_is_said(monkeypatch, make_pair):
    monkeypatch.setattr("ofg_deploy.affine.parameters.MOST_SCALE", 1.05)
    fixed, moving = make_pair(linear((0, 0, 0), (1.2, 0.99, 1.0), (3, -2, 4)))
    found = align(fixed, moving)
    assert found.bounds == ("scale of axis x",)
    assert np.linalg.svd(found.moving_from_fixed[:3, :3])[1].max() < 1.08
    assert "as far out as it may be (scale of axis x)" in found.warnings()[-1]
    assert found.record()["bounds_reached"] == ["scale of axis x"]


def test_the_sidecar_says_what_was_kept_and_why(tmp_path, files, tiny_model, run_cli, write_nifti):
    fixed, moving, *_ = files
    image = nib.load(moving)
    affine = image.affine.copy()
    affine[:3, 3] += (9, -7, 8)
    write_nifti(moving, image.get_fdata(dtype=np.float32), affine)
    line = ["register", fixed, moving, "-m", tiny_model().path, "-o", tmp_path / "out", "--init", "rigid"]
    assert run_cli(line)[0] == 0
    start = json.loads((tmp_path / "out" / "mov_to_fix.json").read_text())["start"]
    assert (start["asked"], start["kept"], start["bounds_reached"]) == ("rigid", "rigid", [])
    measure = start["mutual_information"]
    assert list(measure) == ["header", "centre", "rigid"]
    assert measure["rigid"] > measure["centre"] > measure["header"] > 0
    np.testing.assert_allclose(np.array(start["moving_from_fixed"])[:3, 3], (9, -7, 8), atol=1.5)


def test_another_start_than_asked_for_is_a_warning_of_the_registration(
    tmp_path, files, tiny_model, run_cli, write_nifti
):
    fixed, moving, grid, _ = files
    rng = np.random.default_rng(2)
    for path in (fixed, moving):  # smooth, and nothing to do with each other
        write_nifti(path, gaussian_filter(rng.normal(size=grid.shape), 3).astype(np.float32), grid.world_from_vox)
    line = ["register", fixed, moving, "-m", tiny_model().path, "-o", tmp_path / "out", "--init", "affine"]
    assert run_cli(line)[0] == 0
    record = json.loads((tmp_path / "out" / "mov_to_fix.json").read_text())
    assert (record["init"], record["start"]["asked"], record["start"]["kept"]) == ("affine", "affine", "header")
    np.testing.assert_array_equal(record["start"]["moving_from_fixed"], np.eye(4))
    assert any("the affine start agreed no better than the header" in line for line in record["warnings"])


def test_starts_that_look_at_no_voxel_have_nothing_to_say():
    found = Start("header").align(*[Volume(np.zeros((4, 5, 6)), Grid((4, 5, 6), np.eye(4)), Path("x.nii"))] * 2)
    assert (found.record(), found.warnings()) == ({}, [])
    assert isinstance(found, Alignment)


def test_a_small_view_is_described_with_decimals():
    grid = Grid((10, 20, 30), np.diag([0.002, 0.002, 0.003, 1.0]))
    assert describe_extent(grid) == "x -0.001..0.019 y -0.001..0.039 z -0.002..0.088 mm"

"""Where a registration starts: every ``--init``, an affine file, masks; one total transform whatever it was."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from ofg_deploy.affine import align
from ofg_deploy.nifti import Volume
from ofg_deploy.transform.dialects import load_linear
from ofg_deploy.transform.itk import save_affine


def rigid(degrees, translation) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = translation
    return matrix


@pytest.fixture(scope="module")
def make_pair(make_grid, world_image):
    """moving_from_fixed -> volumes: other contrast, odd sizes, spacing, orientation, a moving view cut on one side."""

    def make(truth: np.ndarray) -> tuple[Volume, Volume]:
        fixed = make_grid("oblique", (27, 29, 25), (3.0, 2.8, 3.2), (1.0, -2.0, 1.5))
        centre = tuple((truth @ [4.0, -3.0, 2.0, 1.0])[:3])
        moving = make_grid("left-handed", (31, 23, 29), (2.4, 3.3, 2.9), centre)
        return (
            Volume(world_image(fixed), fixed, Path("fixed.nii.gz")),
            Volume(700 - 0.5 * world_image(moving, np.linalg.inv(truth)), moving, Path("moving.nii.gz")),
        )

    return make


def error_mm(found: np.ndarray, truth: np.ndarray, volume: Volume) -> float:
    """Largest distance between both maps at the outer corners of the field of view."""
    corners = np.vstack([volume.grid.corners_mm(), np.ones(8)])
    return float(np.linalg.norm((found - truth) @ corners, axis=0).max())


def test_a_rigid_start_finds_a_rigid_map_and_stays_rigid(make_pair):
    truth = rigid((6, -9, 12), (5, -7, 4))
    fixed, moving = make_pair(truth)
    found = align(fixed, moving, "rigid").moving_from_fixed
    assert error_mm(found, truth, fixed) < 1.5  # half a voxel
    assert error_mm(np.eye(4), truth, fixed) > 10
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(found[:3, :3]) == pytest.approx(1)


def test_a_centre_start_is_one_of_both_centres(make_pair, to_sitk):
    """ITK's own initialiser, by geometry or by moments of the anatomy; here the images share no space before."""
    fixed, moving = make_pair(rigid((0, 0, 0), (300, -200, 150)))
    images = [to_sitk(data, v.grid) for data, v in ((fixed.data, fixed), (700 - moving.data, moving))]
    candidates = []
    for mode in (
        sitk.CenteredTransformInitializerFilter.GEOMETRY,
        sitk.CenteredTransformInitializerFilter.MOMENTS,
    ):
        start = sitk.CenteredTransformInitializer(*images, sitk.Euler3DTransform(), mode)
        matrix = np.eye(4)
        matrix[:3, 3] = np.array(sitk.Euler3DTransform(start).GetTranslation()) * [-1, -1, 1]
        candidates.append(matrix)
    found = align(fixed, moving, "centre").moving_from_fixed
    assert min(np.abs(found - c).max() for c in candidates) < 0.2  # moments after the clip of extremes
    assert np.abs(found[:3, 3] - [300, -200, 150]).max() < 8


@pytest.mark.parametrize("which", ["both", "fixed", "moving"])
def test_masks_decide_what_the_start_looks_at(make_grid, world_image, which):
    """A bright slab that stays where it is while the anatomy moves: only without it the anatomy's map is found."""
    truth = rigid((0, 0, 8), (9, -6, 3))
    grid = make_grid("RAS", (34, 30, 28), (3.0, 3.1, 2.9))
    fixed_data, moving_data = world_image(grid), world_image(grid, np.linalg.inv(truth))
    mask = np.ones(grid.shape, np.uint8)
    mask[:, :, 22:] = 0
    ripples = 1500 + 1200 * np.sin(np.indices(grid.shape).sum(axis=0))
    for data in (fixed_data, moving_data):
        data[:, :, 22:] = ripples[:, :, 22:]
    fixed, moving = (Volume(d, grid, Path("x.nii")) for d in (fixed_data, moving_data))
    masks = [Volume(mask, grid, Path("m.nii")) if which in ("both", name) else None for name in ("fixed", "moving")]
    found = align(fixed, moving, "rigid", *masks).moving_from_fixed
    assert error_mm(found, truth, fixed) < (1.5 if which == "both" else 3)
    assert error_mm(align(fixed, moving, "rigid").moving_from_fixed, truth, fixed) > 10


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_one_mask_keeps_the_other_content_out_of_the_measure(make_grid, world_image, which):
    """As above, but as bright as the anatomy: neither clipping nor the centres of mass tell it from that."""
    truth = rigid((0, 0, 8), (9, -6, 3))
    grid = make_grid("RAS", (34, 30, 28), (3.0, 3.1, 2.9))
    ripples = 250 + 200 * np.sin(np.indices(grid.shape, dtype=np.float32).sum(axis=0))
    fixed, moving = (Volume(world_image(grid, m), grid, Path("x.nii")) for m in (np.eye(4), np.linalg.inv(truth)))
    for volume in (fixed, moving):
        volume.data[:, :, 18:] = ripples[:, :, 18:]
    mask = np.ones(grid.shape, np.uint8)
    mask[:, :, 18:] = 0
    found = align(fixed, moving, "rigid", **{f"{which}_mask": Volume(mask, grid, Path("m.nii"))}).moving_from_fixed
    assert error_mm(found, truth, fixed) < 1.5
    assert error_mm(align(fixed, moving, "rigid").moving_from_fixed, truth, fixed) > 10


@pytest.mark.parametrize("init", ["none", "header", "centre", "rigid", "affine", "file"])
def test_the_total_transform_holds_the_start(
    tmp_path, files, tiny_model, run_cli, sitk_resample, some_affine, write_nifti, init
):
    """A network that does nothing: what is warped is the moving image through the start, interpolated once."""
    fixed, moving, *_ = files
    away = nib.load(moving)
    affine = away.affine.copy()
    affine[:3, 3] += (9, -7, 8)  # or the headers would be the best start
    write_nifti(moving, away.get_fdata(dtype=np.float32), affine)
    save_affine(tmp_path / "mine.tfm", some_affine)
    given = tmp_path / "mine.tfm" if init == "file" else init
    model = tiny_model(field=np.zeros((3, 14, 18, 16)))
    out = tmp_path / "out"
    code, _, err = run_cli(["register", fixed, moving, "-m", model.path, "-o", out, "--init", given])
    assert code == 0, err
    record = json.loads((out / "mov_to_fix.json").read_text())
    start = np.array(record["start"]["moving_from_fixed"])
    assert ("affine" in record["outputs"]) == (init != "none")
    if init == "file":
        np.testing.assert_allclose(start, some_affine, atol=1e-9)
        assert record["start"]["path"] == "../mine.tfm"
    elif init in ("none", "header"):
        np.testing.assert_array_equal(start, np.eye(4))
    else:
        assert np.abs(start - np.eye(4)).max() > 0.01
    assert record["init"] == ("../mine.tfm" if init == "file" else init)
    if init != "none":
        np.testing.assert_allclose(load_linear(out / "mov_to_fix_0GenericAffine.mat"), start, atol=1e-9)
    lps = np.diag([-1.0, -1, 1, 1])
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((lps @ start @ lps)[:3, :3].ravel().tolist())
    transform.SetTranslation((lps @ start @ lps)[:3, 3].tolist())
    expected = sitk_resample(sitk.ReadImage(str(moving)), sitk.ReadImage(str(fixed)), transform)
    found = nib.load(out / "mov_to_fix_warped.nii.gz").get_fdata()
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.ptp(expected))


def test_images_without_common_space_start_by_their_centres_only(tmp_path, files, tiny_model, run_cli, write_nifti):
    fixed, moving, *_ = files
    image = nib.load(moving)
    away = image.affine.copy()
    away[:3, 3] += (900, -400, 300)
    far = write_nifti(tmp_path / "far.nii.gz", image.get_fdata(dtype=np.float32), away)
    line = ["register", fixed, far, "-m", tiny_model().path, "-o", tmp_path / "out", "--init"]
    code, _, err = run_cli([*line, "affine"])
    assert code == 3
    assert "do not overlap in world coordinates: check the headers, or start with --init centre" in err
    code, _, err = run_cli([*line, "centre"])
    assert code == 0, err
    start = json.loads((tmp_path / "out" / "far_to_fix.json").read_text())["start"]["moving_from_fixed"]
    assert np.abs(np.array(start)[:3, 3] - [900, -400, 300]).max() < 15


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        (
            ["--init", "elastic"],
            2,
            "--init elastic: use one of none, header, centre, rigid, affine, or a linear",
        ),
        (["--init", "nowhere.mat"], 3, "nowhere.mat does not exist"),
        (["--init", "none", "--fixed-mask", "MASK"], 2, "masks have no effect with --init none"),
        (["--fixed-mask", "MASK"], 2, "masks have no effect with --init none"),  # as the model was trained
        (["--init", "rigid", "--moving-mask", "MASK"], 3, "lies on another grid than its image"),
        (["--init", "rigid", "--fixed-mask", "EMPTY"], 3, "is 0 everywhere"),
    ],
)
def test_starts_that_cannot_be_are_one_line(tmp_path, files, tiny_model, run_cli, write_nifti, extra, code, said):
    fixed, moving, grid, _ = files
    paths = {"MASK": np.ones(grid.shape, np.uint8), "EMPTY": np.zeros(grid.shape, np.uint8)}
    for name, data in paths.items():
        write_nifti(tmp_path / f"{name}.nii", data, grid.world_from_vox)
    given = [tmp_path / f"{word}.nii" if word in paths else word for word in extra]
    found, _, err = run_cli(["register", fixed, moving, "-m", tiny_model().path, "-o", tmp_path / "out", *given])
    assert (found, err.count("\n")) == (code, 1), err
    assert said in err
    assert not (tmp_path / "out").exists()

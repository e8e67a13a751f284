"""Which form ITK takes, tried with SimpleITK; what a warning says of it; a copy on which all readers agree."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine

from ofg_deploy.nifti import load_image
from ofg_deploy.readers import itk_takes_qform

FAULTS = Path(__file__).resolve().parents[2] / "shared/faults"
needs_faults = pytest.mark.skipif(not FAULTS.is_dir(), reason="../shared/faults is not here")


def itk_affine(path: Path) -> np.ndarray:
    """(4, 4) voxel -> RAS mm as SimpleITK reads it."""
    image = sitk.ReadImage(str(path))
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def two_forms(path: Path, grid, other, sform: int, qform: int, data: np.ndarray) -> Path:
    image = nib.Nifti1Image(data, grid.world_from_vox)
    image.set_sform(grid.world_from_vox, sform)
    image.set_qform(other.world_from_vox, qform)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def test_every_combination_of_codes_is_read_as_itk_reads_it(tmp_path, make_grid) -> None:
    grid = make_grid("oblique", (9, 8, 7), (2, 2.5, 3), (3, -4, 5))
    other = make_grid("left-handed", (9, 8, 7), (2, 2.5, 3), (-8, 2, 1))
    data = np.arange(504, dtype=np.float32).reshape(9, 8, 7)
    told = set()
    for sform in range(1, 6):
        for qform in range(1, 6):
            path = two_forms(tmp_path / "a.nii", grid, other, sform, qform, data)
            taken = itk_takes_qform(sform, qform)
            expected = other if taken else grid
            np.testing.assert_allclose(itk_affine(path), expected.world_from_vox, atol=1e-4)
            volume = load_image(path)
            np.testing.assert_allclose(volume.grid.world_from_vox, grid.world_from_vox, atol=1e-5)
            [warning] = volume.warnings
            assert (f"takes the qform of these codes (sform {sform}, qform {qform})" in warning) == taken
            assert f"A copy on which all agree: ofg check {path} --fix DIR" in warning
            told.add(taken)
    assert told == {True, False}
    for sform, qform in ((0, 3), (3, 0)):  # one form alone is read by all
        path = two_forms(tmp_path / "a.nii", grid, other, sform, qform, data)
        np.testing.assert_allclose(itk_affine(path), load_image(path).grid.world_from_vox, atol=1e-4)
        assert itk_takes_qform(sform, qform) == (sform == 0)


@needs_faults
@pytest.mark.parametrize("name", ["m_s4q1", "m_s2q1"])
def test_itk_carries_the_original_as_far_off_as_the_warning_says(tmp_path, run_cli, tiny_model, name) -> None:
    """And the copy that ``ofg check --fix`` writes to where our own result lies."""
    folder = FAULTS / "sform_qform_codes"
    moving, out = folder / f"{name}.nii.gz", tmp_path / "out"
    code, _, err = run_cli(["register", folder / "fix.nii.gz", moving, "-m", tiny_model(init="header").path, "-o", out])
    assert code == 0
    image = nib.load(moving)
    corners = np.array([[x, y, z] for x in (0, 29) for y in (0, 27) for z in (0, 25)], dtype=float)
    gaps = np.linalg.norm(apply_affine(image.affine, corners) - apply_affine(itk_affine(moving), corners), axis=1)
    assert gaps.max() > 11
    assert f"ITK (SimpleITK, ANTs, 3D Slicer) takes the qform of these codes (sform {name[3]}, qform 1)" in err
    assert f"up to {gaps.max():.2f} mm off" in err
    record = json.loads(next(out.glob(f"{name}_to_fix.json")).read_text())
    warped = nib.load(out / record["outputs"]["warped"])
    for form in (warped.get_sform(), warped.get_qform(), itk_affine(out / record["outputs"]["warped"])):
        np.testing.assert_allclose(form, nib.load(folder / "fix.nii.gz").affine, atol=1e-4)
    field = sitk.ReadImage(str(out / record["outputs"]["transform"]), sitk.sitkVectorFloat64)
    transform, fixed = sitk.DisplacementFieldTransform(field), sitk.ReadImage(str(folder / "fix.nii.gz"))

    def carried(path: Path) -> np.ndarray:
        found = sitk.Resample(
            sitk.ReadImage(str(path)), fixed, transform, sitk.sitkLinear, record["fill"]["moving"]["value"]
        )
        return sitk.GetArrayFromImage(found).transpose(2, 1, 0)

    gap = np.abs(carried(moving) - warped.get_fdata()).mean()
    assert run_cli(["check", moving, "--fix", tmp_path / "fixed"])[0] == 0
    copy = tmp_path / f"fixed/{name}.nii.gz"
    np.testing.assert_allclose(itk_affine(copy), image.affine, atol=1e-4)
    header = nib.load(copy).header
    assert int(header["sform_code"]) == int(header["qform_code"]) == int(name[3])
    np.testing.assert_allclose(carried(copy), warped.get_fdata(), atol=0.05)
    assert gap > 20

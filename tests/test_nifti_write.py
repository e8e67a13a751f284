"""What is written, against SimpleITK and nibabel; and what is taken for a transform of ours when it is read again."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ofg_deploy.errors import InputError
from ofg_deploy.nifti import load_transform, save_transform, save_volume


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS", "oblique", "left-handed"])
def test_a_saved_volume_lies_where_simpleitk_expects_it(tmp_path, make_grid, world_image, orientation):
    grid = make_grid(orientation, (8, 11, 6), (1.5, 2.25, 3.125), (30.0, -12.0, 7.0))
    data = world_image(grid)
    save_volume(tmp_path / "saved.nii.gz", data, grid, 4)
    image = sitk.ReadImage(str(tmp_path / "saved.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), data)
    for index in ((0, 0, 0), (7, 0, 0), (0, 10, 0), (3, 4, 5)):
        expected = grid.world_from_vox @ [*index, 1] * [-1, -1, 1, 1]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), expected[:3], atol=2e-5)
    header = nib.load(tmp_path / "saved.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 4)
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-5)


@pytest.mark.parametrize("orientation", ["LAS", "oblique", "left-handed"])
def test_a_saved_transform_is_the_map_simpleitk_reads(tmp_path, make_grid, orientation):
    grid = make_grid(orientation, (8, 11, 6), (1.5, 2.25, 3.125), (30.0, -12.0, 7.0))
    displacement = np.random.default_rng(5).normal(0, 4, (3, *grid.shape)).astype(np.float32)
    path = tmp_path / "a_Warp.nii.gz"
    save_transform(path, displacement, grid, 2)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    lps = np.array([-1, -1, 1])
    for index in ((0, 0, 0), (7, 10, 5), (3, 9, 2), (6, 1, 4)):
        point = (grid.world_from_vox @ [*index, 1])[:3]
        moved = np.array(transform.TransformPoint((lps * point).tolist())) * lps
        np.testing.assert_allclose(moved - point, displacement[(slice(None), *index)], atol=1e-3)
    header = nib.load(path).header
    assert header.get_data_shape() == (8, 11, 6, 1, 3)
    assert int(header["intent_code"]) == 1007
    back, back_grid, warnings = load_transform(path)
    assert warnings == ()
    np.testing.assert_array_equal(back, displacement)
    np.testing.assert_allclose(back_grid.world_from_vox, grid.world_from_vox, atol=1e-5)


def test_only_our_form_of_a_displacement_field_is_read(tmp_path, make_grid):
    affine = make_grid("oblique-permuted", (5, 7, 4), (1.5, 2.0, 3.1), (4.0, -8.0, 15.0)).world_from_vox
    vectors = np.zeros((5, 7, 4, 1, 3), np.float32)
    for name, data, intent in (("1006", vectors, 1006), ("no intent", vectors, 0), ("4-D", vectors[:, :, :, 0], 1007)):
        image = nib.Nifti1Image(data, affine)
        image.header.set_intent(intent)
        nib.save(image, tmp_path / f"{name}.nii.gz")
        with pytest.raises(InputError, match="not a displacement field"):
            load_transform(tmp_path / f"{name}.nii.gz")


def test_what_is_written_twice_has_the_same_bytes(tmp_path, make_grid):
    grid = make_grid("left-handed", (70, 40, 31), (1.0, 2.0, 3.0))
    field = np.random.default_rng(0).normal(size=(3, *grid.shape)).astype(np.float32)
    in_file_order = np.ascontiguousarray(field.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
    for name, each in (("a", field), ("b", in_file_order)):
        save_transform(tmp_path / f"{name}_Warp.nii.gz", each, grid)
        save_volume(tmp_path / f"{name}.nii.gz", each[0], grid)
    for kind in ("_Warp.nii.gz", ".nii.gz"):
        assert (tmp_path / f"a{kind}").read_bytes() == (tmp_path / f"b{kind}").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes()[4:8] == bytes(4)  # no time
    stored = nib.load(tmp_path / "a_Warp.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(
        stored[..., 0, :], np.moveaxis(field * np.array([-1, -1, 1])[:, None, None, None], 0, -1)
    )
    np.testing.assert_array_equal(load_transform(tmp_path / "a_Warp.nii.gz")[0], field)

"""The field of a Learn2Reg submission, read as its evaluation reads it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from ofg_deploy.errors import UsageError
from ofg_deploy.serve.learn2reg import field_name
from ofg_deploy.surfels import hd95_l2r, robust_hausdorff


@pytest.fixture
def challenge(tmp_path, make_grid, world_image, world_labels, write_nifti) -> dict[str, Path]:
    """Two cases on one oblique, anisotropic grid, named as there."""
    grid = make_grid("oblique-permuted", (24, 27, 22), (3.1, 2.6, 3.3), (1.0, -2.0, 1.5))
    shift = np.eye(4)
    shift[:3, 3] = (3, -2, 1)
    found = {"folder": tmp_path}
    for case, affine in (("0012", None), ("0345", shift)):
        path = tmp_path / f"Task_{case}_0000.nii.gz"
        found[case] = write_nifti(path, world_image(grid, affine) + 100, grid.world_from_vox)
        found[f"{case}_labels"] = write_nifti(
            tmp_path / f"labels_{case}.nii.gz", world_labels(grid), grid.world_from_vox
        )
    return found


@pytest.mark.parametrize("init", ["none", "affine"])
def test_its_evaluation_reproduces_our_warped_image_and_labels(challenge, tiny_model, run_cli, init):
    fixed, moving, out = challenge["0012"], challenge["0345"], challenge["folder"] / "out"
    line = ["register", fixed, moving, "-m", tiny_model(init=init).path, "-o", out, "--format", "l2r"]
    assert run_cli([*line, "--moving-labels", challenge["0345_labels"]])[0] == 0
    field = nib.load(out / "disp_0012_0000_0345_0000.nii.gz").get_fdata()
    assert field.shape == (*nib.load(fixed).shape, 3)
    index = np.array(np.meshgrid(*map(np.arange, field.shape[:3]), indexing="ij")) + field.transpose(3, 0, 1, 2)
    upper = np.array(field.shape[:3]).reshape(3, 1, 1, 1) - 1
    inside = ((index >= 0) & (index <= upper)).all(axis=0)  # beyond the outermost centres scipy has no value
    assert inside.mean() > 0.6
    name = "Task_0345_0000_to_Task_0012_0000"
    for source, ours, order in ((moving, "warped", 1), (challenge["0345_labels"], "warped_labels", 0)):
        expected = map_coordinates(nib.load(source).get_fdata(), index, order=order)[inside]
        found = nib.load(out / f"{name}_{ours}.nii.gz").get_fdata()[inside]
        np.testing.assert_allclose(found, expected, atol=0.02 if order else 0)
        assert np.unique(expected).size > 3
    assert np.abs(field).max(axis=(0, 1, 2)).min() > 0.5  # along every axis
    outputs = json.loads((out / f"{name}.json").read_text())["outputs"]
    assert outputs["l2r"] == "disp_0012_0000_0345_0000.nii.gz"
    assert outputs["transform"] == f"{name}_Warp.nii.gz"  # the ITK form is there as always


def test_without_it_there_is_none_and_an_older_one_goes(challenge, tiny_model, run_cli):
    out = challenge["folder"] / "out"
    line = ["register", challenge["0012"], challenge["0345"], "-m", tiny_model().path, "-o", out]
    assert run_cli([*line, "--format", "l2r"])[0] == 0
    assert run_cli([*line, "--overwrite"])[0] == 0
    assert not list(out.glob("disp_*"))
    assert run_cli([*line, "--format", "fnirt"])[0] == 2


def test_grids_that_differ_are_refused(challenge, tiny_model, run_cli, make_grid, world_image, write_nifti):
    folder = challenge["folder"]
    shape, spacing, centre = (24, 27, 22), (3.1, 2.6, 3.3), (1.0, -2.0, 1.5)
    others = [
        make_grid("oblique-permuted", (24, 27, 21), spacing, centre),
        make_grid("oblique-permuted", shape, (3.1, 2.6, 3.4), centre),
        make_grid("oblique-permuted", shape, spacing, (1.0, -2.0, 1.6)),
        make_grid("oblique", shape, spacing, centre),
    ]
    for number, grid in enumerate(others):
        moving = write_nifti(folder / f"Task_100{number}_0000.nii.gz", world_image(grid), grid.world_from_vox)
        line = ["register", challenge["0012"], moving, "-m", tiny_model().path, "-o", folder / "out"]
        code, _, stderr = run_cli([*line, "--format", "l2r"])
        assert code == 3
        assert "on one grid" in stderr
        assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("fixed", "moving", "expected"),
    [
        ("OASIS_0006_0000.nii.gz", "OASIS_0014_0000.nii.gz", "disp_0006_0000_0014_0000.nii.gz"),
        ("NLST_0001_0000.nii.gz", "NLST_0001_0001.nii.gz", "disp_0001_0001.nii.gz"),
        ("ThoraxCBCT_0011_0001.nii.gz", "ThoraxCBCT_0011_0000.nii.gz", "disp_0011_0001_0011_0000.nii.gz"),
        ("NLST_0001_0001.nii.gz", "NLST_0002_0001.nii.gz", "disp_0001_0001_0002_0001.nii.gz"),
        ("LungCT_0001_0000.nii.gz", "LungCT_0002_0001.nii.gz", "disp_0001_0002.nii.gz"),
        ("img0438.nii.gz", "T_0439_0001.nii.gz", "disp_0438_0000_0439_0001.nii.gz"),
        ("img0438.nii.gz", "img0439.nii.gz", "disp_0438_0439.nii.gz"),
    ],
)
def test_names_are_those_the_evaluation_looks_for(fixed, moving, expected):
    assert field_name(Path("a") / fixed, Path("b") / moving) == expected


@pytest.mark.parametrize("name", ["subject1.nii.gz", "sub-20240101.nii.gz", "a_0001_00.nii.gz", "0001.mha"])
def test_other_names_are_refused(name):
    for pair in ((name, "T_0001_0000.nii.gz"), ("T_0001_0000.nii.gz", name)):
        with pytest.raises(UsageError, match="case numbers"):
            field_name(*map(Path, pair))


@pytest.mark.parametrize("header", ["identity", "none", "lps", "other"])
def test_a_field_that_was_saved_as_an_array_is_read_as_one(challenge, tmp_path, run_cli, header):
    """As the evaluation reads it: by array, whatever its header; but a header that says otherwise is believed."""
    fixed, moving = nib.load(challenge["0012"]), nib.load(challenge["0345"])
    rng = np.random.default_rng(0)
    field = rng.uniform(-2, 2, (*fixed.shape, 3)).astype(np.float32)
    geometry = {"identity": np.eye(4), "none": None, "lps": np.diag([-1, -1, 1, 1]), "other": np.diag([2, 2, 2, 1])}
    affine = geometry[header]
    nib.save(nib.Nifti1Image(field, affine), tmp_path / "disp.nii.gz")
    line = ["apply", challenge["0345"], "-r", challenge["0012"], "-t", tmp_path / "disp.nii.gz", "--format", "l2r"]
    code, _, err = run_cli([*line, "-o", tmp_path / "out.nii.gz"])
    if header == "other":
        assert (code, err.count("\n")) == (3, 1)
        assert "another grid" in err
        return
    assert code == 0, err
    assert "read by its array, as Learn2Reg does" in err
    index = np.indices(fixed.shape) + np.moveaxis(field, -1, 0)
    upper = np.array(fixed.shape).reshape(3, 1, 1, 1) - 1
    inside = ((index >= 0) & (index <= upper)).all(axis=0)
    expected = map_coordinates(moving.get_fdata(), index, order=1)
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii.gz").get_fdata()[inside], expected[inside], atol=0.02)
    cropped = nib.Nifti1Image(field[:, :, 1:], affine)
    nib.save(cropped, tmp_path / "disp.nii.gz")
    code, _, err = run_cli([*line, "-o", tmp_path / "no.nii.gz"])
    assert (code, err.count("\n")) == (3, 1)


FAULTS = Path(__file__).resolve().parents[2] / "shared/faults/l2r_identity_header"


@pytest.mark.skipif(not FAULTS.is_dir(), reason="../shared/faults is not here")
def test_a_field_of_a_submission_with_an_identity_header(tmp_path, run_cli):
    image = FAULTS / "image_175.nii.gz"
    line = ["apply", image, "-r", image, "-t", FAULTS / "disp_0201_0260.nii.gz", "--format", "l2r"]
    code, _, err = run_cli([*line, "-o", tmp_path / "out.nii.gz"])
    assert code == 0, err
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").get_fdata(), nib.load(image).get_fdata())


def balls(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two label maps by rule: ellipsoids, one of them at the border, one with a hole, a plate and single voxels."""
    x, y, z = np.indices(shape)
    a, b = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    a[((x - 12) / 7) ** 2 + ((y - 9) / 5) ** 2 + ((z - 8) / 4) ** 2 < 1] = 1
    b[((x - 14) / 6) ** 2 + ((y - 10) / 6) ** 2 + ((z - 7) / 4) ** 2 < 1] = 1
    b[14, 10, 7] = 0
    a[(x < 3) & (y > 12) & (z > 4)], b[(x + y - z > 13) & (x < 5)] = 2, 2
    a[(x > 20) & ((x * 7 + y * 5 + z * 3) % 11 < 4)], b[(x > 19) & ((x * 5 + y * 3 + z * 7) % 11 < 4)] = -3, -3
    return a, b


# Of DeepMind's surface-distance 0.1 on the same maps, with spacing 1, 1, 1, percentile 95 and 50.
AS_PUBLISHED = {-3: (1.0, 0.0), 1: (3.0, 1.0), 2: (8.774964387392123, 4.123105625617661)}


def test_hd95_l2r_is_that_of_the_package_which_the_evaluation_uses():
    a, b = balls((26, 21, 18))
    for label, (at_95, at_50) in AS_PUBLISHED.items():
        assert robust_hausdorff(a == label, b == label, 95) == pytest.approx(at_95, rel=1e-6)
        assert robust_hausdorff(a == label, b == label, 50) == pytest.approx(at_50, rel=1e-6)
    assert hd95_l2r(a, b) == pytest.approx({label: at_95 for label, (at_95, _) in AS_PUBLISHED.items()})

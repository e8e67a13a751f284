"""The how-to guides, their commands run in order in a folder that has the files they name."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from documentation import follow

SHORT = {"register": ["--init", "none", "--quality", "fast"]}


@pytest.fixture
def folder(files, tmp_path, world_labels, world_image, write_nifti, monkeypatch):
    """Fixed and moving image on oblique grids, labels of both, and what else the guides name."""
    fixed, moving, fixed_grid, moving_grid = files
    fixed.rename(tmp_path / "fixed.nii.gz")
    moving.rename(tmp_path / "moving.nii.gz")
    write_nifti(tmp_path / "fixed_labels.nii.gz", world_labels(fixed_grid), fixed_grid.world_from_vox)
    for name in ("labels.nii.gz", "other_labels.nii.gz"):
        write_nifti(tmp_path / name, world_labels(moving_grid), moving_grid.world_from_vox)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_headers(folder, files, write_nifti, world_image, tiny_model, run_cli) -> None:
    grid = files[2]
    shutil.copy(tiny_model().path, "model.onnx")
    write_nifti(folder / "damaged.nii.gz", world_image(grid), grid.world_from_vox, qform=0)
    hole = world_image(grid)
    hole[3, 4, 5] = np.nan
    write_nifti(folder / "with_nan.nii.gz", hole, grid.world_from_vox)
    image = nib.load("fixed.nii.gz")
    image.header.set_xyzt_units("unknown")
    nib.save(image, "unknown_unit.nii.gz")
    assert len(follow("docs/how-to/check-headers.md", run_cli)) == 5
    assert nib.load("corrected/damaged.nii.gz").header["qform_code"] > 0
    assert nib.load("corrected/unknown_unit.nii.gz").header.get_xyzt_units()[0] == "mm"
    assert nib.load("corrected/with_nan.nii.gz").get_fdata()[3, 4, 5] == 0


def test_labels_points_and_the_way_back(folder, files, write_nifti, world_image, run_cli) -> None:
    moving_grid = files[3]
    series = np.stack([world_image(moving_grid)] * 2, axis=-1)
    write_nifti(folder / "series.nii.gz", series, moving_grid.world_from_vox)
    shutil.copy("moving.nii.gz", "third.nii.gz")
    for name in ("fixed", "moving"):
        (folder / f"{name}_points.csv").write_text("label,x,y,z\na,1.5,-2,3\nb,-6,4.5,0\n")
    third = ["register", "moving.nii.gz", "third.nii.gz", "--init", "none", "--refine", "1"]
    code, _, err = run_cli([*third, "-o", "third_to_moving"])
    assert code == 0, err
    assert len(follow("docs/how-to/labels-and-points.md", run_cli, SHORT)) == 9
    assert nib.load("with_series/moving_to_fixed_warped_series.nii.gz").shape == (*nib.load("fixed.nii.gz").shape, 2)
    both = [nib.load(name).get_fdata() for name in ("fixed_on_moving.nii.gz", "fixed_on_moving_too.nii.gz")]
    assert np.abs(both[0] - both[1]).mean() < 0.01 * np.ptp(both[0])
    once = points("with_points/moving_to_fixed_fixed_points_in_moving.csv")
    np.testing.assert_allclose(points("points_in_moving.csv"), once, atol=0.05)


def points(name: str) -> np.ndarray:
    """(N, 3) of a table of points."""
    with Path(name).open() as stream:
        return np.array([[float(row[axis]) for axis in "xyz"] for row in csv.DictReader(stream)])


def test_contrasts_and_masks(folder, files, write_nifti, world_image, run_cli) -> None:
    for name, grid in (("t1", files[2]), ("t2", files[3])):
        image = world_image(grid)
        contrast = image if name == "t1" else np.sqrt(np.abs(600 - image))
        write_nifti(folder / f"{name}.nii.gz", contrast.astype(np.float32), grid.world_from_vox)
        write_nifti(folder / f"{name}_mask.nii.gz", (image > 50).astype(np.uint8), grid.world_from_vox)
    short = {"register": ["--init", "centre", "--quality", "fast"]}
    assert len(follow("docs/how-to/contrasts-and-starts.md", run_cli, short)) == 3


def test_published_checkpoints(folder, run_cli) -> None:
    torch = pytest.importorskip("torch")
    from ofg_deploy.train.networks import build_network

    torch.manual_seed(0)
    state = build_network("voxelmorph", (16, 16, 16)).state_dict()
    torch.save({"state_dict": state}, "checkpoint.pth.tar")
    small = follow(
        "docs/how-to/published-checkpoints.md", run_cli, changed=lambda line: line.replace("160 192 224", "16 32 16")
    )
    assert len(small) == 3

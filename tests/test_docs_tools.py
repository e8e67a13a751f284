"""docs/how-to/other-tools.md: its lines run as they stand, and every tool shows the same image as ofg register."""

from __future__ import annotations

import shlex
import warnings

import nibabel as nib
import numpy as np
import pytest
from documentation import blocks, commands
from nibabel.affines import apply_affine

PAGE = "docs/how-to/other-tools.md"


@pytest.fixture
def folder(files, tmp_path, world_labels, write_nifti, monkeypatch):
    """An empty folder with the files of the page: oblique fixed image, left-handed moving one, its labels."""
    fixed, moving, _, moving_grid = files
    fixed.rename(tmp_path / "fixed.nii.gz")
    moving.rename(tmp_path / "moving.nii.gz")
    write_nifti(tmp_path / "labels.nii.gz", world_labels(moving_grid), moving_grid.world_from_vox)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def within_moving(folder):
    """Fixed voxels between the moving image's voxel centres: what lies further out is each tool's own choice."""
    warp, moving = nib.load(folder / "out/moving_to_fixed_Warp.nii.gz"), nib.load(folder / "moving.nii.gz")
    points = apply_affine(warp.affine, np.moveaxis(np.indices(warp.shape[:3]), 0, -1))
    index = apply_affine(np.linalg.inv(moving.affine), points + warp.get_fdata()[..., 0, :] * (-1, -1, 1))
    return np.all((index >= 0.01) & (index <= np.array(moving.shape) - 1.01), axis=-1)


def test_every_tool_as_written(folder, run_cli, foreign):
    for line in commands(PAGE):
        if line.startswith("ofg "):
            short = ["--init", "none", "--quality", "fast"] if "--format" in line else []
            code, _, err = run_cli([*shlex.split(line)[1:], *short])
            assert code == 0, (line, err)
    foreign("ants")
    foreign("nitransforms")
    every = blocks(PAGE, "python")
    assert len(every) == 3
    for _, text in every:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the other tools
            exec(text, {})
    ours = nib.load(folder / "out/moving_to_fixed_warped.nii.gz")
    inside = within_moving(folder)
    assert 0.3 < inside.mean() < 1
    spread = np.ptp(ours.get_fdata())
    for tool in ("simpleitk", "ants", "nitransforms"):
        theirs = nib.load(folder / f"warped_by_{tool}.nii.gz")
        np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-4)
        difference = np.abs(theirs.get_fdata() - ours.get_fdata())[inside] / spread
        assert difference.max() < 2e-3, tool
    moved = nib.load(folder / "warped.nii.gz").get_fdata()
    assert np.abs(moved - ours.get_fdata()).max() < 1e-3 * spread
    labels = [nib.load(folder / name).get_fdata() for name in ("labels_on_fixed.nii.gz", "labels_by_simpleitk.nii.gz")]
    assert (labels[0] == labels[1])[inside].mean() > 0.999
    assert set(np.unique(labels[0])) == {0, 3, 7, 12}
    named = [word for line in commands(PAGE) if line.startswith("applywarp") for word in line.split() if "/" in word]
    assert len(named) == 2
    assert all((folder / name).exists() for name in [*named, "for_slicer/moving_to_fixed_Composite.h5"])

"""What the initial alignment achieves is told apart from what follows it; a network that adds nothing is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ofg_deploy.geometry import Grid, lattice, network_grid, transform_points
from ofg_deploy.report.limits import Limits
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.rows import judge
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.register import register
from ofg_deploy.transform.itk import save_affine


@pytest.fixture
def labelled(tmp_path, make_grid, world_image, world_labels, write_nifti, some_affine):
    """A pair that one affine brings together, with labels and the file of that affine."""
    fixed = make_grid("oblique", (27, 29, 25), (3.0, 2.8, 3.2), (1.0, -2.0, 1.5))
    moving = make_grid("left-handed", (31, 27, 29), (2.7, 3.3, 2.9), (4.0, 1.0, 2.0))
    there = np.linalg.inv(some_affine)

    def labels_of(grid, matrix):
        index = np.indices(grid.shape, dtype=float)
        points = np.einsum("ij,jxyz->ixyz", (matrix @ grid.world_from_vox)[:3, :3], index)
        points += (matrix @ grid.world_from_vox)[:3, 3].reshape(3, 1, 1, 1)
        x, y, z = points
        labels = np.zeros(grid.shape, np.int16)
        labels[(x / 24) ** 2 + (y / 30) ** 2 + (z / 19) ** 2 < 1] = 3
        labels[((x - 9) / 8) ** 2 + ((y + 7) / 11) ** 2 + ((z - 3) / 9) ** 2 < 1] = 7
        return labels

    save_affine(tmp_path / "start.mat", some_affine)
    return Job(
        fixed=write_nifti(tmp_path / "f.nii.gz", world_image(fixed), fixed.world_from_vox),
        moving=write_nifti(tmp_path / "m.nii.gz", world_image(moving, there), moving.world_from_vox),
        fixed_labels=write_nifti(tmp_path / "fl.nii.gz", labels_of(fixed, np.eye(4)), fixed.world_from_vox),
        moving_labels=(write_nifti(tmp_path / "ml.nii.gz", labels_of(moving, there), moving.world_from_vox),),
        init=tmp_path / "start.mat",
        out=tmp_path / "out",
    )


def sitk_dice(fixed: Path, moving: Path, transform: sitk.Transform) -> float:
    """Mean over labels, by SimpleITK from reading to counting."""
    target, source = sitk.ReadImage(str(fixed)), sitk.ReadImage(str(moving))
    seen = sitk.Resample(source, target, transform, sitk.sitkNearestNeighbor, 0)
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(target, seen)
    return float(np.mean([measure.GetDiceCoefficient(label) for label in (3, 7)]))


def test_a_network_that_moves_nothing_takes_no_credit(labelled, tiny_model, some_affine, sitk_affine):
    still = open_engine(tiny_model(field=np.zeros((3, 14, 18, 16))).path, "cpu")
    found = register(labelled, still)
    numbers = found.sidecar["metrics"]
    [moving_labels] = labelled.moving_labels
    before = sitk_dice(labelled.fixed_labels, moving_labels, sitk.Transform(3, sitk.sitkIdentity))
    start = sitk_dice(labelled.fixed_labels, moving_labels, sitk_affine(some_affine))
    assert start > before + 0.2
    assert numbers["dice_before"] == pytest.approx(before, abs=0.01)
    assert numbers["dice_start"] == pytest.approx(start, abs=0.01)
    for measure in ("dice", "ncc", "mi"):
        assert numbers[f"{measure}_after"] == pytest.approx(numbers[f"{measure}_start"], abs=1e-6)
        assert numbers[f"{measure}_after"] > numbers[f"{measure}_before"]
    assert numbers["hd95_mm"] == numbers["hd95_start_mm"] < numbers["hd95_before_mm"]
    assert set(numbers["dice_start_per_label"]) == {"3", "7"}
    [said] = [line for line in found.sidecar["warnings"] if line.startswith("no gain over the initial alignment")]
    assert f"Dice {numbers['dice_start']:.3f} -> {numbers['dice_after']:.3f}" in said
    [row] = judge([Registration(found.outputs["sidecar"])], Limits())
    assert row.status == "warn"
    assert row.numbers["dice_over_start"] == pytest.approx(0, abs=1e-9)
    assert row.numbers["dice_gain"] > 0.2


def test_one_that_helps_is_not_accused(labelled, tiny_model, sitk_affine, some_affine):
    """From the headers, a field that is the affine itself: all credit is the network's."""
    model = tiny_model()
    grid_job = Job(**{**vars(labelled), "init": "header"})
    probe = register(grid_job, open_engine(model.path, "cpu"))
    shape, spacing = (14, 18, 16), (4.4, 3.9, 4.1)
    world = np.array(json.loads(probe.outputs["sidecar"].read_text())["inputs"]["fixed"]["world_from_vox"])
    fixed = Grid((27, 29, 25), world)
    grid = network_grid(fixed, shape, spacing)
    points = transform_points(grid.world_from_vox, lattice(shape))
    field = transform_points(grid.vox_from_world @ some_affine, points) - lattice(shape)
    again = Job(**{**vars(grid_job), "out": labelled.out.with_name("again")})
    found = register(again, open_engine(tiny_model(shape, spacing, field=field).path, "cpu"))
    numbers = found.sidecar["metrics"]
    assert numbers["dice_start"] == numbers["dice_before"]
    assert numbers["dice_after"] > numbers["dice_start"] + 0.2
    assert not [line for line in found.sidecar["warnings"] if line.startswith("no gain")]

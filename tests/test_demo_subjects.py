"""The demo's subjects: deterministic, without folds, labels where the anatomy is, on any grid."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ofg_deploy.field import resample
from ofg_deploy.metrics import dice, mean
from ofg_deploy.nifti import load_image, load_labels


@pytest.fixture(scope="module")
def subjects() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what nilearn warns of while importing is not our business
        pytest.importorskip("nilearn.datasets")
    path = Path(__file__).resolve().parents[1] / "demo/subjects.py"
    spec = importlib.util.spec_from_file_location("subjects", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["subjects"] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_a_seed_gives_the_same_subject_and_another_seed_another(subjects: ModuleType) -> None:
    first, again, other = (subjects.make_subject(seed, subjects.STANDARD) for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.labels, other.labels)


@pytest.mark.parametrize("seed", [0, 1, 1007])
def test_deformation_does_not_fold_and_moves_millimetres(subjects: ModuleType, seed: int) -> None:
    displacement, grid = subjects._diffeomorphism(np.random.default_rng(seed))
    # Finite differences of the map itself, not our field code.
    points = np.indices(grid.shape) * 5.0 + displacement
    crop = (slice(None), *(slice(n - 1) for n in grid.shape))
    edges = np.stack([np.diff(points, axis=axis)[crop] for axis in (1, 2, 3)], axis=-1)
    assert np.linalg.det(np.moveaxis(edges, 0, -2)).min() > 0.2 * 125
    length = np.linalg.norm(displacement, axis=0)
    assert 3 < length.mean() < 10
    assert length.max() < 25


def test_image_and_labels_share_the_brain(subjects: ModuleType) -> None:
    for made in (subjects.make_subject(5, subjects.STANDARD), subjects.make_template(subjects.STANDARD)):
        assert made.image.shape == made.labels.shape == made.grid.shape
        assert set(np.unique(made.labels)) == {0, 1, 2, 3}
        assert np.array_equal(made.image > 0, made.labels > 0)
        csf, grey, white = (made.image[made.labels == label].mean() for label in (1, 2, 3))
        assert csf < grey < white


def test_every_scanner_sees_the_same_anatomy(subjects: ModuleType) -> None:
    standard = subjects.make_subject(1001, subjects.STANDARD)
    for grid in subjects.OTHERS[:3]:
        other = subjects.make_subject(1001, grid)
        assert other.grid.orientation != "RAS"
        seen = resample(other.labels, other.grid, standard.grid, np.eye(4), order=0)
        assert mean(dice(standard.labels, seen)) > 0.75


def test_files_hold_the_subject_on_its_grid(subjects: ModuleType, tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    grid = subjects.OTHERS[2]
    subjects._write(tmp_path, "one", 1002, grid)
    image, labels = load_image(tmp_path / "images/one.nii.gz"), load_labels(tmp_path / "labels/one.nii.gz")
    assert image.grid.shape == labels.grid.shape == grid.shape
    assert image.grid.world_from_vox == pytest.approx(grid.world_from_vox, abs=1e-4)
    assert image.grid.orientation == "PIR"
    assert not image.warnings

"""``ofg eval``: figures of pairs on grids that all differ, against SimpleITK and formulas."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from evaluated_pairs import LPS, centres, displacement_mm, write_field, write_points
from nibabel.affines import apply_affine
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from ofg_deploy.evaluate.pair import Evaluation, evaluate
from ofg_deploy.evaluate.pairs import Pair
from ofg_deploy.geometry import Grid

LABELS = (3, 7, 12)


def jacobian(points: np.ndarray) -> np.ndarray:
    """Determinant of x + displacement_mm(x), by its derivatives."""
    x, y, z = np.moveaxis(points, -1, 0) / 30
    a, b, zero = 4 * np.cos(x + 0.5 * y), 3 * np.sin(y - z), np.zeros_like(x)
    rows = [[a, 0.5 * a, zero], [zero, -b, b], [2.5 * z, zero, 2.5 * x - 2 * np.cos(z)]]
    return np.linalg.det(np.moveaxis(np.array(rows), (0, 1), (-2, -1)) / 30 + np.eye(3))


@dataclass(frozen=True)
class Scene:
    """Label maps on two grids and a transform on a third one, larger than the fixed labels'."""

    folder: Path
    pair: Pair
    fixed: Grid

    def warped(self, transform: sitk.Transform) -> tuple[np.ndarray, np.ndarray]:
        """Fixed and warped moving labels (X, Y, Z), by SimpleITK."""
        images = [sitk.ReadImage(str(path)) for path in (self.pair.fixed_labels, self.pair.moving_labels)]
        warped = sitk.Resample(images[1], images[0], transform, sitk.sitkNearestNeighbor, 0)
        return tuple(sitk.GetArrayFromImage(i).transpose(2, 1, 0) for i in (images[0], warped))

    def transform(self) -> sitk.DisplacementFieldTransform:
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(self.pair.transform), sitk.sitkVectorFloat64))


@pytest.fixture(params=["RAS", "oblique-permuted", "left-handed"])
def scene(request, tmp_path, make_grid, world_labels, write_nifti) -> Scene:
    fixed = make_grid(request.param, (33, 30, 27), (2.1, 2.6, 2.3), (1.0, -2.0, 1.5))
    moving = make_grid("oblique", (38, 31, 29), (1.9, 2.3, 2.7), (2.0, -3.0, 0.5))
    image = make_grid("LAS", (48, 52, 50), (2.0, 1.9, 1.8), (0.5, 0.0, -1.0))
    write_nifti(tmp_path / "fix_seg.nii.gz", world_labels(fixed), fixed.world_from_vox)
    write_nifti(tmp_path / "mov_seg.nii.gz", world_labels(moving).astype(np.float32), moving.world_from_vox)
    write_field(tmp_path / "t_Warp.nii.gz", image)
    files = {r: tmp_path / f for r, f in (("fixed_labels", "fix_seg.nii.gz"), ("moving_labels", "mov_seg.nii.gz"))}
    return Scene(tmp_path, Pair("p", tmp_path / "t_Warp.nii.gz", **files), fixed)


def hd95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, float, float]) -> float:
    points = [np.argwhere(m & ~binary_erosion(m)) * spacing for m in (a, b)]
    distances = cdist(*points)
    return max(float(np.percentile(distances.min(axis=axis), 95)) for axis in (0, 1))


def check_labels(found: Evaluation, fixed: np.ndarray, warped: np.ndarray, grid: Grid) -> None:
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(a.astype(np.int32)) for a in (fixed, warped)))
    assert [s.label for s in found.labels] == list(LABELS)
    for score in found.labels:
        assert score.dice == pytest.approx(overlap.GetDiceCoefficient(score.label), rel=1e-9)
        assert score.hd95_mm == pytest.approx(
            hd95(fixed == score.label, warped == score.label, grid.spacing_mm), rel=1e-6
        )
    assert found.numbers["dice"] == pytest.approx(np.mean([s.dice for s in found.labels]))
    assert found.numbers["hd95_mm"] == pytest.approx(np.mean([s.hd95_mm for s in found.labels]))


def test_labels_through_a_field_are_those_simpleitk_fetches(scene):
    found = evaluate(scene.pair, None, "ras")
    fixed, warped = scene.warped(scene.transform())
    check_labels(found, fixed, warped, scene.fixed)
    before = sitk.LabelOverlapMeasuresImageFilter()
    header = scene.warped(sitk.Transform(3, sitk.sitkIdentity))
    before.Execute(*(sitk.GetImageFromArray(a.astype(np.int32)) for a in header))
    assert found.numbers["dice_before"] == pytest.approx(np.mean([before.GetDiceCoefficient(v) for v in LABELS]))
    assert abs(found.numbers["dice"] - found.numbers["dice_before"]) > 0.05
    assert (found.numbers["outside_percent"], found.numbers["labels_in_one_map"], found.warnings) == (0, 0, ())


def test_a_transform_of_the_same_shape_elsewhere_is_interpolated(scene, make_grid):
    """Same number of voxels as the fixed labels, but not the same voxels."""
    write_field(scene.folder / "t_Warp.nii.gz", make_grid("LAS", scene.fixed.shape, (2.9, 3.2, 3.4), (0.5, -1.0, 1.0)))
    found = evaluate(scene.pair, None, "ras")
    assert found.numbers["outside_percent"] == 0
    check_labels(found, *scene.warped(scene.transform()), scene.fixed)


def test_regularity_is_that_of_the_map_in_the_world(scene):
    image = nib.load(scene.pair.transform)
    truth = jacobian(centres(Grid(image.shape[:3], image.affine)))
    found = evaluate(scene.pair, None, "ras").numbers
    assert found["folding_percent"] == pytest.approx(100 * (truth <= 0).mean(), abs=0.05)
    assert found["non_diffeomorphic_percent"] == pytest.approx(0, abs=1e-6)
    assert found["min_jacobian"] == pytest.approx(truth.min(), abs=0.01)
    assert found["sdlogj"] == pytest.approx(np.log(truth).std(), rel=0.01)
    assert found["sdlogj_l2r"] == pytest.approx(np.log(truth[2:-2, 2:-2, 2:-2] + 3).std(), rel=0.01)


@pytest.mark.parametrize("ending", [".tfm", ".mat", ".txt"])
@pytest.mark.parametrize("kind", ["affine", "euler", "chain"])
def test_an_itk_affine_is_read_as_simpleitk_reads_it(scene, sitk_affine, some_affine, kind, ending):
    transform = sitk_affine(some_affine)
    if kind != "affine":
        transform = sitk.Euler3DTransform((5.0, -8.0, 3.0), 0.1, -0.15, 0.2, (3.0, -2.0, 4.0))
    if kind == "chain" and ending != ".mat":
        transform = sitk.CompositeTransform([transform, sitk_affine(some_affine)])
    path = scene.folder / f"start{ending}"
    sitk.WriteTransform(transform, str(path))
    found = evaluate(replace(scene.pair, transform=path), None, "ras")
    check_labels(found, *scene.warped(transform), scene.fixed)
    volume = 1.0 if kind == "euler" or (kind, ending) == ("chain", ".mat") else np.linalg.det(some_affine[:3, :3])
    assert found.numbers["min_jacobian"] == pytest.approx(volume, abs=1e-4)
    assert found.numbers["sdlogj"] == pytest.approx(0, abs=1e-4)


def test_a_mirrored_map_is_folded_everywhere(scene):
    mirror = sitk.AffineTransform(3)
    mirror.SetMatrix(np.diag([-1.0, 1.0, 1.0]).ravel().tolist())
    sitk.WriteTransform(mirror, str(scene.folder / "mirror.tfm"))
    found = evaluate(replace(scene.pair, transform=scene.folder / "mirror.tfm"), None, "ras")
    assert found.numbers["folding_percent"] == 100
    assert found.numbers["non_diffeomorphic_percent"] == pytest.approx(100, abs=1e-3)


def test_labels_in_one_map_only_count_and_where_the_transform_ends_is_said(scene, make_grid):
    image = nib.load(scene.pair.fixed_labels)
    data = np.asarray(image.dataobj).copy()
    data[0, 0, 0] = 99
    nib.save(nib.Nifti1Image(data, image.affine), scene.folder / "fix_seg.nii.gz")
    small = make_grid("oblique-permuted", (18, 16, 14), (2.5, 2.6, 2.4), (-4.0, 3.0, 2.0))
    write_field(scene.folder / "t_Warp.nii.gz", small)
    found = evaluate(scene.pair, None, "ras")
    index = apply_affine(np.linalg.inv(small.world_from_vox), centres(scene.fixed))
    inside = ((index >= -0.5) & (index <= np.array(small.shape) - 0.5)).all(axis=-1)
    assert found.numbers["outside_percent"] == pytest.approx(100 * (~inside[data > 0]).mean())
    assert 20 < found.numbers["outside_percent"] < 90
    assert "outside its grid" in found.warnings[0]
    fixed, warped = scene.warped(scene.transform())
    warped[~inside] = 0
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(a.astype(np.int32)) for a in (fixed, warped)))
    scores = {s.label: s for s in found.labels}
    assert {k: s.dice for k, s in scores.items()} == pytest.approx(
        {k: overlap.GetDiceCoefficient(k) for k in LABELS} | {99: 0.0}
    )
    assert scores[99].hd95_mm is None
    assert found.numbers["labels_in_one_map"] == 1
    assert found.numbers["dice"] == pytest.approx(sum(s.dice for s in found.labels) / 4)
    assert found.numbers["hd95_mm"] == pytest.approx(np.mean([scores[k].hd95_mm for k in LABELS]))


def test_landmarks_follow_the_transform(scene):
    rng = np.random.default_rng(4)
    fixed = rng.uniform(-30, 30, (25, 3))
    moving = fixed + displacement_mm(fixed) + rng.normal(0, 1.5, (25, 3))
    fixed[3], fixed[17] = (400, 0, 0), (0, -300, 10)
    transform = scene.transform()
    mapped = np.array([transform.TransformPoint((p * LPS).tolist()) for p in fixed]) * LPS
    inside = np.abs(fixed).max(axis=1) < 100
    for space, flip in (("ras", 1), ("lps", LPS)):
        files = {
            "fixed_points": write_points(scene.folder / "f.csv", fixed * flip),
            "moving_points": write_points(scene.folder / "m.csv", moving * flip, "id, X ,Y,Z"),
        }
        numbers = evaluate(Pair("p", scene.pair.transform, **files), None, space).numbers
        assert (numbers["landmarks"], numbers["landmarks_outside"]) == (23, 2)
        for prefix, points in (("tre", mapped), ("tre_before", fixed)):
            errors = np.linalg.norm(points - moving, axis=1)[inside]
            assert numbers[f"{prefix}_mean_mm"] == pytest.approx(errors.mean(), abs=1e-4)
            assert numbers[f"{prefix}_median_mm"] == pytest.approx(np.median(errors), abs=1e-4)
            assert numbers[f"{prefix}_p95_mm"] == pytest.approx(np.percentile(errors, 95), abs=1e-4)
        assert numbers["tre_mean_mm"] < 0.8 * numbers["tre_before_mean_mm"]
    wrong = evaluate(Pair("p", scene.pair.transform, **files), None, "ras").numbers
    image = Pair("p", None, fixed=scene.pair.fixed_labels, **files)
    for pair in (image, replace(scene.pair, transform=None, **files)):  # without a field, the fixed view decides
        numbers_here = evaluate(pair, None, "lps").numbers
        index = apply_affine(np.linalg.inv(scene.fixed.world_from_vox), fixed)
        expected = ((index >= -0.5) & (index <= np.array(scene.fixed.shape) - 0.5)).all(axis=1)
        assert numbers_here["landmarks"] == expected.sum() <= 23
        assert numbers_here["tre_mean_mm"] == pytest.approx(np.linalg.norm(fixed - moving, axis=1)[expected].mean())
    assert wrong["tre_mean_mm"] > 2 * numbers["tre_mean_mm"]  # the space of the tables matters


def test_the_headers_of_transform_and_fixed_image_are_judged(tmp_path, make_grid, world_image, write_nifti):
    grid = make_grid("RAS", (20, 22, 24), (2.0, 2.0, 2.0))
    warp = write_field(tmp_path / "t_Warp.nii.gz", grid)
    fixed = write_nifti(tmp_path / "fix.nii.gz", world_image(grid), grid.world_from_vox)
    for path in (warp, fixed):
        image = nib.load(path)
        off = image.affine.copy()
        off[1, 3] += 4
        image.set_qform(off, 1)
        nib.save(image, path)
    said = "{}: sform and qform disagree by up to 4.00 mm; the sform is used"
    [line] = evaluate(Pair("p", warp), None, "ras").warnings
    assert line.startswith(said.format("t_Warp.nii.gz"))
    affine = tmp_path / "a.tfm"
    sitk.WriteTransform(sitk.AffineTransform(3), str(affine))
    [line] = evaluate(Pair("p", affine, fixed=fixed), None, "ras").warnings
    assert line.startswith(said.format("fix.nii.gz"))

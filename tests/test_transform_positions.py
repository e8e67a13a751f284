"""Positions in place of displacements, unknown voxels, arrays of VoxelMorph: told apart, read exactly, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from scipy.ndimage import map_coordinates

from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.evaluate.pair import evaluate
from ofg_deploy.evaluate.pairs import Pair
from ofg_deploy.geometry import Grid
from ofg_deploy.transform.dialects import Registration, load_map, write
from ofg_deploy.transform.inverse import invert
from ofg_deploy.transform.maps import FieldMap

FAULTS = Path(__file__).parents[2] / "shared" / "faults"
LARGEST = np.finfo(np.float32).max


def points_of(grid: Grid) -> np.ndarray:
    """(X, Y, Z, 3) RAS mm."""
    return apply_affine(grid.world_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))


@pytest.fixture
def pair(make_grid) -> tuple[Grid, Grid]:
    return (
        make_grid("oblique", (11, 14, 9), (3.1, 2.4, 3.9), (2.0, -4.0, 3.0)),
        make_grid("left-handed", (12, 10, 13), (2.7, 3.3, 2.9), (-3.0, 5.0, -2.0)),
    )


@pytest.fixture
def total(pair, some_affine) -> np.ndarray:
    """(X, Y, Z, 3) where some map takes the voxels of the fixed grid, RAS mm."""
    x, y, z = np.indices(pair[0].shape) / 5
    moved = points_of(pair[0]) + np.stack([2 * np.sin(x + 0.3), z - np.cos(y * 1.1), -1.5 * np.sin(z + x)], axis=-1)
    return apply_affine(some_affine, moved)


def save(path: Path, vectors: np.ndarray, grid: Grid, intent: int, name: str = "", parameters=(), kind="f4") -> Path:
    """By nibabel: (X, Y, Z, 3) as X,Y,Z,1,3 for intent 1007."""
    data = vectors[..., None, :] if intent == 1007 else vectors
    image = nib.Nifti1Image(data.astype(kind), grid.world_from_vox)
    image.header.set_intent(intent, parameters, name, allow_unknown=True)
    image.set_sform(grid.world_from_vox, 1)
    image.set_qform(grid.world_from_vox, 1)
    nib.save(image, path)
    return path


def displacement(found: FieldMap) -> np.ndarray:
    return np.moveaxis(found.field, 0, -1)


def test_spm_and_niftyreg(tmp_path, pair, total):
    """Their world is RAS; SPM has positions, NiftyReg says in its header what it has."""
    fixed, _ = pair
    expected = total - points_of(fixed)
    for vectors, name, parameters in (
        (total, "Mapping", ()),
        (total, "NREG_TRANS", (0, 0, 0)),
        (expected, "NREG_TRANS", (1, 0, 0)),
    ):
        path = save(tmp_path / "y_t1.nii", vectors, fixed, 1007, name)
        if parameters:
            content = bytearray(path.read_bytes())
            content[56:60] = np.array(parameters[:1], "<f4").tobytes()  # intent_p1
            path.write_bytes(content)
        found = load_map(path)
        np.testing.assert_allclose(displacement(found), expected, atol=2e-5)
        assert not found.warnings
    lps = save(tmp_path / "w.nii", expected * [-1, -1, 1], fixed, 1007)
    np.testing.assert_allclose(displacement(load_map(lps)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("NREG_TRANS", 2, "a grid of control points"),
        ("NREG_TRANS", 4, "a velocity field"),
        ("NREG_TRANS", 5, "a grid of velocities"),
        ("NREG_TRANS", 9, "no field"),
        ("NREG_TRANS", np.nan, "no field"),
        ("NREG_CPP_FILE", 0, "older"),
    ],
)
def test_what_niftyreg_does_not_keep_as_a_field_is_refused(tmp_path, pair, total, name, code, said):
    path = save(tmp_path / "cpp.nii", total, pair[0], 1007, name)
    content = bytearray(path.read_bytes())
    content[56:60] = np.array([code], "<f4").tobytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"NiftyReg.*{said}.*reg_transform"):
        load_map(path)


def test_positions_of_spm_may_be_nan(tmp_path, pair, total):
    total[2, 3, 4] = np.nan
    found = load_map(save(tmp_path / "iy_t1.nii", total, pair[0], 1007, "Mapping"))
    assert found.unknown.sum() == 1
    assert "unknown at 0.0722 % of its voxels" in found.warnings[0]
    with pytest.raises(InputError, match="NaN, infinite"):
        load_map(save(tmp_path / "w.nii", total, pair[0], 1007))


def test_nameless_positions_get_a_warning(tmp_path, pair, total, some_affine):
    fixed, _ = pair
    for vectors in (total, total * [-1, -1, 1]):
        found = load_map(save(tmp_path / "w.nii", vectors, fixed, 1007))
        assert "look like positions" in found.warnings[0]
    strong = 1.4 * total - points_of(fixed)  # larger by half, and shifted
    assert not load_map(save(tmp_path / "w.nii", strong * [-1, -1, 1], fixed, 1007)).warnings


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
def test_fsl_absolute_and_relative(tmp_path, pair, total, scale):
    """Both are the same map, between images whose axes are swapped; no header says which it is."""
    fixed, moving = pair
    total = (total - 3) * scale
    field = np.moveaxis((total - points_of(fixed)).astype(np.float32), -1, 0)
    write(tmp_path / "rel.nii.gz", "fsl", Registration(field, None, fixed, moving))
    relative = nib.load(tmp_path / "rel.nii.gz")
    scaled = np.diag([*fixed.spacing_mm, 1.0])
    if np.linalg.det(fixed.world_from_vox[:3, :3]) > 0:
        scaled = scaled @ [[-1, 0, 0, fixed.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    index = np.moveaxis(np.indices(fixed.shape), 0, -1)
    absolute = save(tmp_path / "abs.nii.gz", relative.get_fdata() + apply_affine(scaled, index), fixed, 2006)
    for path, lines in ((tmp_path / "rel.nii.gz", 0), (absolute, 1)):
        found = load_map(path, "fsl", fixed, moving)
        np.testing.assert_allclose(displacement(found), total - points_of(fixed), atol=5e-5)
        assert len(found.warnings) == lines
    assert "absolute coordinates" in found.warnings[0]


@pytest.mark.parametrize("fault", ["spm_mapping", "fsl_absolute"])
def test_the_faults_that_were_reported(tmp_path, run_cli, fault):
    if not FAULTS.is_dir():
        pytest.skip("../shared/faults is not here")
    folder = FAULTS / fault
    transform, form = ("y_fix.nii.gz", "itk") if fault == "spm_mapping" else ("absw.nii.gz", "fsl")
    line = ["apply", folder / "mov.nii.gz", "-r", folder / "fix.nii.gz", "-t", folder / transform]
    code, _, err = run_cli([*line, "--format", form, "-o", tmp_path / "out.nii.gz"])
    assert code == 0, err
    right = nib.load(folder / "right.nii.gz").get_fdata()
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii.gz").get_fdata(), right, atol=1e-3)


# Unknown voxels.


@pytest.fixture
def holes(pair) -> np.ndarray:
    """(X, Y, Z) a corner and a single voxel."""
    unknown = np.zeros(pair[0].shape, bool)
    unknown[7:, 9:, 5:] = unknown[3, 4, 2] = True
    return unknown


@pytest.mark.parametrize("form", ["f4", ">f4", "f8", "h5", "one component"])
def test_itks_mark_is_an_unknown_voxel(tmp_path, pair, total, holes, form):
    """Exactly at known voxels the map is what it was, between a known and an unknown one it is unknown."""
    fixed, _ = pair
    expected = total - points_of(fixed)
    vectors = expected * [-1, -1, 1]
    if form == "h5":
        image = sitk.GetImageFromArray(vectors.transpose(2, 1, 0, 3), isVector=True)
        lps = np.diag([-1, -1, 1, 1]) @ fixed.world_from_vox
        image.SetSpacing(fixed.spacing_mm)
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / fixed.spacing_mm).ravel().tolist())
        array = sitk.GetArrayFromImage(image)
        array[holes.transpose(2, 1, 0)] = np.finfo(np.float64).max
        marked = sitk.GetImageFromArray(array, isVector=True)
        marked.CopyInformation(image)
        path = tmp_path / "w.h5"
        sitk.WriteTransform(sitk.DisplacementFieldTransform(marked), str(path))
    else:
        kind = form if "f" in form else "f4"
        vectors = vectors.astype(kind)
        vectors[holes] = (1, 1, LARGEST) if form == "one component" else np.finfo(kind).max
        path = save(tmp_path / "w.nii.gz", vectors, fixed, 1007, kind=kind)
    found = load_map(path)
    np.testing.assert_array_equal(found.unknown, holes)
    assert "unknown at 5.84 % of its voxels" in found.warnings[0]
    grid = found.domain  # as its header has it, in float32
    at, inside = found.displacement_mm(np.moveaxis(points_of(grid), -1, 0))
    np.testing.assert_array_equal(inside, ~holes)
    np.testing.assert_allclose(np.moveaxis(at, 0, -1)[~holes], expected[~holes], atol=1e-5)
    assert not at[:, holes].any()
    index = np.random.default_rng(0).uniform(0, np.array(fixed.shape) - 1, (2000, 3))
    at, inside = found.displacement_mm(apply_affine(grid.world_from_vox, index).T)
    touched = map_coordinates(holes.astype(float), index.T, order=1) > 0
    np.testing.assert_array_equal(inside, ~touched)
    assert 0.05 < touched.mean() < 0.3
    here = map_coordinates(np.where(holes, 0, expected[..., 1]), index.T, order=1)
    np.testing.assert_allclose(at[1, inside], here[inside], atol=1e-5)


def test_a_field_unknown_everywhere_is_refused(tmp_path, pair):
    vectors = np.full((*pair[0].shape, 3), LARGEST)
    with pytest.raises(InputError, match="unknown in all of its voxels"):
        load_map(save(tmp_path / "w.nii.gz", vectors, pair[0], 1007))


def test_the_inverse_does_not_pass_unknown_voxels(tmp_path, pair, total, holes):
    fixed, _ = pair
    vectors = (total - points_of(fixed)) * [-1, -1, 1]
    whole = load_map(save(tmp_path / "whole.nii.gz", vectors, fixed, 1007))
    vectors[holes] = LARGEST
    found = load_map(save(tmp_path / "w.nii.gz", vectors, fixed, 1007))
    index = np.random.default_rng(0).uniform(1, np.array(fixed.shape) - 2, (800, 3))
    there = apply_affine(fixed.world_from_vox, index).T
    touched = map_coordinates(holes.astype(float), index.T, order=1) > 0
    there = there + whole.displacement_mm(there)[0]
    (back, inside), (expected, known) = (invert(each).displacement_mm(there) for each in (found, whole))
    assert known.all()
    np.testing.assert_array_equal(inside, ~touched)
    np.testing.assert_allclose(back[:, inside], expected[:, inside], atol=2e-3)


def test_apply_fills_what_is_unknown_as_ants_does(tmp_path, files, run_cli, foreign):
    ants = foreign("ants")
    fixed_file, moving_file, fixed, _ = files
    vectors = np.full((*fixed.shape, 3), (2.0, -3.0, 1.0))
    vectors[12:, 5:, 9:] = LARGEST
    warp = save(tmp_path / "w.nii.gz", vectors, fixed, 1007)
    code, _, err = run_cli(
        ["apply", moving_file, "-r", fixed_file, "-t", warp, "-o", tmp_path / "o.nii.gz", "--fill=-9"]
    )
    assert code == 0
    assert err.count("which its writer marked as leading out of the image") == 1
    images = (ants.image_read(str(path)) for path in (fixed_file, moving_file))
    expected = ants.apply_transforms(*images, [str(warp)], defaultvalue=-9).numpy()
    found = nib.load(tmp_path / "o.nii.gz").get_fdata()
    assert (found[12:, 5:, 9:] == -9).all()
    agree = np.isclose(found, expected, atol=1e-3 * np.ptp(expected))
    assert (~agree & (expected == -9)).sum() < 0.06 * found.size  # ANTs' rounding also spoils the next voxels
    assert agree[expected != -9].all()
    record = json.loads((tmp_path / "o.json").read_text())
    assert record["unknown_percent"] == pytest.approx(100 * np.mean(vectors[..., 0] > 1e30))


def test_eval_leaves_unknown_voxels_out(tmp_path, pair, holes, world_labels, write_nifti):
    fixed, _ = pair
    linear = points_of(fixed) @ np.diag([0.1, -0.05, 0.2])
    vectors = linear * [-1, -1, 1]
    vectors[holes] = LARGEST
    labels = write_nifti(tmp_path / "seg.nii.gz", world_labels(fixed), fixed.world_from_vox)
    warp = save(tmp_path / "w.nii.gz", vectors, fixed, 1007)
    found = evaluate(Pair("one", transform=warp, fixed_labels=labels, moving_labels=labels), None, "ras")
    assert found.numbers["min_jacobian"] == pytest.approx(1.1 * 0.95 * 1.2, abs=1e-3)
    assert found.numbers["folding_percent"] == 0
    assert found.numbers["sdlogj"] == pytest.approx(0, abs=1e-3)
    assert found.numbers["non_diffeomorphic_percent"] is None
    assert found.numbers["outside_percent"] == pytest.approx(100 * holes[world_labels(fixed) > 0].mean())


# Most of the reference outside the moving image.


def test_most_of_the_reference_outside_is_a_warning(tmp_path, files, run_cli, tiny_model):
    fixed_file, moving_file, fixed, _ = files
    counted = {}
    for shift in (0.0, 30.0, 80.0):
        vectors = np.full((*fixed.shape, 3), (shift, 0.0, 0.0))
        warp = save(tmp_path / "w.nii.gz", vectors, fixed, 1007)
        line = ["apply", moving_file, "-r", fixed_file, "-t", warp, "-o", tmp_path / "o.nii.gz", "--fill=-9"]
        code, _, err = run_cli([*line, "--overwrite"])
        assert code == 0
        outside = (nib.load(tmp_path / "o.nii.gz").get_fdata() == -9).mean()
        counted[shift] = outside
        assert ("of the reference's voxels out of the moving image" in err) == (outside > 0.5)
        if outside > 0.5:
            said = json.loads((tmp_path / "o.json").read_text())["warnings"][-1]
            assert abs(float(said.split("leads ")[1].split(" %")[0]) - 100 * outside) < 3
    assert counted[0.0] < 0.5 < counted[80.0]
    affine = np.eye(4)
    affine[0, 3] = 80
    start = tmp_path / "start.txt"
    start.write_text(
        "#Insight Transform File V1.0\nTransform: TranslationTransform_double_3_3\nParameters: 55 0 0\n"
        "FixedParameters: \n"
    )
    line = ["register", fixed_file, moving_file, "-m", tiny_model().path, "-o", tmp_path / "out", "--init", start]
    code, _, err = run_cli(line)
    assert code == 0, err
    assert "of the reference's voxels out of the moving image" in err


def test_eval_warns_of_it_too(tmp_path, pair, world_labels, write_nifti):
    fixed, _ = pair
    labels = write_nifti(tmp_path / "seg.nii.gz", world_labels(fixed), fixed.world_from_vox)
    for shift, warned in ((25.0, True), (3.0, False)):
        warp = save(tmp_path / "w.nii.gz", np.full((*fixed.shape, 3), shift), fixed, 1007)
        found = evaluate(Pair("one", transform=warp, fixed_labels=labels, moving_labels=labels), None, "ras")
        assert any("out of the moving image" in line for line in found.warnings) == warned


# VoxelMorph.


@pytest.mark.parametrize("form", ["first", "last", "batch", "npy", "nifti first", "nifti last"])
def test_arrays_of_voxelmorph(tmp_path, pair, form):
    """(3, X, Y, Z) is what the PyTorch script saves, as .npz or, with the fixed image's affine, as .nii.gz."""
    fixed, _ = pair
    vectors = np.random.default_rng(0).normal(0, 1, (*fixed.shape, 3)).astype(np.float32)
    first = np.ascontiguousarray(np.moveaxis(vectors, -1, 0))
    path = tmp_path / ("w.nii.gz" if "nifti" in form else "w.npy" if form == "npy" else "w.npz")
    if "nifti" in form:
        nib.save(nib.Nifti1Image(first if "first" in form else vectors, fixed.world_from_vox), path)
    elif form == "npy":
        np.save(path, first)
    else:
        np.savez(path, vol={"first": first, "last": vectors, "batch": first[None]}[form])
    found = load_map(path, "voxelmorph", fixed, fixed)
    expected = vectors @ fixed.world_from_vox[:3, :3].T
    np.testing.assert_allclose(displacement(found), expected, atol=1e-5)


def test_arrays_of_voxelmorph_that_do_not_say_where_their_components_are(tmp_path, make_grid):
    cube, bar = make_grid("RAS", (3, 3, 3), (2, 2, 2)), make_grid("RAS", (3, 5, 4), (2, 2, 2))
    np.savez(tmp_path / "w.npz", vol=np.zeros((3, 3, 3, 3)))
    with pytest.raises(InputError, match="cannot be told"):
        load_map(tmp_path / "w.npz", "voxelmorph", cube, cube)
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3, 3), np.float32), cube.world_from_vox), tmp_path / "w.nii.gz")
    with pytest.raises(InputError, match="cannot be told"):
        load_map(tmp_path / "w.nii.gz", "voxelmorph", cube, cube)
    vectors = np.random.default_rng(0).normal(0, 1, (3, 5, 4, 3))  # one axis of three is no doubt
    np.savez(tmp_path / "w.npz", vol=vectors)
    np.testing.assert_allclose(
        displacement(load_map(tmp_path / "w.npz", "voxelmorph", bar, bar)), 2 * vectors, atol=1e-6
    )
    np.savez(tmp_path / "w.npz", vol=np.moveaxis(vectors, -1, 0))
    np.testing.assert_allclose(
        displacement(load_map(tmp_path / "w.npz", "voxelmorph", bar, bar)), 2 * vectors, atol=1e-6
    )
    with pytest.raises(GeometryError, match="a field for other images"):
        load_map(tmp_path / "w.npz", "voxelmorph", cube, cube)

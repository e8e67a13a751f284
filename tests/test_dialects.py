"""Every form of a transform, read by the tool it is for or by a reading of that tool's rules made here."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine, voxel_sizes

from ofg_deploy.errors import GeometryError, InputError, ParityError, UsageError
from ofg_deploy.geometry import Grid
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.register import register
from ofg_deploy.transform import dialects, itk
from ofg_deploy.transform.dialects import Registration, load_map, roundtrip_mm, write
from ofg_deploy.transform.maps import Chain

LPS = np.array([-1.0, -1.0, 1.0])
PAIRS = [("RAS", "left-handed"), ("LAS", "RAS"), ("oblique", "oblique-permuted"), ("left-handed", "LPS")]
FILES = {"itk": "Warp.nii.gz", "ants": "1Warp.nii.gz", "itk-h5": "Composite.h5", "fsl": "fslwarp.nii.gz"}
FILES |= {"l2r": "disp.nii.gz", "voxelmorph": "vxm.npz"}


def points_of(grid: Grid) -> np.ndarray:
    """(X, Y, Z, 3) RAS mm."""
    return apply_affine(grid.world_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))


def known(fixed: Grid, moving: Grid, affine: np.ndarray | None) -> Registration:
    """x -> A(x + d(x)) with a d of several mm that has no symmetry."""
    x, y, z = np.indices(fixed.shape) / 5
    before = np.array([4 * np.sin(x + 0.3), 3 * np.cos(y * 1.1) + z, -2.5 * np.sin(z + x) - 1])
    points = np.moveaxis(points_of(fixed), -1, 0)
    total = np.moveaxis(
        apply_affine(np.eye(4) if affine is None else affine, np.moveaxis(points + before, 0, -1)), -1, 0
    )
    return Registration((total - points).astype(np.float32), affine, fixed, moving)


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request, make_grid) -> tuple[Grid, Grid]:
    return (
        make_grid(request.param[0], (11, 14, 9), (3.1, 2.4, 3.9), (2.0, -4.0, 3.0)),
        make_grid(request.param[1], (12, 10, 13), (2.7, 3.3, 2.9), (-3.0, 5.0, -2.0)),
    )


def one_grid(grid: Grid) -> tuple[Grid, Grid]:
    return grid, Grid(grid.shape, grid.world_from_vox)


@pytest.mark.parametrize("dialect", ["itk", "ants", "itk-h5"])
@pytest.mark.parametrize("start", [True, False])
def test_simpleitk_maps_points_alike(tmp_path, pair, some_affine, dialect, start):
    found = known(*pair, some_affine if start else None)
    path = tmp_path / FILES[dialect]
    write(path, dialect, found)
    if dialect == "itk-h5":
        transform = sitk.ReadTransform(str(path))
        assert transform.GetTransformEnum() == sitk.sitkComposite
        assert sitk.CompositeTransform(transform).GetNumberOfTransforms() == 1 + start
    else:
        transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
        if dialect == "ants" and start:
            itk.save_affine(tmp_path / "0GenericAffine.mat", some_affine)
            affine = sitk.ReadTransform(str(tmp_path / "0GenericAffine.mat"))
            transform = sitk.CompositeTransform([affine, transform])  # the last one is applied first
    points = points_of(found.fixed)
    for voxel in ((1, 2, 3), (9, 3, 7), (5, 12, 1), (6, 7, 8)):
        expected = points[voxel] + found.displacement_mm[(slice(None), *voxel)]
        reached = np.array(transform.TransformPoint((points[voxel] * LPS).tolist())) * LPS
        np.testing.assert_allclose(reached, expected, atol=1e-3)


def fsl_scaled(image: nib.Nifti1Image) -> np.ndarray:
    """(4, 4) voxel -> FSL's scaled voxels, written down anew: "radiological" order is kept, else x runs backwards."""
    matrix = np.diag([*image.header.get_zooms()[:3], 1.0])
    if np.linalg.det(image.affine[:3, :3]) > 0:
        flip = np.eye(4)
        flip[0, 0], flip[0, 3] = -1, image.shape[0] - 1
        matrix = matrix @ flip
    return matrix


def test_fsl_as_applywarp_goes(tmp_path, pair, some_affine, write_nifti):
    """Reference voxel -> its scaled coordinates + warp -> scaled coordinates of the input -> voxel of the input."""
    found = known(*pair, some_affine)
    path = tmp_path / FILES["fsl"]
    write(path, "fsl", found)
    warp = nib.load(path)
    assert warp.header.get_intent("code")[0] == 2006
    moving = nib.load(write_nifti(tmp_path / "m.nii", np.zeros(found.moving.shape), found.moving.world_from_vox))
    index = np.moveaxis(np.indices(found.fixed.shape), 0, -1)
    in_moving = apply_affine(
        np.linalg.inv(fsl_scaled(moving)), apply_affine(fsl_scaled(warp), index) + warp.get_fdata()
    )
    reached = apply_affine(moving.affine, in_moving)
    np.testing.assert_allclose(reached - points_of(found.fixed), np.moveaxis(found.displacement_mm, 0, -1), atol=1e-3)


def test_fsl_as_nitransforms_reads_it(tmp_path, make_grid, foreign):
    """It knows grids along RAS alone, and both images on one."""
    foreign("nitransforms")
    from nitransforms.nonlinear import DenseFieldTransform

    found = known(*one_grid(make_grid("RAS", (11, 14, 9), (3.1, 2.4, 3.9), (2.0, -4.0, 3.0))), None)
    write(tmp_path / FILES["fsl"], "fsl", found)
    transform = DenseFieldTransform.from_filename(str(tmp_path / FILES["fsl"]), fmt="fsl")
    points = points_of(found.fixed)[2:9, 3:11, 2:7].reshape(-1, 3)
    expected = np.moveaxis(found.displacement_mm, 0, -1)[2:9, 3:11, 2:7].reshape(-1, 3)
    np.testing.assert_allclose(transform.map(points) - points, expected, atol=1e-3)


@pytest.mark.parametrize("dialect", ["l2r", "voxelmorph"])
def test_voxel_fields_are_added_to_array_indices(tmp_path, pair, dialect, some_affine):
    found = known(*one_grid(pair[0]), some_affine)
    path = tmp_path / FILES[dialect]
    write(path, dialect, found)
    vectors = np.load(path)["vol"] if dialect == "voxelmorph" else nib.load(path).get_fdata()
    assert vectors.shape == (*found.fixed.shape, 3)
    index = np.moveaxis(np.indices(found.fixed.shape), 0, -1)
    reached = apply_affine(found.moving.world_from_vox, index + vectors)
    np.testing.assert_allclose(reached - points_of(found.fixed), np.moveaxis(found.displacement_mm, 0, -1), atol=1e-3)


@pytest.mark.parametrize("dialect", FILES)
def test_what_is_written_is_read_back(tmp_path, pair, some_affine, dialect):
    found = known(*(one_grid(pair[0]) if dialect in dialects.ON_ONE_GRID else pair), some_affine)
    paths = [tmp_path / FILES[dialect]]
    write(paths[0], dialect, found)
    if dialect == "ants":
        paths.append(tmp_path / "0GenericAffine.mat")
        itk.save_affine(paths[1], some_affine)
    assert roundtrip_mm(paths, dialect, found) < 1e-4
    off = Registration(found.displacement_mm.copy(), some_affine, found.fixed, found.moving)
    off.displacement_mm[1, 0, -1, 0] += 0.002  # one corner by two micrometres
    with pytest.raises(ParityError, match="is not published") as caught:
        roundtrip_mm(paths, dialect, off)
    assert caught.value.exit_code == 4


def test_a_composite_is_applied_in_itks_order(tmp_path, pair, sitk_affine, some_affine):
    """Of SimpleITK's own making: an affine before and after the field, a rigid one of another class."""
    found = known(*pair, None)
    write(tmp_path / "field.nii.gz", "itk", found)
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64))
    rigid = sitk.Euler3DTransform((3.0, -2.0, 1.0), 0.1, -0.05, 0.08, (1.0, 2.0, -0.5))
    shift = sitk.TranslationTransform(3, (0.4, -0.3, 0.2))
    outer = sitk.CompositeTransform([rigid, sitk_affine(some_affine), field, shift])
    sitk.WriteTransform(outer, str(tmp_path / "all.h5"))
    back = load_map(tmp_path / "all.h5")
    assert isinstance(back, Chain)
    points = points_of(found.fixed)[3:8, 4:10, 3:6].reshape(-1, 3)
    expected = np.array([outer.TransformPoint((p * LPS).tolist()) for p in points]) * LPS
    displacement, inside = back.displacement_mm(points.T)
    assert inside.all()
    np.testing.assert_allclose(points + displacement.T, expected, atol=1e-3)


def test_what_is_of_another_form_is_refused(tmp_path, pair, make_grid):
    found = known(*pair, None)
    for dialect in ("itk", "fsl"):
        write(tmp_path / FILES[dialect], dialect, found)
    write(tmp_path / FILES["l2r"], "l2r", known(*one_grid(pair[0]), None))
    for name, dialect, said in (
        ("fsl", "itk", "not a displacement field of ITK.*format"),
        ("l2r", "ants", "not a displacement field of ITK.*format"),
        ("itk", "fsl", "a field of shape"),
        ("l2r", "fsl", "NIfTI intent 0"),
        ("fsl", "voxelmorph", "NIfTI intent 2006"),
        ("itk", "itk-h5", "cannot be read as an ITK transform"),
    ):
        with pytest.raises(InputError, match=said):
            load_map(tmp_path / FILES[name], dialect, *pair)
    with pytest.raises(UsageError, match="means nothing without both images"):
        load_map(tmp_path / FILES["fsl"], "fsl")
    with pytest.raises(GeometryError, match="another grid than the fixed image"):
        load_map(tmp_path / FILES["fsl"], "fsl", make_grid("RAS", (11, 14, 9), (3, 2.4, 3.9)), pair[1])
    (tmp_path / "warp.bin").write_bytes(b"\0\1\2")
    with pytest.raises(InputError, match=r"no transform in the form of itk.*\.mat"):
        load_map(tmp_path / "warp.bin")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"vol": np.zeros((4, 5, 6), np.float32)}, "a field .* is needed"),
        ({"vol": np.full((11, 14, 9, 3), np.nan)}, "NaN, infinite"),
        ({"vol": np.zeros((5, 4, 3, 3))}, "the fixed image"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, "cannot be read as a VoxelMorph field"),
        ({"vol": np.array([{"a": 1}], dtype=object)}, "cannot be read as a VoxelMorph field"),
        (b"PK\x03\x04 no zip at all", "cannot be read as a VoxelMorph field"),
    ],
)
def test_bad_npz_files_are_one_line(tmp_path, pair, content, said):
    path = tmp_path / "w.npz"
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    with pytest.raises(InputError, match=said):
        load_map(path, "voxelmorph", *one_grid(pair[0]))


@pytest.mark.parametrize("dialect", ["ants", "itk-h5", "fsl"])
def test_register_writes_it_beside_the_form_of_itk(tmp_path, files, tiny_model, run_cli, dialect):
    fixed, moving, *_ = files
    line = ["register", fixed, moving, "-m", tiny_model().path, "-o", tmp_path / "out", "--init", "affine"]
    code, _, err = run_cli([*line, "--format", dialect])
    assert code == 0, err
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written > {"mov_to_fix_Warp.nii.gz", "mov_to_fix.json", "mov_to_fix_0GenericAffine.mat"}
    assert len(written) == 5
    first = load_map(tmp_path / "out" / "mov_to_fix_Warp.nii.gz")
    [other] = written - {f"mov_to_fix{e}" for e in ("_Warp.nii.gz", ".json", "_0GenericAffine.mat", "_warped.nii.gz")}
    second = load_map(tmp_path / "out" / other, dialect, *files[2:])
    if dialect == "ants":
        second = Chain((second, load_map(tmp_path / "out" / "mov_to_fix_0GenericAffine.mat")))
    points = points_of(files[2])[3:9, 4:10, 3:6].reshape(-1, 3).T
    np.testing.assert_allclose(first.displacement_mm(points)[0], second.displacement_mm(points)[0], atol=2e-3)
    assert run_cli([*line, "--overwrite"])[0] == 0
    assert other not in {p.name for p in (tmp_path / "out").iterdir()}  # an older form goes with its set


@pytest.mark.parametrize("dialect", ["itk", "fsl", "voxelmorph"])
def test_a_raised_limit_of_voxels_holds_for_what_is_read_back(
    tmp_path, files, tiny_model, run_cli, monkeypatch, dialect
):
    """Here the limit without --max-voxels is one that a test's images exceed."""
    fixed, moving = files[0], files[0] if dialect == "voxelmorph" else files[1]
    for function in (dialects.load_map, dialects.check_images):
        monkeypatch.setattr(function, "__defaults__", (*function.__defaults__[:-1], 100))
    monkeypatch.setattr(dialects, "MAX_VOXELS", 100)
    line = ["register", fixed, moving, "-m", tiny_model().path, "-o", tmp_path / "out", "--format", dialect]
    code, _, err = run_cli([*line, "--max-voxels", 8000])
    assert code == 0, err


def test_a_transform_that_reads_back_wrong_is_not_published(tmp_path, files, engine, monkeypatch):
    """A writer gone wrong by a sign: exit code 4 and no file."""
    right = dialects.save_transform
    monkeypatch.setattr(dialects, "save_transform", lambda path, field, *rest: right(path, -field, *rest))
    with pytest.raises(ParityError, match="mm away"):
        register(Job(*files[:2], tmp_path / "out"), engine)
    assert not (tmp_path / "out").exists()


def test_fsl_goes_by_pixdim(tmp_path, files, tiny_model):
    fixed, moving, *_ = files
    image = nib.load(moving)
    image.header.structarr["pixdim"][1:4] = (1, 1, 1)
    content = bytearray(image.header.binaryblock)
    data = nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine).to_bytes()
    wrong = tmp_path / "wrong.nii"
    wrong.write_bytes(data[:76] + content[76:108] + data[108:])
    nib.load(wrong)
    assert voxel_sizes(nib.load(wrong).affine)[0] > 3
    job = Job(fixed, wrong, Path(tmp_path / "out"), field_format="fsl")
    with pytest.raises(GeometryError, match="pixdim 1x1x1"):
        register(job, open_engine(tiny_model().path, "cpu"))

"""``ofg apply`` beside antsApplyTransforms (ANTsPy) and SimpleITK: order, inverses, interpolation, points, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from scipy.ndimage import map_coordinates

from ofg_deploy.errors import UsageError
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import Volume
from ofg_deploy.serve.apply import Application, Step
from ofg_deploy.transform import itk
from ofg_deploy.transform.dialects import Registration, write
from ofg_deploy.transform.resample import at

LPS = np.array([-1.0, -1.0, 1.0])


class Scene:
    """Fixed, moving, labels, a displacement on the fixed grid and an affine that goes after it, all on disk."""

    def __init__(self, folder: Path, make_grid, world_image, world_labels, write_nifti, affine: np.ndarray) -> None:
        self.folder = folder
        self.fixed_grid: Grid = make_grid("oblique", (19, 22, 17), (3.6, 3.1, 4.0), (1.0, -2.0, 1.5))
        self.moving_grid: Grid = make_grid("left-handed", (20, 18, 21), (3.5, 4.1, 3.3), (3.0, 1.0, -2.0))
        fixed, moving = self.fixed_grid, self.moving_grid
        self.fixed = write_nifti(folder / "fix.nii.gz", world_image(fixed), fixed.world_from_vox)
        self.moving = write_nifti(folder / "mov.nii.gz", world_image(moving) + 100, moving.world_from_vox)
        self.labels = write_nifti(folder / "seg.nii.gz", world_labels(moving), moving.world_from_vox)
        x, y, z = np.indices(fixed.shape) / 5
        field = np.array([4 * np.sin(x + 0.3), 3 * np.cos(y * 1.1) + z, -2.5 * np.sin(z + x) - 1], dtype=np.float32)
        self.warp, self.affine, self.out = folder / "1Warp.nii.gz", folder / "0.mat", folder / "out.nii.gz"
        write(self.warp, "itk", Registration(field, None, fixed, moving))
        itk.save_affine(self.affine, affine)

    def line(self, image: Path, *transforms: object, **options: object) -> list[object]:
        given = [part for transform in transforms for part in ("-t", transform)]
        extra = [part for key, value in options.items() for part in (f"--{key}", value)]
        return ["apply", image, *given, "-r", self.fixed, "-o", self.out, *extra]

    def result(self) -> np.ndarray:
        return np.asarray(nib.load(self.out).dataobj)


@pytest.fixture
def scene(tmp_path, make_grid, world_image, world_labels, write_nifti, some_affine) -> Scene:
    return Scene(tmp_path, make_grid, world_image, world_labels, write_nifti, some_affine)


def chains(scene: Scene) -> dict[str, tuple[list[str], list[bool]]]:
    warp, affine = str(scene.warp), str(scene.affine)
    return {
        "warp then affine": ([warp, affine], [False, False]),
        "affine then warp": ([affine, warp], [False, False]),
        "inverse affine": ([affine], [True]),
        "warp then inverse affine": ([warp, affine], [False, True]),
        "three": ([warp, affine, affine], [False, True, False]),
    }


@pytest.mark.parametrize(
    "name", ["warp then affine", "affine then warp", "inverse affine", "warp then inverse affine", "three"]
)
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "genericlabel"])
def test_chains_are_those_of_ants_apply_transforms(scene, run_cli, foreign, name, interpolation):
    ants = foreign("ants")
    files, inverted = chains(scene)[name]
    labels = interpolation != "linear"
    image = scene.labels if labels else scene.moving
    given = [f"[{file},1]" if back else file for file, back in zip(files, inverted, strict=True)]
    code, _, err = run_cli(scene.line(image, *given, interpolation=interpolation, fill=-77))
    assert code == 0, err
    method = {"linear": "linear", "nearest": "nearestNeighbor", "genericlabel": "genericLabel"}[interpolation]
    expected = ants.apply_transforms(
        ants.image_read(str(scene.fixed)),
        ants.image_read(str(image)),
        files,
        interpolator=method,
        whichtoinvert=inverted,
        defaultvalue=-77,
    ).numpy()
    found = scene.result()
    same = np.ones(found.shape, dtype=bool)
    if name == "affine then warp":  # off the warp's grid ITK stands still, which is no map anybody found: fill here
        assert "the transform is unknown at" in err
        same = found != -77
    assert same.mean() > 0.5
    assert np.unique(found[same]).size > 3
    if labels:
        assert (found[same] != expected[same]).mean() < 2e-3  # ties and rounding at the voxels' borders
    else:
        np.testing.assert_allclose(found[same], expected[same], atol=1e-3 * np.ptp(expected))


def test_bspline_is_simpleitks(scene, run_cli, sitk_resample):
    assert run_cli(scene.line(scene.moving, scene.warp, scene.affine, interpolation="bspline", fill=0))[0] == 0
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(scene.warp), sitk.sitkVectorFloat64))
    chain = sitk.CompositeTransform([sitk.ReadTransform(str(scene.affine)), field])
    image = sitk.ReadImage(str(scene.moving), sitk.sitkFloat64)
    expected = sitk.Resample(image, sitk.ReadImage(str(scene.fixed)), chain, sitk.sitkBSpline3, 0.0)
    expected = sitk.GetArrayFromImage(expected).transpose(2, 1, 0)
    linear = sitk_resample(image, sitk.ReadImage(str(scene.fixed)), chain)
    np.testing.assert_allclose(scene.result(), expected, atol=2e-3 * np.ptp(expected))
    assert np.abs(expected - linear).max() > 0.02 * np.ptp(expected)


def test_the_inverse_of_a_warp_brings_the_fixed_image_to_the_moving_one(scene, run_cli, world_image):
    """A smooth anatomy there and back through two interpolations is nearly itself."""
    assert run_cli(scene.line(scene.moving, scene.warp, scene.affine))[0] == 0
    back = scene.folder / "back.nii.gz"
    line = ["apply", scene.out, "-t", f"[{scene.affine},1]", "-t", f"[{scene.warp}, 1]", "-r", scene.moving, "-o", back]
    code, _, err = run_cli([*line, "--fill", "-1"])
    assert code == 0, err
    found, original = nib.load(back).get_fdata(), nib.load(scene.moving).get_fdata()
    inner = (slice(5, -5),) * 3
    assert (found[inner] > 0).mean() > 0.9
    gap = np.abs(found - original)[inner][found[inner] > 0]
    assert np.median(gap) < 0.02 * np.ptp(original)


def table(path: Path, points: np.ndarray, names: list[str]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["name", "x", "y", "z"], *[[n, *p] for n, p in zip(names, points, strict=True)]])
    return path


@pytest.mark.parametrize("frame", ["ras", "lps"])
def test_points_go_as_simpleitk_maps_them_and_come_back(scene, run_cli, frame):
    flip = LPS if frame == "lps" else np.ones(3)
    world = apply_affine(scene.fixed_grid.world_from_vox, [(5, 6, 7), (12, 9, 4), (9.5, 14.2, 10.1), (40, 3, 3)])
    given = table(scene.folder / "p.csv", world * flip, ["a", "b, with a comma", "c", "far away"])
    there, again = scene.folder / "there.csv", scene.folder / "again.csv"
    chain = ["-t", scene.warp, "-t", scene.affine, "--points-frame", frame]
    code, out, err = run_cli(["apply", *chain, "--fixed-points", given, "-o", there])
    assert code == 0, err
    assert "reference to image, forward" in out
    assert "1 of 4 points lie where the transform is unknown" in err
    rows = list(csv.DictReader(there.read_text().splitlines()))
    assert [row["inside"] for row in rows] == ["1", "1", "1", "0"]
    assert [row["name"] for row in rows] == ["a", "b, with a comma", "c", "far away"]
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(scene.warp), sitk.sitkVectorFloat64))
    whole = sitk.CompositeTransform([sitk.ReadTransform(str(scene.affine)), field])
    expected = np.array([whole.TransformPoint((p * LPS).tolist()) for p in world[:3]]) * LPS * flip
    found = np.array([[float(row[a]) for a in "xyz"] for row in rows])
    np.testing.assert_allclose(found[:3], expected, atol=1e-3)
    assert np.isnan(found[3]).all()
    known = table(scene.folder / "known.csv", found[:3], ["a", "b", "c"])
    code, out, _ = run_cli(["apply", *chain, "--points", known, "-o", again])
    assert code == 0
    assert "image to reference, by the inverse" in out
    back = np.array([[float(row[a]) for a in "xyz"] for row in csv.DictReader(again.read_text().splitlines())])
    np.testing.assert_allclose(back, world[:3] * flip, atol=2e-3)


def test_the_sidecar_says_what_was_done_in_which_order(scene, run_cli):
    assert run_cli(scene.line(scene.moving, scene.warp, f"[{scene.affine},1]"))[0] == 0
    record = json.loads((scene.folder / "out.json").read_text())
    assert [(Path(t["path"]).name, t["inverted"]) for t in record["transforms"]] == [
        ("1Warp.nii.gz", False),
        ("0.mat", True),
    ]
    assert record["output"] == "out.nii.gz"
    assert set(record["inputs"]) == {"source", "reference"}


@pytest.mark.parametrize("dialect", ["itk", "itk-h5", "fsl"])
def test_what_register_wrote_gives_its_warped_image_again(scene, run_cli, tiny_model, dialect):
    out = scene.folder / "reg"
    line = ["register", scene.fixed, scene.moving, "-m", tiny_model(init="affine").path, "-o", out, "--format", dialect]
    assert run_cli(line)[0] == 0
    record = json.loads((out / "mov_to_fix.json").read_text())
    assert record["metrics"]["roundtrip_max_mm"] < 1e-3
    file = out / record["outputs"]["transform" if dialect == "itk" else dialect]
    code, _, err = run_cli(scene.line(scene.moving, file, format=dialect))
    assert code == 0, err
    expected = nib.load(out / "mov_to_fix_warped.nii.gz").get_fdata()
    np.testing.assert_allclose(scene.result(), expected, atol=1e-2)
    if dialect == "fsl":  # the same file under another name for its form
        code, _, err = run_cli([*scene.line(scene.moving, file, format="l2r"), "--overwrite"])
        assert (code, err.count("\n")) == (2, 1)
        assert "was written in the form of fsl" in err


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"format": "fsl"}, 3, "a field of shape"),
        ({"format": "afni"}, 2, "--format"),
        ({"interpolation": "nearest"}, 3, "holds fractional values"),
        ({"fill": "nan"}, 2, "--fill nan"),
        ({"out": "x.mgz"}, 2, "ends in .nii or .nii.gz"),
        ({"fixed-points": "p.csv"}, 2, "one thing to transform"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_no_file(scene, run_cli, change, code, said):
    before = {path.name for path in scene.folder.iterdir()}
    found, _, err = run_cli(scene.line(scene.moving, scene.warp, **change))
    assert (found, err.count("\n")) == (code, 1), err
    assert said in err
    assert {path.name for path in scene.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("kind", "fill", "known"), [("u1", -77, "0 to 255"), ("u1", 256, "0 to 255"), ("i2", 40000, "32767")]
)
def test_a_fill_that_the_labels_type_does_not_hold_is_refused(
    scene, run_cli, write_nifti, world_labels, kind, fill, known
):
    """Cast, it would be a label that nobody gave."""
    labels = world_labels(scene.moving_grid).astype(kind)
    image = write_nifti(scene.folder / "typed.nii.gz", labels, scene.moving_grid.world_from_vox)
    for interpolation in ("nearest", "genericlabel"):
        code, _, err = run_cli(scene.line(image, scene.affine, interpolation=interpolation, fill=fill))
        assert (code, err.count("\n")) == (2, 1)
        assert known in err
        assert not scene.out.exists()


@pytest.mark.parametrize("interpolation", ["nearest", "genericlabel"])
def test_large_label_numbers_stay(scene, run_cli, write_nifti, interpolation):
    """Of 16 and 32 bits without a sign, where a float32 on the way would round."""
    grid = scene.moving_grid
    for kind, number in (("u2", 40001), ("u4", 3_000_000_001), ("i4", 16_777_217)):
        labels = np.zeros(grid.shape, kind)
        labels[5:15, 4:14, 6:16] = number
        image = write_nifti(scene.folder / "large.nii.gz", labels, grid.world_from_vox)
        line = scene.line(image, scene.warp, scene.affine, interpolation=interpolation)
        assert run_cli([*line, "--overwrite"])[0] == 0
        assert np.unique(scene.result()).tolist() == [0, number]
        assert nib.load(scene.out).get_data_dtype() == np.dtype(kind)


def test_the_result_is_in_the_references_space_and_its_header_is_judged(scene, run_cli):
    image = nib.load(scene.fixed)
    image.set_sform(image.affine, 4)
    off = image.affine.copy()
    off[0, 3] += 10
    image.set_qform(off, 1)
    nib.save(image, scene.folder / "mni.nii.gz")
    code, _, err = run_cli(
        [*scene.line(scene.moving, scene.affine)[:4], "-r", scene.folder / "mni.nii.gz", "-o", scene.out]
    )
    assert code == 0
    assert "mni.nii.gz: sform and qform disagree by up to 10.00 mm" in err
    assert int(nib.load(scene.out).header["sform_code"]) == 4


@pytest.mark.parametrize("dialect", ["fsl", "itk"])
@pytest.mark.parametrize("inverted", [0, 1])
def test_the_header_of_a_field_is_judged_like_an_images(scene, run_cli, dialect, inverted):
    field = np.ones((3, *scene.fixed_grid.shape), dtype=np.float32)
    path = scene.folder / "field.nii.gz"
    write(path, dialect, Registration(field, None, scene.fixed_grid, scene.moving_grid))
    image = nib.load(path)
    off = image.affine.copy()
    off[0, 3] += 10
    image.set_qform(off, 1)
    nib.save(image, path)
    said = "field.nii.gz: sform and qform disagree by up to 10.00 mm; the sform is used"
    ends = (scene.fixed, scene.moving) if inverted else (scene.moving, scene.fixed)
    line = ["apply", ends[0], "-t", f"[{path},{inverted}]", "-r", ends[1], "-o", scene.out, "--format", dialect]
    code, _, err = run_cli(line)
    assert code == 0
    assert err.count(said) == 1
    assert json.loads((scene.folder / "out.json").read_text())["warnings"][0].startswith(said)
    if dialect == "itk":
        given = table(scene.folder / "p.csv", np.array([[1.0, 2, 3]]), ["a"])
        line = ["apply", "-t", f"[{path},{inverted}]", "-t", path, "--points", given, "-o", scene.folder / "there.csv"]
        code, _, err = run_cli(line)
        assert (code, err.count(said)) == (0, 1)


@pytest.mark.parametrize("dialect", ["fsl", "itk"])
def test_an_inverted_file_alone(scene, run_cli, dialect):
    """The moving grid is the reference then: fixed voxels are found again where the forward map puts them."""
    x, y, z = np.indices(scene.fixed_grid.shape) / 5
    field = np.array([3 * np.sin(x), 2 * np.cos(y + z), -2 * np.sin(z)], dtype=np.float32)
    path = scene.folder / "other.nii.gz"
    write(path, dialect, Registration(field, None, scene.fixed_grid, scene.moving_grid))
    line = ["apply", scene.fixed, "-t", f"[{path},1]", "-r", scene.moving, "-o", scene.out, "--format", dialect]
    code, _, err = run_cli(line)
    assert code == 0, err
    found = scene.result()
    itk_form = scene.folder / "itk_form.nii.gz"
    write(itk_form, "itk", Registration(field, None, scene.fixed_grid, scene.moving_grid))
    forward = sitk.DisplacementFieldTransform(sitk.ReadImage(str(itk_form), sitk.sitkVectorFloat64))
    moving, fixed = sitk.ReadImage(str(scene.moving)), sitk.ReadImage(str(scene.fixed), sitk.sitkFloat64)
    counted = 0
    for voxel in ((6, 7, 6), (9, 11, 8), (12, 9, 10), (8, 14, 7)):
        point = fixed.TransformIndexToPhysicalPoint(voxel)
        there = moving.TransformPhysicalPointToContinuousIndex(forward.TransformPoint(point))
        [value] = map_coordinates(found, np.array(there)[:, None], order=1)
        counted += abs(value - fixed[voxel]) < 0.05 * np.ptp(found)
    assert counted == 4


def test_a_transform_of_another_place_is_refused(scene, run_cli, make_grid, write_nifti):
    grid = make_grid("RAS", (9, 8, 7), (2.0, 2, 2), (500.0, 0, 0))
    far = write_nifti(scene.folder / "far.nii.gz", np.zeros(grid.shape), grid.world_from_vox)
    line = ["apply", scene.moving, "-t", scene.warp, "-r", far, "-o", scene.out]
    code, _, err = run_cli(line)
    assert code == 3
    assert "known nowhere" in err
    assert not scene.out.exists()


@pytest.mark.parametrize("large", ["image", "reference", "field", "npz"])
def test_max_voxels_is_that_of_register(scene, run_cli, make_grid, write_nifti, world_image, large):
    """One of the three files has 6,000 voxels and the others fewer, but for the form that needs one grid."""
    big, small = (make_grid("LAS", shape, (4.0, 4.0, 4.0)) for shape in ((20, 20, 15), (20, 20, 14)))
    image, reference = (
        write_nifti(scene.folder / f"{role}.nii", world_image(grid), grid.world_from_vox)
        for role, grid in (("im", big if large == "image" else small), ("ref", big if large == "reference" else small))
    )
    field = np.zeros((3, *big.shape), dtype=np.float32)
    grid = big if large == "field" else small
    warp = scene.folder / "w.nii.gz"
    write(warp, "itk", Registration(field[..., : grid.shape[2]], None, grid, grid))
    line = ["apply", image, "-t", warp, "-r", reference, "-o", scene.out, "--max-voxels"]
    said, name = "20x20x15", {"image": "im.nii", "reference": "ref.nii", "field": "w.nii.gz", "npz": "w.npz"}[large]
    if large == "npz":
        np.savez(scene.folder / "w.npz", vol=np.zeros((20, 20, 30, 3)))
        line[3] = scene.folder / "w.npz"
        line[-1:] = ["--format", "voxelmorph", "--max-voxels"]
        said = "claims more than --max-voxels 5999"
    code, _, err = run_cli([*line, 5999])
    assert (code, err.count("\n")) == (3, 1), err
    assert f"{name} " in err
    assert said in err
    assert "--max-voxels 5999" in err
    assert not scene.out.exists()
    if large != "npz":
        assert run_cli([*line, 6000])[0] == 0
    assert run_cli([*line, 0])[0] == 2


def test_results_are_kept_unless_overwriting_was_asked(scene, run_cli):
    assert run_cli(scene.line(scene.moving, scene.affine))[0] == 0
    assert run_cli(scene.line(scene.moving, scene.affine))[0] == 3
    assert run_cli([*scene.line(scene.moving, scene.affine), "--overwrite"])[0] == 0


def test_what_is_applied_is_never_overwritten(scene, run_cli):
    before = Path(scene.moving).read_bytes()
    line = [scene.moving if part == scene.out else part for part in scene.line(scene.moving, scene.affine)]
    code, _, err = run_cli([*line, "--overwrite"])
    assert (code, err.count("\n")) == (3, 1), err
    assert "is an input, and would be lost" in err
    assert Path(scene.moving).read_bytes() == before


def test_the_syntax_of_inverses():
    assert Step.parse("a b.mat") == Step(Path("a b.mat"))
    assert Step.parse("[x,y.mat, 1]") == Step(Path("x,y.mat"), True)
    assert Step.parse("[w.nii.gz,0]") == Step(Path("w.nii.gz"), False)
    assert Step.parse("[w.nii.gz]") == Step(Path("[w.nii.gz]"))
    with pytest.raises(UsageError, match="no transform"):
        Application((), Path("o.nii"), image=Path("i.nii"), reference=Path("r.nii"))


def test_of_two_labels_that_weigh_alike_the_smaller_is_taken(tmp_path, make_grid, foreign):
    """Half-way between two voxels, in both orders; as ANTs' genericLabel, which keeps the first of its sorted ones."""
    ants = foreign("ants")
    data = np.zeros((4, 3, 3), np.uint8)
    data[:] = np.array([9, 3, 8, 5])[:, None, None]
    grid = make_grid("RAS", data.shape, (1, 1, 1), (1.5, 1, 1))
    points = np.array([[0.5, 1.5, 2.5], [1, 1, 1], [1, 1, 1]])
    found = at(Volume(data, grid, Path("l.nii")), points, "genericlabel", 0)
    assert found.tolist() == [3, 3, 5]
    image, shift = ants.from_numpy(data.astype(np.float32)), np.eye(4)
    shift[0, 3] = -0.5  # half a voxel along ANTs' first axis, which is LPS
    itk.save_affine(tmp_path / "shift.mat", shift)
    theirs = ants.apply_transforms(image, image, [str(tmp_path / "shift.mat")], interpolator="genericLabel").numpy()
    assert theirs[:3, 1, 1].tolist() == [3, 3, 5]

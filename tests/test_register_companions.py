"""What moves with the images: several label maps, channels, points, the inverse; and BIDS names for all of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine

from ofg_deploy.errors import UsageError
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.names import BidsName, Names

LPS = np.array([-1.0, -1.0, 1.0])


def sitk_transform(path: Path) -> sitk.DisplacementFieldTransform:
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


@pytest.fixture
def scene(tmp_path, files, tiny_model, world_labels, world_image, write_nifti, make_grid):
    """The pair, two label maps and a channel on a grid of its own, and the start of a command line."""
    fixed, moving, _, grid = files
    write_nifti(tmp_path / "organs.nii.gz", world_labels(grid), grid.world_from_vox)
    write_nifti(tmp_path / "lesions.nii.gz", (world_labels(grid) == 7).astype(np.uint8) * 5, grid.world_from_vox)
    other = make_grid("LPS", (25, 22, 24), (2.9, 3.0, 3.1), (2.0, 0.5, -1.0))
    write_nifti(tmp_path / "t2.nii.gz", 900 - world_image(other), other.world_from_vox)
    model = tiny_model(init="affine").path
    return ["register", fixed, moving, "-m", model, "-o", tmp_path / "out"]


def test_labels_channels_and_their_names(tmp_path, scene, run_cli, sitk_resample):
    labels = ["--moving-labels", tmp_path / "organs.nii.gz", "--moving-labels", tmp_path / "lesions.nii.gz"]
    code, _, err = run_cli([*scene, *labels, "--also", tmp_path / "t2.nii.gz", "--fill", "-5"])
    assert code == 0, err
    out = tmp_path / "out"
    transform = sitk_transform(out / "mov_to_fix_Warp.nii.gz")
    reference = sitk.ReadImage(str(tmp_path / "fix.nii.gz"))
    for name, nearest, fill in (("organs", True, 0), ("lesions", True, 0), ("t2", False, -5)):
        image = sitk.ReadImage(str(tmp_path / f"{name}.nii.gz"))
        expected = sitk_resample(image, reference, transform, nearest, fill)
        found = np.asarray(nib.load(out / f"mov_to_fix_warped_{name}.nii.gz").dataobj)
        assert np.unique(expected).size >= 2
        if nearest:
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, atol=1e-3 * np.ptp(expected))
    record = json.loads((out / "mov_to_fix.json").read_text())
    assert record["outputs"]["warped_labels_2"] == "mov_to_fix_warped_lesions.nii.gz"
    assert {"moving_labels", "moving_labels_2", "also"} < set(record["inputs"])
    assert run_cli([*scene, "--overwrite", "--moving-labels", tmp_path / "organs.nii.gz"])[0] == 0
    names = {path.name.removeprefix("mov_to_fix") for path in out.iterdir()}  # nothing of the larger set stays
    endings = {"_warped.nii.gz", "_Warp.nii.gz", "_0GenericAffine.mat", ".json", "_warped_labels.nii.gz"}
    assert names == endings


def test_generic_labels_are_those_of_ants(tmp_path, scene, run_cli, foreign):
    ants = foreign("ants")
    labels = ["--moving-labels", tmp_path / "organs.nii.gz", "--label-interpolation", "genericlabel"]
    code, _, err = run_cli([*scene, *labels])
    assert code == 0, err
    expected = ants.apply_transforms(
        ants.image_read(str(tmp_path / "fix.nii.gz")),
        ants.image_read(str(tmp_path / "organs.nii.gz")),
        [str(tmp_path / "out" / "mov_to_fix_Warp.nii.gz")],
        interpolator="genericLabel",
    ).numpy()
    found = np.asarray(nib.load(tmp_path / "out" / "mov_to_fix_warped_labels.nii.gz").dataobj)
    assert set(np.unique(expected)) == {0, 3, 7, 12}
    assert (found != expected).mean() < 1e-3
    run_cli([*scene, *labels[:2], "--overwrite"])
    nearest = np.asarray(nib.load(tmp_path / "out" / "mov_to_fix_warped_labels.nii.gz").dataobj)
    assert (nearest != expected).mean() > 5e-3


def points_table(path: Path, points: np.ndarray) -> Path:
    rows = [["x", "y", "z", "name"], *[[*point, f"p{n}"] for n, point in enumerate(points)]]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def read_points(path: Path) -> tuple[np.ndarray, list[str]]:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return np.array([[float(row[axis]) for axis in "xyz"] for row in rows]), [row["inside"] for row in rows]


@pytest.mark.parametrize("frame", ["ras", "lps"])
def test_points_go_both_ways(tmp_path, scene, files, run_cli, frame):
    flip = LPS if frame == "lps" else np.ones(3)
    fixed_world = apply_affine(files[2].world_from_vox, [(9, 11, 8), (12, 8, 10), (7, 13, 6), (-30, 4, 4)])
    table = points_table(tmp_path / "f.csv", fixed_world * flip)
    line = [*scene, "--points-frame", frame, "--overwrite"]
    code, out, err = run_cli([*line, "--fixed-points", table])
    assert code == 0, err
    assert "fixed to moving, forward" in out
    assert "1 of 4 points lie where the transform is unknown" in err
    found, inside = read_points(tmp_path / "out" / "mov_to_fix_fixed_points_in_moving.csv")
    transform = sitk_transform(tmp_path / "out" / "mov_to_fix_Warp.nii.gz")
    expected = np.array([transform.TransformPoint((p * LPS).tolist()) for p in fixed_world[:3]]) * LPS * flip
    np.testing.assert_allclose(found[:3], expected, atol=1e-3)
    assert inside == ["1", "1", "1", "0"]
    assert np.abs(found[:3] - fixed_world[:3] * flip).max() > 2
    back = points_table(tmp_path / "m.csv", found[:3])
    code, out, _ = run_cli([*line, "--points", back])
    assert code == 0
    assert "moving to fixed, by the inverse" in out
    again, inside = read_points(tmp_path / "out" / "mov_to_fix_moving_points_in_fixed.csv")
    np.testing.assert_allclose(again, fixed_world[:3] * flip, atol=2e-3)
    record = json.loads((tmp_path / "out" / "mov_to_fix.json").read_text())
    assert record["points"]["moving_points"]["frame"] == frame
    assert not (tmp_path / "out" / "mov_to_fix_fixed_points_in_moving.csv").exists()


def test_the_inverse_is_a_transform_simpleitk_applies(tmp_path, scene, files, run_cli):
    code, out, err = run_cli([*scene, "--inverse"])
    assert code == 0, err
    assert "inverse consistency error (mm): mean " in out
    image = nib.load(tmp_path / "out" / "mov_to_fix_InverseWarp.nii.gz")
    np.testing.assert_allclose(image.affine, files[3].world_from_vox, atol=1e-5)
    assert image.shape == (*files[3].shape, 1, 3)
    forward = sitk_transform(tmp_path / "out" / "mov_to_fix_Warp.nii.gz")
    backward = sitk_transform(tmp_path / "out" / "mov_to_fix_InverseWarp.nii.gz")
    voxels = np.random.default_rng(0).uniform(6, 13, (40, 3))
    gaps = []
    for point in apply_affine(files[2].world_from_vox, voxels) * LPS:
        there = forward.TransformPoint(point.tolist())
        assert np.linalg.norm(np.array(there) - point) > 0.5
        gaps.append(np.linalg.norm(np.array(backward.TransformPoint(there)) - point))
    told = json.loads((tmp_path / "out" / "mov_to_fix.json").read_text())["inverse"]
    assert told["without_percent"] == 0
    assert max(gaps) < told["consistency_mm"]["max"] < 1
    assert np.mean(gaps) == pytest.approx(told["consistency_mm"]["mean"], rel=0.6)


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        (["--also", "organs.nii.gz", "--also", "organs.nii.gz"], 2, "would be called mov_to_fix_warped_organs.nii.gz"),
        (["--label-interpolation", "linear"], 2, "--label-interpolation"),
        (["--points", "bad.csv"], 3, "a header with x, y, z"),
        (["--fixed-points", "rows.csv"], 3, "must be numbers in every row"),
        (["--points", "none.csv"], 3, "cannot be read"),
    ],
)
def test_what_cannot_move_is_one_line(tmp_path, scene, run_cli, extra, code, said):
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "rows.csv").write_text("x,y,z\n1,2,3\n4,5\n")
    given = [tmp_path / word if "." in word else word for word in extra]
    found, _, err = run_cli([*scene, *given])
    assert (found, err.count("\n")) == (code, 1), err
    assert said in err
    assert not (tmp_path / "out").exists()


# Names


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("sub-01_T1w.nii.gz", "sub01T1w"),
        ("sub-01_ses-pre_acq-hires_run-2_T2w.nii", "sub01sespreacqhiresrun2T2w"),
        ("tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz", "MNI152NLin2009cAsym"),
    ],
)
def test_names_of_bids_are_recognised(name, label):
    assert BidsName.parse(Path("anywhere") / name).label == label


@pytest.mark.parametrize(
    "name",
    [
        *("T1w.nii.gz", "sub-01.nii.gz", "sub-01_T1w.mha", "ses-1_sub-01_T1w.nii.gz", "sub-01_foo-2_T1w.nii.gz"),
        *("sub-01_run-1_ses-2_T1w.nii.gz", "sub-01_sub-02_T1w.nii.gz", "sub-0_1_x-T1w.nii.gz", "sub-_T1w.nii.gz"),
        *("sub-01_T1w_brain.nii.gz", "my sub-01_T1w.nii.gz"),
    ],
)
def test_all_else_is_not(name):
    assert BidsName.parse(Path(name)) is None
    plain = dict(Names(Path("sub-02_T1w.nii.gz"), Path(name)).every())
    assert plain["warped"].endswith("_to_sub-02_T1w_warped.nii.gz")


def test_bids_derivatives(tmp_path, scene, run_cli):
    """Every file by the standard's pattern of a derivative; a channel that is named so keeps its own entities."""
    target = tmp_path / "tpl-Small_res-02_T1w.nii.gz"
    target.write_bytes((tmp_path / "fix.nii.gz").read_bytes())
    source = tmp_path / "sub-01_ses-1_run-1_T1w.nii.gz"
    source.write_bytes((tmp_path / "mov.nii.gz").read_bytes())
    channel = tmp_path / "sub-01_ses-1_FLAIR.nii.gz"
    channel.write_bytes((tmp_path / "t2.nii.gz").read_bytes())
    line = ["register", target, source, *scene[3:], "--also", channel, "--also", tmp_path / "t2.nii.gz", "--inverse"]
    code, _, err = run_cli([*line, "--moving-labels", tmp_path / "organs.nii.gz", "--format", "itk-h5"])
    assert code == 0, err
    base, there = "sub-01_ses-1_run-1", "from-sub01ses1run1T1w_to-Small_mode-image"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{base}_space-Small_res-02_desc-warped_T1w.nii.gz",
        f"{base}_space-Small_res-02_desc-warped_dseg.nii.gz",
        f"{base}_space-Small_res-02_desc-warpedt2_T1w.nii.gz",
        "sub-01_ses-1_space-Small_res-02_desc-warped_FLAIR.nii.gz",
        f"{base}_{there}_xfm.nii.gz",
        f"{base}_{there}_desc-affine_xfm.mat",
        f"{base}_{there}_desc-itkh5_xfm.h5",
        f"{base}_from-Small_to-sub01ses1run1T1w_mode-image_xfm.nii.gz",
        f"{base}_{there}_xfm.json",
    }
    again = ["apply", source, "-t", tmp_path / "out" / f"{base}_{there}_xfm.nii.gz", "-r", target, "-o"]
    assert run_cli([*again, tmp_path / "again.nii.gz"])[0] == 0
    warped = nib.load(tmp_path / "out" / f"{base}_space-Small_res-02_desc-warped_T1w.nii.gz").get_fdata()
    np.testing.assert_allclose(nib.load(tmp_path / "again.nii.gz").get_fdata(), warped, atol=1e-2)


def test_labels_of_another_pair_stay(tmp_path, scene, run_cli):
    """By BIDS a label map of either contrast is the same ``dseg``: a pair without one must not take it for its own."""
    source = (tmp_path / "mov.nii.gz").read_bytes()
    target = (tmp_path / "fix.nii.gz").rename(tmp_path / "tpl-Small_T1w.nii.gz")
    for contrast in ("T1w", "T2w"):
        (tmp_path / f"sub-01_{contrast}.nii.gz").write_bytes(source)
    first, second = (["register", target, tmp_path / f"sub-01_{kind}.nii.gz", *scene[3:]] for kind in ("T1w", "T2w"))
    labels = tmp_path / "out/sub-01_space-Small_desc-warped_dseg.nii.gz"
    assert run_cli([*first, "--moving-labels", tmp_path / "organs.nii.gz"])[0] == 0
    before = labels.read_bytes()
    for more in ([], ["--overwrite"]):
        code, _, err = run_cli([*second, *more])
        assert code == 0, err
        assert labels.read_bytes() == before
    assert run_cli([*first, "--overwrite"])[0] == 0  # its own, which it makes no more
    assert not labels.exists()


def test_the_pair_turned_round_keeps_its_transform(tmp_path, scene, run_cli):
    """Within a subject its transform is called as the inverse of this pair would be."""
    images = [(tmp_path / f"{name}.nii.gz").rename(tmp_path / f"sub-01_{kind}.nii.gz") for name, kind in
              (("fix", "T1w"), ("mov", "T2w"))]  # fmt: skip
    there, back = (["register", *pair, *scene[3:]] for pair in (images, images[::-1]))
    transform = tmp_path / "out/sub-01_from-sub01T1w_to-sub01T2w_mode-image_xfm.nii.gz"
    assert run_cli(back)[0] == 0
    before = transform.read_bytes()
    for more in ([], ["--overwrite"]):
        code, _, err = run_cli([*there, *more])
        assert code == 0, err
        assert transform.read_bytes() == before


def test_entities_keep_the_order_of_the_standard(tmp_path):
    """So that a result is again an image named by BIDS; what belonged to the old grid goes."""
    moving = Path("sub-01_space-T1w_res-1_label-GM_desc-old_probseg.nii.gz")
    names = Names(Path("sub-02_hemi-L_T1w.nii.gz"), moving)
    every = dict(names.every())
    assert every["warped"] == "sub-01_space-sub02hemiLT1w_label-GM_desc-warped_probseg.nii.gz"
    assert BidsName.parse(Path(every["warped"]))
    label = "sub01spaceT1wres1labelGMdescoldprobseg"
    assert every["transform"] == f"sub-01_from-{label}_to-sub02hemiLT1w_mode-image_label-GM_xfm.nii.gz"
    assert every["moving_points"] == f"sub-01_from-{label}_to-sub02hemiLT1w_label-GM_points.csv"
    assert every["fixed_points"] == f"sub-01_from-sub02hemiLT1w_to-{label}_label-GM_points.csv"


def test_two_label_maps_of_one_name_are_refused():
    with pytest.raises(UsageError, match="2 outputs would be called"):
        Job(Path("f.nii"), Path("m.nii"), Path("o"), moving_labels=(Path("a/seg.nii"), Path("b/seg.nii")))

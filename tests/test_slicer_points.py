"""Points as 3D Slicer keeps them, through every verb that takes points; landmark errors, against SimpleITK."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from evaluated_pairs import LPS, displacement_mm, write_field, write_points

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.evaluate.pair import evaluate
from ofg_deploy.evaluate.pairs import Pair
from ofg_deploy.transform.landmarks import match
from ofg_deploy.transform.points import load_points

FAULTS = Path(__file__).resolve().parents[2] / "shared/faults/slicer_points"
FCSV = """# Markups fiducial file version = 5.0
# CoordinateSystem = {system}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
"""


def fcsv(path: Path, points: np.ndarray, system: str = "LPS", labels: list[str] | None = None) -> Path:
    rows = [
        f'{n},{",".join(map(repr, map(float, p)))},0.1,0.2,0.3,0.9,1,0,1,{label},"a, b",vtkNode{n}'
        for n, (p, label) in enumerate(zip(points, labels or [f"F-{n}" for n in range(len(points))], strict=True))
    ]
    path.write_text(FCSV.format(system=system) + "\n".join(rows) + "\n")
    return path


def table(path: Path, points: np.ndarray, axes: str = "l,p,s", labels: list[str] | None = None) -> Path:
    names = labels or [f"F-{n}" for n in range(len(points))]
    rows = [f"{n},{','.join(map(repr, map(float, p)))},1,1,1,0,text" for n, p in zip(names, points, strict=True)]
    path.write_text(f"label,{axes},defined,selected,visible,locked,description\n" + "\n".join(rows) + "\n")
    return path


def markups(path: Path, points: np.ndarray, system: str = "LPS", labels: list[str] | None = None) -> Path:
    control = [
        {
            "id": str(n),
            "label": label,
            "description": "kept",
            "associatedNodeID": "vtk",
            "position": list(map(float, p)),
            "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
            "locked": True,
            "positionStatus": "defined",
        }
        for n, (p, label) in enumerate(zip(points, labels or [f"F-{n}" for n in range(len(points))], strict=True))
    ]
    markup = {"type": "Fiducial", "coordinateSystem": system, "coordinateUnits": "mm", "controlPoints": control}
    path.write_text(json.dumps({"@schema": "https://x/markups-schema-v1.0.3.json#", "markups": [markup]}))
    return path


def read_back(path: Path) -> np.ndarray:
    """(N, 3) as they stand in the file, without our own code."""
    if path.name.endswith(".json"):
        [markup] = json.loads(path.read_text())["markups"]
        return np.array([p.get("position", [np.nan] * 3) for p in markup["controlPoints"]])
    lines = path.read_text().splitlines()
    if path.suffix == ".fcsv":
        return np.array([row[1:4] for row in csv.reader(line for line in lines if line[0] != "#")], dtype=float)
    return np.array([row[1:4] for row in csv.reader(lines[1:])], dtype=float)


@pytest.fixture
def scene(tmp_path, make_grid):
    """A field on an oblique grid, and points inside but for one; RAS."""
    grid = make_grid("oblique-permuted", (40, 46, 38), (2.1, 1.7, 2.4), (1.0, -2.0, 1.5))
    write_field(tmp_path / "t_Warp.nii.gz", grid)
    points = np.random.default_rng(2).uniform(-25, 25, (6, 3))
    points[4] = (300, 0, 0)
    return tmp_path, points


WRITERS = {
    "lps.fcsv": (fcsv, {"system": "LPS"}, LPS),
    "ras.fcsv": (fcsv, {"system": "RAS"}, 1),
    "one.fcsv": (fcsv, {"system": "1"}, LPS),
    "zero.fcsv": (fcsv, {"system": "0"}, 1),
    "lps.csv": (table, {"axes": "l,p,s"}, LPS),
    "ras.csv": (table, {"axes": "r,a,s"}, 1),
    "lps.mrk.json": (markups, {"system": "LPS"}, LPS),
    "ras.mrk.json": (markups, {"system": "RAS"}, 1),
    "named.json": (markups, {"system": "LPS"}, LPS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_apply_carries_them_as_simpleitk_does_and_writes_the_same_form(scene, run_cli, name):
    folder, points = scene
    write, how, flip = WRITERS[name]
    given = write(folder / name, points * flip, **how)
    out = folder / f"out.{name.partition('.')[2]}"
    line = ["apply", "-t", folder / "t_Warp.nii.gz", "--fixed-points", given, "-o", out]
    code, said, err = run_cli(line)
    assert code == 0, err
    assert f"({'LPS' if flip is LPS else 'RAS'} mm)" in said
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / "t_Warp.nii.gz"), sitk.sitkVectorFloat64))
    expected = np.array([transform.TransformPoint((p * LPS).tolist()) for p in points]) * LPS * flip
    found = read_back(out)
    inside = np.arange(6) != 4
    assert np.abs(found - expected)[inside].max() < 2e-3
    assert np.abs(expected - points * flip)[inside].max() > 1
    assert np.isnan(found[4]).all()
    assert "1 of 6 points" in err
    before, after = given.read_text(), out.read_text()
    if name.endswith(".json"):
        old, new = (json.loads(text) for text in (before, after))
        for n, (a, b) in enumerate(zip(*(d["markups"][0]["controlPoints"] for d in (old, new)), strict=True)):
            assert (b.pop("position", None) is None) == (n == 4)
            assert b.pop("positionStatus") == ("undefined" if n == 4 else a["positionStatus"])
            assert b == {k: v for k, v in a.items() if k not in ("position", "positionStatus")}
        assert {**old, "markups": 0} == {**new, "markups": 0}
    else:
        rows = [list(csv.reader(io.StringIO(text))) for text in (before, after)]
        skipped = 3 if name.endswith("fcsv") else 1
        assert rows[0][:skipped] == rows[1][:skipped]
        assert [row[4:] for row in rows[0][skipped:]][:4] == [row[4:] for row in rows[1][skipped:]][:4]
        assert [row[0] for row in rows[0]] == [row[0] for row in rows[1]]
        if name.endswith(".csv"):
            assert [row[4] for row in rows[1][1:]] == ["1", "1", "1", "1", "0", "1"]  # defined
    code, _, err = run_cli([*line[:-1], folder / "other.xyz"])
    assert (code, err.count("\n")) == (2, 1)
    wrong = "ras" if flip is LPS else "lps"
    code, _, err = run_cli([*line, "--overwrite", "--points-frame", wrong])
    assert (code, err.count("\n")) == (2, 1)
    assert f"leave out --points-frame {wrong}" in err


@pytest.mark.parametrize("name", ["lps.fcsv", "ras.csv", "ras.mrk.json"])
def test_eval_measures_between_any_two_forms(scene, name):
    folder, points = scene
    write, how, flip = WRITERS[name]
    rng = np.random.default_rng(0)
    moving = points + displacement_mm(points) + rng.normal(0, 1.0, points.shape)
    given = write(folder / name, points * flip, **how)
    order = [3, 0, 5, 1, 4, 2]
    other = markups(folder / "m.mrk.json", moving[order] * LPS, labels=[f"F-{n}" for n in order])
    found = evaluate(Pair("p", folder / "t_Warp.nii.gz", fixed_points=given, moving_points=other), None, None).numbers
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / "t_Warp.nii.gz"), sitk.sitkVectorFloat64))
    mapped = np.array([transform.TransformPoint((p * LPS).tolist()) for p in points]) * LPS
    for when, ends in (("", mapped), ("before_", points)):
        distance = np.delete(np.linalg.norm(ends - moving, axis=1), 4)
        assert found[f"tre_{when}mean_mm"] == pytest.approx(distance.mean(), abs=2e-3)
        assert found[f"tre_{when}max_mm"] == pytest.approx(distance.max(), abs=2e-3)
    assert (found["landmarks"], found["landmarks_outside"]) == (5, 1)
    by_row = np.linalg.norm(points - moving[order], axis=1)
    assert abs(np.delete(by_row, 4).mean() - found["tre_before_mean_mm"]) > 5  # what must not pass


def test_correspondence_is_never_guessed(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3, 3))

    def pair(names, others):
        files = fcsv(tmp_path / "a.fcsv", points, labels=names), table(tmp_path / "b.csv", points, labels=others)
        return match(*(load_points(path, None) for path in files))

    assert pair(["a", "b", "c"], ["c", "a", "b"]).matched_by == "label"
    np.testing.assert_allclose(pair(["a", "b", "c"], ["c", "a", "b"]).moving[:, 0], points[1] * LPS)
    for names, others in (("abc", "xyz"), ("aab", "baa"), ([""] * 3, "abc")):
        found = pair(list(names), list(others))
        assert found.matched_by == "row"
        np.testing.assert_allclose(found.moving, (points * LPS).T)
    with pytest.raises(InputError, match="share 2 labels and not c, d"):
        pair(["a", "b", "c"], ["a", "b", "d"])
    short = write_points(tmp_path / "s.csv", points[:2])
    with pytest.raises(InputError, match=r"has 3 and .* 2 landmarks"):
        match(load_points(tmp_path / "a.fcsv", None), load_points(short, None))
    ids = [tmp_path / name for name in ("i.csv", "j.csv")]
    for path, order in zip(ids, ([0, 1, 2], [2, 1, 0]), strict=True):
        path.write_text("id,x,y,z\n" + "\n".join(f"p{n}," + ",".join(map(str, points[n])) for n in order) + "\n")
    found = match(*(load_points(path, None) for path in ids))
    np.testing.assert_allclose(found.fixed, found.moving)


ENDLESS = f'{{"markups": [{{"controlPoints": [{{"position": [1, 2, {10**400}]}}]}}]}}'


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.fcsv", FCSV.format(system="IJK") + "0,1,2,3\n", "CoordinateSystem 'IJK'"),
        ("a.fcsv", FCSV.format(system="LPS") + "0,1,two,3\n", "must be numbers"),
        ("a.fcsv", FCSV.format(system="LPS"), "no landmarks"),
        ("a.fcsv", "# columns = id,label\n0,a\n", "x, y and z"),
        ("a.csv", "label,l,p\na,1,2\n", "l, p, s"),
        ("a.csv", "x,y,z,l,p,s\n1,2,3,4,5,6\n", "exactly one"),
        ("a.csv", "l,p,s\n1,inf,3\n", "not finite"),
        ("a.mrk.json", "{}", "markups"),
        ("a.mrk.json", '{"markups": [{"type": "ROI", "controlPoints": []}]}', "type ROI"),
        ("a.mrk.json", '{"markups": [{"coordinateSystem": "IJK", "controlPoints": []}]}', "IJK"),
        ("a.mrk.json", '{"markups": [{"coordinateUnits": "um", "controlPoints": []}]}', "mm is needed"),
        ("a.mrk.json", '{"markups": [{"controlPoints": [{"position": [1, 2]}]}]}', "three finite numbers"),
        ("a.mrk.json", '{"markups": [{"controlPoints": [{"position": null}]}]}', "no markups file"),
        (
            "a.mrk.json",
            f'{{"markups": [{{"controlPoints": [{{"position": [1, 2, {10**400}]}}]}}]}}',
            "three finite numbers",
        ),
        ("a.mrk.json", '{"markups": [{"controlPoints": [{"label": "F"}]}]}', "three finite numbers"),
        ("a.mrk.json", '{"markups": [{}]}', r"markups\[0\]\.controlPoints is missing"),
        ("a.mrk.json", '{"markups": [{"controlPoints": {}}]}', r"markups\[0\]\.controlPoints is \{\}, expected a list"),
    ],
)
def test_damaged_files_are_refused(tmp_path, run_cli, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        load_points(tmp_path / name, None)


def test_older_fcsv_and_points_that_are_not_defined(tmp_path):
    (tmp_path / "old.fcsv").write_text("# name = F\n# columns = label,x,y,z,sel,visibility\nL1,1,-2,3,1,1\n")
    old = load_points(tmp_path / "old.fcsv", None)
    assert (old.frame, old.labels, old.world.T.tolist()) == ("ras", ("L1",), [[1, -2, 3]])
    path = table(tmp_path / "t.csv", np.array([[1.0, 2, 3], [4, 5, 6]]))
    path.write_text(path.read_text().replace("6.0,1,1", "6.0,0,1"))
    found = load_points(path, None)
    assert found.defined.tolist() == [True, False]
    assert found.world[:, 0].tolist() == [-1, -2, 3]
    with pytest.raises(UsageError, match="LPS by its own word"):
        load_points(path, "ras")


@pytest.mark.skipif(not FAULTS.is_dir(), reason="../shared/faults is not here")
def test_as_slicer_saved_them():
    both = [load_points(FAULTS / name, None) for name in ("F.fcsv", "slicer_table.csv")]
    np.testing.assert_array_equal(both[0].world, both[1].world)
    assert both[0].world[:, 3].tolist() == [-17.00787192324954, 9.126471912293038, 1.3731592758940145]
    assert both[0].labels == both[1].labels == tuple(f"F-{n}" for n in range(6))


def test_register_tells_the_landmark_error(tmp_path, make_grid, world_image, write_nifti, tiny_model, run_cli):
    """Before, after the start and after: from the files alone, by SimpleITK."""
    grid = make_grid("oblique", (24, 27, 22), (3.1, 2.6, 3.3), (1.0, -2.0, 1.5))
    shift = np.eye(4)
    shift[:3, 3] = (3, -2, 1)
    fixed = write_nifti(tmp_path / "fix.nii.gz", world_image(grid), grid.world_from_vox)
    moving = write_nifti(tmp_path / "mov.nii.gz", world_image(grid, shift), grid.world_from_vox)
    ends = np.random.default_rng(3).uniform(-20, 20, (7, 3))
    others = ends - shift[:3, 3] + np.random.default_rng(4).normal(0, 0.7, ends.shape)
    order = [6, 2, 0, 1, 5, 3, 4]
    tables = ["--fixed-points", fcsv(tmp_path / "f.fcsv", ends * LPS)]
    tables += ["--moving-points", markups(tmp_path / "m.mrk.json", others[order], "RAS", [f"F-{n}" for n in order])]
    line = ["register", fixed, moving, "-m", tiny_model(init="affine").path, "-o", tmp_path / "out"]
    code, said, err = run_cli([*line, *tables])
    assert code == 0, err
    [figures] = [row.split() for row in said.splitlines() if row.startswith("TRE mean (mm)")]
    assert len(figures) == 6  # before, initial, after
    assert "7 landmarks, matched by label" in said
    record = json.loads((tmp_path / "out/mov_to_fix.json").read_text())
    assert record["landmarks"] == {"matched_by": "label"}
    warp = sitk.ReadImage(str(tmp_path / "out/mov_to_fix_Warp.nii.gz"), sitk.sitkVectorFloat64)
    maps = {
        "before": sitk.Transform(3, sitk.sitkIdentity),
        "start": sitk.ReadTransform(str(tmp_path / "out/mov_to_fix_0GenericAffine.mat")),
        "after": sitk.DisplacementFieldTransform(warp),
    }
    for when, transform in maps.items():
        mapped = np.array([transform.TransformPoint((p * LPS).tolist()) for p in ends]) * LPS
        distance = np.linalg.norm(mapped - others, axis=1)
        for name, value in (("mean", distance.mean()), ("median", np.median(distance)), ("max", distance.max())):
            assert record["metrics"][f"tre_{when}_{name}_mm"] == pytest.approx(value, abs=5e-3)
    assert record["metrics"]["tre_start_mean_mm"] < 0.7 * record["metrics"]["tre_before_mean_mm"]
    carried = read_back(tmp_path / "out/mov_to_fix_fixed_points_in_moving.fcsv")
    mapped = np.array([maps["after"].TransformPoint((p * LPS).tolist()) for p in ends])
    assert np.abs(carried - mapped).max() < 5e-3
    assert read_back(tmp_path / "out/mov_to_fix_moving_points_in_fixed.mrk.json").shape == (7, 3)
    tables[3] = write_points(tmp_path / "few.csv", others[:5])
    code, said, err = run_cli([*line, *tables, "--overwrite"])
    assert code == 0, err
    assert "no landmark error" in err
    assert "has 7 and" in err
    assert "landmark error" not in said
    assert not (tmp_path / "out/mov_to_fix_moving_points_in_fixed.mrk.json").exists()

"""``ofg eval`` as a user meets it: lists and folders in, tables, a record and a picture out; what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from evaluated_pairs import write_field, write_points

from ofg_deploy.evaluate.pair import evaluate
from ofg_deploy.evaluate.pairs import find_pairs


def write_list(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


GOOD = {"fixed_labels": "fix_seg.nii.gz", "moving_labels": "mov_seg.nii.gz", "transform": "t_Warp.nii.gz"}


@pytest.fixture
def listed(tmp_path, make_grid, world_labels, write_nifti) -> Path:
    """A folder with a good pair of label maps, landmarks and a transform."""
    fixed = make_grid("left-handed", (19, 22, 17), (3.6, 3.1, 4.0), (1.0, -2.0, 1.5))
    moving = make_grid("RAS", (20, 18, 21), (3.5, 4.1, 3.3), (3.0, 1.0, -2.0))
    write_nifti(tmp_path / "fix_seg.nii.gz", world_labels(fixed), fixed.world_from_vox)
    write_nifti(tmp_path / "mov_seg.nii.gz", world_labels(moving), moving.world_from_vox)
    write_field(tmp_path / "t_Warp.nii.gz", fixed)
    write_points(tmp_path / "f.csv", np.array([[1.0, 2, 3], [5, -6, 7]]))
    write_points(tmp_path / "m.csv", np.array([[2.0, 3, 4], [5, -5, 7]]))
    return tmp_path


def test_tables_record_and_picture(listed, run_cli):
    (listed / "names.csv").write_text("label,name\n7,caudate $x$\n3,=all the rest\n50,nowhere\n")
    second = {**GOOD, "transform": "identity", "fixed_points": "f.csv", "moving_points": "m.csv"}
    source = write_list(listed / "pairs.csv", [{**GOOD, "name": "first"}, second])
    out = listed / "out"
    code, stdout, stderr = run_cli(["eval", source, "-o", out, "--label-names", listed / "names.csv"])
    assert (code, stderr) == (0, "")
    assert {p.name for p in out.iterdir()} == {"results.csv", "labels.csv", "boxplot.png", "results.json"}
    assert all(str(p) in stdout for p in out.iterdir())
    assert "RAS mm" in stdout
    found = evaluate(find_pairs(source, None)[0], None, "ras")
    table, labels = (rows_of(out / name) for name in ("results.csv", "labels.csv"))
    record = json.loads((out / "results.json").read_text())
    assert [r["pair"] for r in table] == ["first", "mov_seg_to_fix_seg"]
    scores = {s.label: s for s in found.labels}
    assert float(table[0]["dice"]) == pytest.approx((scores[3].dice + scores[7].dice) / 2)
    assert float(table[0]["sdlogj"]) == pytest.approx(found.numbers["sdlogj"])
    assert (table[0]["landmarks"], table[1]["landmarks"]) == ("", "2")
    assert float(table[1]["tre_mean_mm"]) == pytest.approx((np.sqrt(3) + 1) / 2)
    assert table[1]["dice"] == table[1]["dice_before"] == table[0]["dice_before"]
    assert [(r["pair"], r["label"], r["name"]) for r in labels[:2]] == [
        ("first", "3", "'=all the rest"),
        ("first", "7", "caudate $x$"),
    ]
    assert float(labels[1]["hd95_mm"]) == pytest.approx(scores[7].hd95_mm)
    assert (record["schema"], record["points_space"], record["failures"]) == (1, "ras", [])
    assert record["means"]["dice"]["mean"] == pytest.approx(np.mean([float(r["dice"]) for r in table]))
    assert record["means"]["tre_mean_mm"]["pairs"] == 1
    [first, second] = record["pairs"]
    assert (first["transform"], second["transform"]) == ("given", "identity")
    for role, name in GOOD.items():
        assert first["inputs"][role]["path"] == f"../{name}"
        assert first["inputs"][role]["sha256"] == hashlib.sha256((listed / name).read_bytes()).hexdigest()
    assert [s["dice"] for s in first["per_label"]] == [scores[3].dice, scores[7].dice]
    assert set(record["measures"]) == set(table[0]) - {"pair"}
    assert (out / "boxplot.png").read_bytes().startswith(b"\x89PNG")


def test_bad_pairs_are_listed_and_the_others_evaluated(listed, run_cli, write_nifti, make_grid):
    far = make_grid("RAS", (9, 8, 7), (2, 2, 2), (900.0, 0, 0))
    write_field(listed / "far_Warp.nii.gz", far)
    (listed / "broken_Warp.nii.gz").write_bytes((listed / "t_Warp.nii.gz").read_bytes()[:2000])
    write_points(listed / "one.csv", np.array([[1.0, 2, 3]]))
    write_points(listed / "away.csv", np.array([[1.0, 2000, 3], [0, 999, 0]]))
    (listed / "text.csv").write_text("x,y,z\n1,two,3\n")
    image = write_nifti(listed / "image.nii.gz", np.ones((5, 6, 7), np.float32), np.eye(4))
    points = {"fixed_points": "f.csv", "moving_points": "m.csv", "transform": "t_Warp.nii.gz"}
    bad = {
        "does not exist": {**GOOD, "moving_labels": "nowhere.nii.gz"},
        "holds none of the labels": {**GOOD, "transform": "far_Warp.nii.gz"},
        "truncated": {**GOOD, "transform": "broken_Warp.nii.gz"},
        "not a displacement field": {**GOOD, "transform": image.name},
        "is no transform in the form of itk": {**GOOD, "transform": "f.csv"},
        "come in twos": {"fixed_labels": "fix_seg.nii.gz", "transform": "t_Warp.nii.gz"},
        "nothing to evaluate": {"transform": "identity", "fixed": "image.nii.gz"},
        "one for one": {**points, "moving_points": "one.csv"},
        "is points_frame right?": {**points, "fixed_points": "away.csv"},
        "must be numbers": {**points, "moving_points": "text.csv"},
    }
    source = write_list(listed / "pairs.csv", [*bad.values(), {**GOOD, "name": "good"}])
    code, _, stderr = run_cli(["eval", source, "-o", listed / "out"])
    assert code == 6
    assert stderr.startswith(f"ofg: error: {len(bad)} of {len(bad) + 1} pairs failed")
    assert stderr.count("\n") == 1
    failures = rows_of(listed / "out/failures.csv")
    for said, row in zip(bad, failures, strict=True):
        assert said in row["error"]
        assert "\n" not in row["error"]
    assert [r["pair"] for r in rows_of(listed / "out/results.csv")] == ["good"]
    assert len(json.loads((listed / "out/results.json").read_text())["failures"]) == len(bad)


def test_results_are_kept_unless_overwriting_was_asked(listed, run_cli):
    source, out = write_list(listed / "pairs.csv", [GOOD]), listed / "out"
    out.mkdir()
    (out / "failures.csv").write_text("old")
    code, _, stderr = run_cli(["eval", source, "-o", out])
    assert (code, [p.name for p in out.iterdir()]) == (3, ["failures.csv"])
    assert "--overwrite" in stderr
    assert run_cli(["eval", source, "-o", out, "--overwrite"])[0] == 0
    assert not (out / "failures.csv").exists()  # of the old evaluation
    before = (out / "results.csv").read_bytes()
    assert run_cli(["eval", source, "-o", out])[0] == 3
    assert (out / "results.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "fixed_labels,moving_labels,transform\n", "lists no pair"),
        ("p.csv", "fixed_labels,moving_labels\na.nii,b.nii\n", "no 'transform'"),
        ("p.csv", "fixed_labels,moving_labels,transfrom\na.nii,b.nii,t.mat\n", "'transfrom'"),
        ("p.csv", "transform\na,b\n", "more cells than the header"),
        ("p.json", '{"transform": ""}', "lists no pair"),
        ("p.json", '[{"transform": 3}]', "must be a path"),
        ("p.json", "[", "is not JSON"),
        ("empty/x", None, "holds no sidecar"),
        ("nowhere", None, "does not exist"),
    ],
)
def test_what_is_no_list_is_one_line(tmp_path, run_cli, name, text, said):
    source = tmp_path / name
    if text is None and "/" in name:
        source = source.parent
        source.mkdir()
    elif text is not None:
        source.write_text(text)
    code, _, stderr = run_cli(["eval", source, "-o", tmp_path / "out"])
    assert code == 3, stderr
    assert said in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_list_takes_no_folder_of_labels(listed, run_cli):
    source = write_list(listed / "pairs.csv", [GOOD])
    for folder, code in ((listed, 2), (listed / "nowhere", 3)):
        found, _, stderr = run_cli(["eval", source, "-o", listed / "out", "--labels", folder])
        assert (found, stderr.count("\n")) == (code, 1)
        assert "--labels" in stderr


@pytest.mark.parametrize("text", ["label,name\n0,a\n", "label,name\n1,a\n1,b\n", "x,y\n1,2\n", "label,name\n", "1\n"])
def test_names_that_are_none(listed, run_cli, text):
    (listed / "names.csv").write_text(text)
    source = write_list(listed / "pairs.csv", [GOOD])
    code, _, stderr = run_cli(["eval", source, "-o", listed / "out", "--label-names", listed / "names.csv"])
    assert (code, stderr.count("\n")) == (3, 1)
    assert "names.csv" in stderr


def test_a_folder_of_register_gives_the_figures_of_its_sidecars(
    tmp_path, files, tiny_model, world_labels, write_nifti, run_cli
):
    fixed, moving, *grids = files
    names = tmp_path / "labels"
    names.mkdir()
    for path, grid in zip((fixed, moving), grids, strict=True):
        write_nifti(names / path.name, world_labels(grid), grid.world_from_vox)
    model = tiny_model(init="affine").path
    labels = ["--fixed-labels", names / "fix.nii.gz", "--moving-labels", names / "mov.nii.gz"]
    assert run_cli(["register", fixed, moving, "-m", model, "-o", tmp_path / "reg", *labels])[0] == 0
    assert run_cli(["register", moving, fixed, "-m", model, "-o", tmp_path / "reg"])[0] == 0
    (tmp_path / "reg/other.json").write_text('["not ours"]')
    assert run_cli(["eval", tmp_path / "reg", "-o", tmp_path / "out"])[0] == 0
    there, back = json.loads((tmp_path / "out/results.json").read_text())["pairs"][::-1]
    assert (there["pair"], back["pair"]) == ("mov_to_fix", "fix_to_mov")
    sidecar = json.loads((tmp_path / "reg/mov_to_fix.json").read_text())["metrics"]
    assert there["dice"] == pytest.approx(sidecar["dice_after"])
    for key in ("dice_before", "dice_start", "hd95_before_mm", "hd95_start_mm"):
        assert there[key] == pytest.approx(sidecar[key]), key
    assert there["hd95_mm"] == pytest.approx(sidecar["hd95_mm"])
    assert there["folding_percent"] == pytest.approx(sidecar["folding_percent"])
    assert there["min_jacobian"] == pytest.approx(sidecar["min_jacobian"], abs=1e-5)
    assert there["sdlogj"] > 0.01
    assert "dice" not in back
    assert back["per_label"] == []
    assert run_cli(["eval", tmp_path / "reg", "-o", tmp_path / "both", "--labels", names])[0] == 0
    again = json.loads((tmp_path / "both/results.json").read_text())["pairs"]
    assert [p["labels"] for p in again] == [3, 3]
    assert again[1]["dice"] == there["dice"]


@pytest.mark.parametrize("large", ["fixed_labels", "moving_labels", "transform", "fixed"])
def test_max_voxels(tmp_path, make_grid, write_nifti, run_cli, large):
    """The largest of the files has 24 x 20 x 10 voxels, every other one fewer."""
    big, small = make_grid("RAS", (24, 20, 10), (2, 2, 2)), make_grid("RAS", (20, 18, 8), (2, 2, 2))
    grids = {role: big if role == large else small for role in ("fixed_labels", "moving_labels", "fixed", "transform")}
    row = {role: f"{role}.nii.gz" for role in grids}
    for role, grid in grids.items():
        labels = np.arange(np.prod(grid.shape), dtype=np.int16).reshape(grid.shape) % 3
        write_nifti(tmp_path / row[role], labels, grid.world_from_vox)
    write_field(tmp_path / row["transform"], grids["transform"])
    if large == "fixed":  # read for its grid alone, where the transform has none
        row["transform"] = "identity"
    out = tmp_path / "out"
    line = ["eval", write_list(tmp_path / "pairs.csv", [row]), "-o", out, "--max-voxels"]
    code, _, err = run_cli([*line, 4799])
    assert (code, err.count("\n")) == (6, 1), err
    assert f"{large}.nii.gz has 24x20x10" in err
    assert "more than --max-voxels 4799" in err
    code, _, err = run_cli([*line, -2])
    assert (code, err) == (2, "ofg: error: --max-voxels -2: give 1 or more\n")
    assert run_cli([*line, 4800, "--overwrite"])[0] == 0

"""Which pairs a batch has, how they are called, and which lists, names and options are refused beforehand."""

from __future__ import annotations

import csv
import json

import pytest
from batches import batch_record, statuses

from ofg_deploy.report.folder import entries


def test_list_with_names_and_columns(tmp_path, images, tiny_model, run_cli) -> None:
    (images / "p.csv").write_text("x,y,z\n1,2,3\n")
    rows = [
        ["name", "fixed", "moving", "init", "also", "moving_points"],
        ["one", "images/s0.nii.gz", "images/s1.nii.gz", "", "images/s2.nii.gz; images/s3.nii.gz", "images/p.csv"],
        ["two", "images/s0.nii.gz", "images/s1.nii.gz", "header", "", ""],
    ]
    source = tmp_path / "pairs.csv"
    source.write_text("".join(",".join(row) + "\n" for row in rows))
    code, _, err = run_cli(["register", "--pairs", source, "-m", tiny_model().path, "-o", tmp_path / "out"])
    assert (code, err) == (0, "")
    one, two = (json.loads((tmp_path / f"out/{name}/s1_to_s0.json").read_text()) for name in ("one", "two"))
    assert (one["init"], two["init"]) == ("none", "header")
    assert one["inputs"]["also_2"]["path"] == "../../images/s3.nii.gz"
    assert (tmp_path / "out/one/s1_to_s0_warped_s2.nii.gz").exists()
    assert (tmp_path / "out/one/s1_to_s0_moving_points_in_fixed.csv").exists()
    assert [pair["sidecar"] for pair in batch_record(tmp_path / "out")["pairs"]] == [
        "one/s1_to_s0.json",
        "two/s1_to_s0.json",
    ]
    # ofg eval finds the pairs in their folders
    code, _, err = run_cli(["eval", tmp_path / "out", "-o", tmp_path / "scores"])
    assert (code, err) == (0, "")
    with (tmp_path / "scores/results.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 2


def test_pairs_that_share_a_name_are_told_apart(tmp_path, images, tiny_model, run_cli) -> None:
    """Sessions of one subject, in a folder of its own; and a pair without a name that is called like a folder."""
    (images / "s1.nii.gz").write_bytes(b"no image")
    rows = [("x", 1, 0), ("x", 2, 0), ("s3_to_s0", 4, 0), ("", 3, 0)]
    lines = [f"{name},images/s{fixed}.nii.gz,images/s{moving}.nii.gz\n" for name, moving, fixed in rows]
    (tmp_path / "pairs.csv").write_text("".join(["name,fixed,moving\n", *lines]))
    arguments = ["register", "--pairs", tmp_path / "pairs.csv", "-m", tiny_model().path, "-o", tmp_path / "out"]
    code, _, err = run_cli([*arguments, "--workers", "1"])
    assert code == 6
    assert "1 of 4 pairs failed, the first (x/s1_to_s0)" in err
    told = {"x/s1_to_s0": "failed", "x/s2_to_s0": "done", "s3_to_s0/s4_to_s0": "done", "s3_to_s0": "done"}
    assert statuses(tmp_path / "out") == told
    assert batch_record(tmp_path / "out")["counts"] == {"done": 3, "skipped": 0, "failed": 1, "pending": 0}


def test_report_and_eval_call_pairs_as_their_list_does(tmp_path, images, tiny_model, run_cli) -> None:
    rows = [("x", 1), ("y", 1), ("x", 2), ("s3_to_s0", 4), ("", 3), ("", 1)]
    lines = [f"{name},images/s0.nii.gz,images/s{moving}.nii.gz\n" for name, moving in rows]
    (tmp_path / "pairs.csv").write_text("".join(["name,fixed,moving\n", *lines]))
    out = tmp_path / "out"
    assert run_cli(["register", "--pairs", tmp_path / "pairs.csv", "-m", tiny_model().path, "-o", out])[0] == 0
    names = {"x/s1_to_s0", "x/s2_to_s0", "y", "s3_to_s0/s4_to_s0", "s3_to_s0", "s1_to_s0"}
    assert set(statuses(out)) == names
    assert {entry.name: entry.sidecar for entry in entries(out)} == {
        pair["name"]: out / pair["sidecar"] for pair in batch_record(out)["pairs"]
    }
    assert run_cli(["eval", out, "-o", tmp_path / "eval"])[0] == 0
    with (tmp_path / "eval/results.csv").open() as stream:
        assert {row["pair"] for row in csv.DictReader(stream)} == names
    record = json.loads((tmp_path / "eval/results.json").read_text())
    transforms = {pair["pair"]: pair["inputs"]["transform"]["path"] for pair in record["pairs"]}
    assert transforms["x/s2_to_s0"] == "../out/x/s2_to_s0_Warp.nii.gz"
    assert transforms["y"] == "../out/y/s1_to_s0_Warp.nii.gz"


BAD_LISTS = {
    "column": ("fixed,moving,movingg_labels\na.nii,b.nii,c.nii\n", "movingg_labels"),
    "no moving": ("fixed,moving\na.nii,\n", "row 1 has no moving image"),
    "no column": ("fixed\na.nii\n", "no 'moving' in row 1"),
    "name": ("name,fixed,moving\n../x,a.nii,b.nii\n", "no name for a folder"),
    "same results": ("fixed,moving\nA/a.nii,b.nii\nB/a.nii,b.nii\n", "column 'name'"),
    "same but for letters": ("fixed,moving\na.nii,b.nii\nA.nii,b.nii\n", "two pairs"),
    "same name": ("name,fixed,moving\nx,a.nii,b.nii\nx,a.nii,b.nii\n", "two pairs"),
    "empty": ("fixed,moving\n", "lists no pair"),
    "result": ("name,fixed,moving\nB_to_A_warped.nii.gz,c.nii,d.nii\n,a.nii,b.nii\n", "a result of another, "),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_list_is_refused_before_anything(tmp_path, tiny_model, run_cli, case) -> None:
    text, said = BAD_LISTS[case]
    (tmp_path / "pairs.csv").write_text(text)
    code, _, err = run_cli(
        ["register", "--pairs", tmp_path / "pairs.csv", "-m", tiny_model().path, "-o", tmp_path / "out"]
    )
    assert code == 3
    assert err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_an_image_that_every_pair_shares_must_be_there(tmp_path, images, tiny_model, run_cli, side) -> None:
    """One answer, not one for each of the folder's images."""
    sides = {"fixed": images, "moving": images, side: tmp_path / "typo.nii.gz"}
    arguments = ["register", sides["fixed"], sides["moving"], "-m", tiny_model().path, "-o", tmp_path / "out"]
    code, _, err = run_cli(arguments)
    assert (code, err.count("\n")) == (3, 1), err
    assert f"typo.nii.gz does not exist: it is the {side} image of every pair" in err
    assert not (tmp_path / "out").exists()


def test_names_of_files_beside_the_pairs_are_refused(tmp_path, images, tiny_model, run_cli) -> None:
    """Those that a batch, a part and a report really leave there."""
    (images / "s1.nii.gz").write_bytes(b"no image")
    batch = ["register", "-m", tiny_model().path, "-o", tmp_path / "out", images / "s0.nii.gz", images]
    assert run_cli([*batch, "--report"])[0] == 6
    assert run_cli([*batch, "--resume", "--num-parts", 3, "--part-id", 1])[0] == 6
    beside = {path.name for path in (tmp_path / "out").iterdir() if "_to_" not in path.name}
    assert len(beside) == 6
    for name in (*beside, "Batch.JSON"):
        (tmp_path / "pairs.csv").write_text(f"name,fixed,moving\n{name},a.nii,b.nii\n")
        code, _, err = run_cli([*batch[:4], tmp_path / "new", "--pairs", tmp_path / "pairs.csv"])
        assert (code, err.count("\n")) == (3, 1)
        assert f"row 1: {name!r} is no name for a pair" in err
    assert not (tmp_path / "new").exists()


def test_options_that_make_no_sense(tmp_path, images, tiny_model, run_cli) -> None:
    common = ["-m", tiny_model().path, "-o", tmp_path / "out"]
    one, two = images / "s0.nii.gz", images / "s1.nii.gz"
    (tmp_path / "pairs.csv").write_text(f"fixed,moving\n{one},{two}\n")
    (tmp_path / "start.csv").write_text(f"fixed,moving,init\n{one},{two},rigit\n")
    for arguments, said in (
        ([one], "FIXED and MOVING are needed"),
        ([one, two, "--resume"], "go with a batch"),
        ([one, "--pairs", tmp_path / "pairs.csv"], "the list names all files"),
        ([one, images, "--moving-labels", one], "a folder is needed"),
        ([one, images, "--num-parts", "2", "--part-id", "2"], "numbered 0 to"),
        ([one, images, "--workers", "-1"], "--workers -1: give 1 or more, or 0 for what suits the machine"),
        ([one, images, "--threads", "-1", "--executor", "ray"], "--threads -1: give 1 or more, or 0 for the runtime's"),
        ([one, images, "-o", images / ".." / "images"], "is the folder of the images"),
        (["--pairs", tmp_path / "start.csv"], "start.csv, row 1: --init rigit"),
        ([one, images, "--batch-size", "0"], "--batch-size 0"),
        ([one, images, "--address", "somewhere:1"], "--executor ray"),
    ):
        code, _, err = run_cli(["register", *common, *arguments])
        assert (code, err.count("\n")) == (2, 1), err
        assert said in err
    assert not (tmp_path / "out").exists()

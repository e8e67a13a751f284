"""A batch gives what single commands give, whatever the workers; one bad pair does not stop it."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from batches import batch_record, results, statuses, write_subjects

from ofg_deploy.batch import work
from ofg_deploy.batch.aligners import Aligners
from ofg_deploy.batch.command import Running, register
from ofg_deploy.batch.pairs import from_folders
from ofg_deploy.batch.work import Means
from ofg_deploy.errors import DeviceError, InputError, Interrupted
from ofg_deploy.nifti import load_image
from ofg_deploy.preprocess import Start
from ofg_deploy.report.folder import entries
from ofg_deploy.report.rows import Failure
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.images import Images
from ofg_deploy.serve.job import Job

GAINS = {"gain_moving": (1.5, -0.7, 0.9), "gain_fixed": (-0.4, 1.1, 0.6)}  # the field depends on both images


@pytest.fixture
def images(tmp_path, make_grid, world_image) -> Path:
    return write_subjects(tmp_path / "images", 5, make_grid, world_image)


@pytest.fixture
def atlas(images) -> Path:
    return (images / "s0.nii.gz").rename(images.parent / "atlas.nii.gz")


def test_one_atlas_to_many_gives_what_single_commands_give(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    model = tiny_model(**GAINS).path
    common = ["-m", model, "--threads", "1", "--refine", "2", "--inverse"]
    code, out, err = run_cli(["register", atlas, images, "-o", tmp_path / "batch", *common, "--workers", "3"])
    assert (code, err) == (0, "")
    assert "4 of 4 pairs done" in out
    for moving in sorted(images.iterdir()):
        code, _, _ = run_cli(["register", atlas, moving, "-o", tmp_path / "single", *common])
        assert code == 0
    found, single = results(tmp_path / "batch"), results(tmp_path / "single")
    assert found.keys() == single.keys()
    assert len(found) == 4 * 4  # warped, transform, inverse, sidecar
    assert found == single
    assert len({found[f"s{n}_to_atlas_Warp.nii.gz"] for n in range(1, 5)}) == 4
    assert statuses(tmp_path / "batch") == {f"s{n}_to_atlas": "done" for n in range(1, 5)}
    assert not list(tmp_path.rglob(".partial-*"))


@pytest.mark.parametrize("init", ["none", "rigid"])
def test_same_bits_with_any_workers(tmp_path, images, atlas, tiny_model, run_cli, init) -> None:
    model = tiny_model(**GAINS).path
    for workers in (1, 3):
        arguments = ["register", atlas, images, "-m", model, "-o", tmp_path / str(workers), "--init", init]
        assert run_cli([*arguments, "--workers", workers])[0] == 0
    assert results(tmp_path / "1") == results(tmp_path / "3")
    assert len(results(tmp_path / "1")) == 4 * (3 if init == "none" else 4)


def test_starts_found_in_other_processes_are_those_found_here(images) -> None:
    fixed, moving = (load_image(images / f"s{n}.nii.gz") for n in (0, 1))
    aligners = Aligners(1)
    try:
        there = aligners.align(Start("affine"), fixed, moving)
    finally:
        aligners.close()
    here = Start("affine").moving_from_fixed(fixed, moving)
    assert not np.array_equal(here, np.eye(4))
    np.testing.assert_array_equal(there, here)


def test_two_folders_and_companions(
    tmp_path, images, make_grid, world_image, world_labels, tiny_model, run_cli
) -> None:
    fixed = write_subjects(tmp_path / "fixed", 5, make_grid, lambda grid, _: world_image(grid))
    (tmp_path / "labels").mkdir()
    for path in images.iterdir():
        image = nib.load(path)
        data = (np.asarray(image.dataobj) > 250).astype(np.int16)
        nib.save(nib.Nifti1Image(data, image.affine), tmp_path / "labels" / path.name)
    arguments = ["register", fixed, images, "-m", tiny_model().path, "-o", tmp_path / "out"]
    code, _, err = run_cli([*arguments, "--moving-labels", tmp_path / "labels"])
    assert (code, err) == (0, "")
    for number in range(5):
        record = json.loads((tmp_path / f"out/s{number}_to_s{number}.json").read_text())
        assert record["inputs"]["fixed"]["path"] == str(fixed / f"s{number}.nii.gz")
        assert record["inputs"]["moving"]["path"] == str(images / f"s{number}.nii.gz")
        assert record["inputs"]["moving_labels"]["path"] == str(tmp_path / f"labels/s{number}.nii.gz")
        assert (tmp_path / f"out/s{number}_to_s{number}_warped_labels.nii.gz").exists()
    (fixed / "s3.nii.gz").unlink()
    code, _, err = run_cli([*arguments, "--overwrite"])
    assert code == 3
    assert "1 of the 5 images" in err
    assert "s3.nii.gz" in err


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
    assert one["inputs"]["also_2"]["path"] == str(images / "s3.nii.gz")
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
    assert transforms["x/s2_to_s0"] == str(out / "x/s2_to_s0_Warp.nii.gz")
    assert transforms["y"] == str(out / "y/s1_to_s0_Warp.nii.gz")


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
        ([one, images, "--workers", "-1"], "--workers -1"),
        ([one, images, "-o", images / ".." / "images"], "is the folder of the images"),
        (["--pairs", tmp_path / "start.csv"], "start.csv, row 1: --init rigit"),
        ([one, images, "--batch-size", "0"], "--batch-size 0"),
        ([one, images, "--address", "somewhere:1"], "--executor ray"),
    ):
        code, _, err = run_cli(["register", *common, *arguments])
        assert (code, err.count("\n")) == (2, 1), err
        assert said in err
    assert not (tmp_path / "out").exists()


def test_bad_pairs_are_rows_and_the_rest_goes_on(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    (images / "s2.nii.gz").write_bytes((images / "s2.nii.gz").read_bytes()[:-40])
    nan = nib.load(images / "s3.nii.gz")
    data = np.asarray(nan.dataobj).copy()
    data[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(data, nan.affine), images / "s3.nii.gz")
    arguments = ["register", atlas, images, "-m", tiny_model().path, "-o", tmp_path / "out"]
    code, _, err = run_cli(arguments)
    assert code == 6
    assert "2 of 4 pairs failed" in err
    assert statuses(tmp_path / "out") == {
        "s1_to_atlas": "done",
        "s2_to_atlas": "failed",
        "s3_to_atlas": "failed",
        "s4_to_atlas": "done",
    }
    with (tmp_path / "out/failures.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["pair"] for row in rows] == ["s2_to_atlas", "s3_to_atlas"]
    assert {row["exit_code"] for row in rows} == {"3"}
    assert "truncated" in rows[0]["error"]
    assert "1 NaN" in rows[1]["error"]
    assert not list((tmp_path / "out").glob("s2_*"))
    data[3, 4, 5] = 7.0  # mended, and tried again
    nib.save(nib.Nifti1Image(data, nan.affine), images / "s3.nii.gz")
    assert run_cli([*arguments, "--resume"])[0] == 6
    assert list(statuses(tmp_path / "out").values()) == ["skipped", "failed", "done", "skipped"]
    (images / "s2.nii.gz").unlink()
    assert run_cli([*arguments, "--resume"])[0] == 0
    assert not (tmp_path / "out/failures.csv").exists()


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="any bytes but 0 and / name a file on Linux alone")
def test_names_that_are_no_text_or_several_lines(tmp_path, images, atlas, tiny_model) -> None:
    odd = [os.fsdecode(b"good\xff.nii.gz"), os.fsdecode(b"bad\xff.nii.gz"), "bad\u2028\n,b.nii.gz"]
    for number, name in enumerate(odd, start=1):
        image = (images / f"s{number}.nii.gz").rename(images / name)
        if name.startswith("bad"):
            image.write_bytes(b"no image")
    command = [sys.executable, "-m", "ofg_deploy", "register", atlas, images, "-m", tiny_model().path, "--report", "-o"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([*command, tmp_path / "out"], capture_output=True, check=False, env=environment)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, len(lines)) == (6, 3), lines
    assert "2 of 4 pairs failed" in lines[-1]
    assert os.fsdecode(b"good\xff_to_atlas.json") in os.listdir(tmp_path / "out")  # noqa: PTH208
    found = {entry.name for entry in entries(tmp_path / "out") if isinstance(entry, Failure)}
    assert found == {"bad\\udcff_to_atlas", "bad\u2028\n,b_to_atlas"}
    assert (tmp_path / "out/report.html").exists()


def test_parts_are_disjoint_and_complete(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    arguments = ["register", atlas, images, "-m", tiny_model().path]
    assert run_cli([*arguments, "-o", tmp_path / "whole"])[0] == 0
    seen = []
    for part in range(3):
        code, _, _ = run_cli([*arguments, "-o", tmp_path / "parts", "--num-parts", "3", "--part-id", part])
        assert code == 0
        record = json.loads((tmp_path / f"parts/batch_part-{part}-of-3.json").read_text())
        assert record["part"] == {"id": part, "of": 3}
        seen += [pair["name"] for pair in record["pairs"]]
    assert sorted(seen) == sorted(statuses(tmp_path / "whole"))
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_resume_repeats_nothing_and_refuses_what_is_not_the_same(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    model, out = tiny_model(**GAINS).path, tmp_path / "out"
    arguments = ["register", atlas, images, "-m", model, "-o", out]
    assert run_cli([*arguments, "--num-parts", "2", "--part-id", "0"])[0] == 0  # half of them
    code, _, err = run_cli(arguments)
    assert code == 3
    assert "exists already" in err
    assert "--resume" in err
    times = {path: path.stat().st_mtime_ns for path in out.glob("s*")}
    assert run_cli([*arguments, "--resume"])[0] == 0
    assert list(statuses(out).values()) == ["skipped", "done", "skipped", "done"]
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    before = results(out)

    def refused(*more: object, model: Path = model) -> str:
        code, _, err = run_cli(["register", atlas, images, "-m", model, "-o", out, "--resume", *more])
        assert code == 6
        assert results(out) == before
        return err

    assert "another option" in refused("--fill", "1")
    assert "another start" in refused("--init", "header")
    assert "another model" in refused(model=tiny_model().path)
    image = nib.load(images / "s2.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), images / "s2.nii.gz")
    assert "another moving" in refused()
    assert list(statuses(out).values()) == ["skipped", "failed", "skipped", "skipped"]
    assert run_cli([*arguments, "--resume", "--overwrite"])[0] == 0
    assert list(statuses(out).values()) == ["skipped", "done", "skipped", "skipped"]
    # A set that lost a file, and one without its mark of completeness, are made anew.
    (out / "s1_to_atlas_Warp.nii.gz").unlink()
    (out / "s4_to_atlas.json").unlink()
    assert run_cli([*arguments, "--resume"])[0] == 0
    assert list(statuses(out).values()) == ["done", "skipped", "skipped", "done"]


def test_resume_takes_no_file_of_another_pair(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    """By BIDS the warped images of two that differ in ``desc`` are called alike; within one list that is refused."""
    target = atlas.rename(tmp_path / "tpl-Small_T1w.nii.gz")
    for number, name in ((1, "raw"), (2, "denoised")):
        (tmp_path / name).mkdir()
        (images / f"s{number}.nii.gz").rename(tmp_path / name / f"sub-01_desc-{name}_T1w.nii.gz")

    def run(name: str, *more: object) -> tuple[int, str, str]:
        common = ["-m", tiny_model().path, "-o", tmp_path / "out", "--resume"]
        return run_cli(["register", target, tmp_path / name, *common, *more])

    assert run("raw")[0] == 0
    before = results(tmp_path / "out")
    code, _, err = run("denoised")
    assert code == 6
    assert "desc-warped_T1w.nii.gz belongs to sub-01_from-sub01descrawT1w_to-Small_mode-image_xfm.json" in err
    assert results(tmp_path / "out") == before
    assert run("denoised", "--overwrite")[0] == 0


def test_full_disk_stops_with_one_line(tmp_path, images, atlas, tiny_model, run_cli, monkeypatch) -> None:
    whole = work.finish

    def full(prepared, *rest):
        if prepared.moving.path.name == "s3.nii.gz":
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise InputError(f"cannot write into {tmp_path}: {error.strerror}") from error
        return whole(prepared, *rest)

    monkeypatch.setattr(work, "finish", full)
    arguments = ["register", atlas, images, "-m", tiny_model().path, "-o", tmp_path / "out", "--workers", "1"]
    code, _, err = run_cli(arguments)
    assert (code, err.count("\n")) == (3, 1)
    assert "No space left on device" in err
    assert "--resume goes on" in err
    assert list(statuses(tmp_path / "out").values())[2:] == ["pending", "pending"]
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", [])
    assert run_cli([*arguments, "--resume"])[0] == 0
    assert list(statuses(tmp_path / "out").values()) == ["skipped", "skipped", "done", "done"]


def test_unwritable_folder(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = run_cli(["register", atlas, images, "-m", tiny_model().path, "-o", tmp_path / "file/out"])
    assert (code, err.count("\n")) == (3, 1)
    assert "is not a writable folder" in err


def _means(model: Path, out: Path, workers: int = 2, **more: object) -> Means:
    return Means(model, "cpu", 1, None, "onnxruntime", workers, out=out, **{"batch_size": 1, **more})


def _pairs(atlas: Path, images: Path, out: Path) -> list:
    return from_folders(atlas, images, out, Job, {})


def test_interrupted_batch_leaves_whole_pairs(tmp_path, images, atlas, tiny_model, monkeypatch) -> None:
    whole, calls, threads = work.finish, [], set(threading.enumerate())

    def interrupted(*arguments):
        result = whole(*arguments)
        calls.append(result)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(work, "finish", interrupted)
    out, model = tmp_path / "out", tiny_model().path
    with pytest.raises(Interrupted, match="--resume goes on"):
        register(_pairs(atlas, images, out), out, _means(model, out, 1), Running(workers=1), [])
    assert Interrupted.exit_code == 130
    assert not list(out.rglob(".partial-*"))
    assert statuses(out)["s4_to_atlas"] == "pending"
    assert len(list(out.glob("*_to_atlas.json"))) == 2
    monkeypatch.undo()
    record = register(_pairs(atlas, images, out), out, _means(model, out), Running(resume=True), [])
    assert record.counts() == {"done": 2, "skipped": 2, "failed": 0, "pending": 0}
    assert set(threading.enumerate()) <= threads


class Two:
    """Two engines on the CPU, as there would be for two GPUs; each remembers in which threads it was at once."""

    def __init__(self) -> None:
        self.used: list[int] = []

    def __call__(self, model, device, threads, rebuild, runtime):
        return [self.counted(open_engine(model, "cpu", 1), number) for number in (0, 1)]

    def counted(self, engine, number):
        inner, busy = engine.predict, threading.Lock()

        def predict(moving, fixed):
            assert busy.acquire(blocking=False), "an engine runs one pair at a time"
            try:
                self.used.append(number)
                if len(set(self.used)) < 2:  # hold on to it until the other one has been needed
                    assert meet.wait(20)
                else:
                    meet.set()
                return inner(moving, fixed)
            finally:
                busy.release()

        engine.predict = predict
        return engine


meet = threading.Event()


def test_two_engines_share_the_pairs(tmp_path, images, atlas, tiny_model) -> None:
    meet.clear()
    model, both = tiny_model(**GAINS).path, Two()
    for name, more in (("two", {"open": both}), ("one", {})):
        out = tmp_path / name
        record = register(_pairs(atlas, images, out), out, _means(model, out, 3, **more), Running(), [])
        assert record.counts()["done"] == 4
    assert set(both.used) == {0, 1}
    assert batch_record(tmp_path / "two")["runtime"]["engines"] == 2
    assert results(tmp_path / "two") == results(tmp_path / "one")


def test_lost_device_stops_the_batch(tmp_path, images, atlas, tiny_model) -> None:
    def lost(model, *_):
        engine = open_engine(model, "cpu", 1)

        def predict(moving, fixed):
            raise DeviceError("the GPU is gone")

        engine.predict = predict
        return [engine]

    out = tmp_path / "out"
    with pytest.raises(DeviceError, match=r"the GPU is gone: the batch stopped, 0 of 4 pairs done.*--resume goes on"):
        register(_pairs(atlas, images, out), out, _means(tiny_model().path, out, open=lost), Running(), [])
    assert set(statuses(out).values()) == {"pending"}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtime_that_fails_stops_the_batch(tmp_path, images, atlas, tiny_model, runtime) -> None:
    """What a runtime raises where a GPU is gone or its memory is full is a class of its own, in no tree of ours."""
    pytest.importorskip(runtime)

    class Gone:
        def run(self, *_):
            raise RuntimeError("CUDA failure 999: unknown error\nstack")

        def infer(self, *_, **__):
            self.run()

    def broken(model, *_):
        engine = open_engine(model, "cpu", 1, runtime=runtime)
        engine._session = engine._request = Gone()
        return [engine]

    out = tmp_path / "out"
    with pytest.raises(DeviceError, match=f"{runtime} .* failed on CPU.*: CUDA failure 999.*the batch stopped, 0 of 4"):
        register(_pairs(atlas, images, out), out, _means(tiny_model().path, out, open=broken), Running(), [])
    assert set(statuses(out).values()) == {"pending"}


def test_several_pairs_in_one_run(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    """Elementwise arithmetic has no order of summation: here a batch must not change a bit."""
    model = tiny_model(**GAINS).path
    for size in (1, 3):  # four pairs: a run is filled up
        arguments = ["register", atlas, images, "-m", model, "-o", tmp_path / str(size), "--runtime", "onnxruntime"]
        code, out, _ = run_cli([*arguments, "--batch-size", size])
        assert code == 0
    assert "3 pairs in one run change a field in no bit" in out
    assert results(tmp_path / "3") == results(tmp_path / "1")


def test_resume_takes_what_another_batch_size_or_number_of_threads_made(
    tmp_path, images, atlas, tiny_model, run_cli
) -> None:
    arguments = ["register", atlas, images, "-m", tiny_model(**GAINS).path, "-o", tmp_path / "out"]
    arguments += ["--runtime", "onnxruntime", "--resume"]
    assert run_cli([*arguments, "--batch-size", 2, "--threads", 1, "--num-parts", 2])[0] == 0
    assert run_cli([*arguments, "--batch-size", 3, "--threads", 2])[0] == 0
    assert list(statuses(tmp_path / "out").values()) == ["skipped", "done", "skipped", "done"]


def test_a_batch_size_that_the_workers_cannot_fill_is_said(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    arguments = ["register", atlas, images, "-m", tiny_model().path, "--runtime", "onnxruntime", "--batch-size", 3]
    code, _, err = run_cli([*arguments, "-o", tmp_path / "2", "--workers", 2])
    assert (code, err.count("\n")) == (0, 1)
    assert "--batch-size 3 with --workers 2: every run repeats pairs to be full; give --workers 4" in err
    for workers in (0, 3):
        code, _, err = run_cli([*arguments, "-o", tmp_path / f"other{workers}", "--workers", workers])
        assert (code, err) == (0, "")


def test_engine_of_one_pair_refuses_a_batch_size(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    pytest.importorskip("openvino")
    arguments = ["register", atlas, images, "-m", tiny_model().path, "-o", tmp_path / "out", "--runtime", "openvino"]
    code, _, err = run_cli([*arguments, "--batch-size", 2])
    assert (code, err.count("\n")) == (2, 1)
    assert "one pair at a time" in err


def test_shared_images_are_read_once_and_only_read(images, monkeypatch) -> None:
    path, other = images / "s0.nii.gz", images / "s1.nii.gz"
    reads = []
    monkeypatch.setattr("ofg_deploy.serve.images.load_image", lambda p, most: reads.append(p) or load_image(p, most))
    kept = Images({path})
    first = kept.image(path, 10**6)
    assert kept.image(path, 10**6) is first
    assert reads == [path]
    with pytest.raises(ValueError, match="read-only"):
        first.data[0, 0, 0] = 1
    kept.image(other, 10**6)
    kept.image(other, 10**6)
    assert reads == [path, other, other]
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1] * 2, image.affine), path)
    assert kept.image(path, 10**6).grid.shape != first.grid.shape  # another file under that name
    with pytest.raises(InputError, match="max-voxels"):
        kept.image(path, 10)
    small = Images({path, other}, max_bytes=kept.image(other, 10**6).data.nbytes)
    for _ in range(2):
        small.image(path, 10**6)
        small.image(other, 10**6)
    assert len(small._kept) == 1
    [held] = small._kept
    small._shared |= {images / "s2.nii.gz"}
    data = np.arange(64000, dtype=np.float32).reshape(40, 40, 40)
    nib.save(nib.Nifti1Image(data, image.affine), images / "s2.nii.gz")
    small.image(images / "s2.nii.gz", 10**6)  # larger than all that is kept: nothing makes way for it
    assert list(small._kept) == [held]

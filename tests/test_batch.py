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
from batches import GAINS, means, pairs_of, results, statuses, write_subjects

from ofg_deploy.batch import work
from ofg_deploy.batch.aligners import Aligners
from ofg_deploy.cli.verbs.batch import Running, register
from ofg_deploy.errors import InputError, Interrupted
from ofg_deploy.nifti import load_image
from ofg_deploy.preprocess import Start
from ofg_deploy.report.folder import entries
from ofg_deploy.report.rows import Failure


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
    here = Start("affine").align(fixed, moving)
    assert not np.array_equal(here.moving_from_fixed, np.eye(4))
    np.testing.assert_array_equal(there.moving_from_fixed, here.moving_from_fixed)
    assert there.record() == here.record()


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
        assert record["inputs"]["fixed"]["path"] == f"../fixed/s{number}.nii.gz"
        assert record["inputs"]["moving"]["path"] == f"../images/s{number}.nii.gz"
        assert record["inputs"]["moving_labels"]["path"] == f"../labels/s{number}.nii.gz"
        assert (tmp_path / f"out/s{number}_to_s{number}_warped_labels.nii.gz").exists()
    (fixed / "s3.nii.gz").unlink()
    code, _, err = run_cli([*arguments, "--overwrite"])
    assert code == 3
    assert "1 of the 5 images" in err
    assert "s3.nii.gz" in err


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
    # Nor is one whole that a full or failing disk left empty or short.
    (out / "s1_to_atlas_Warp.nii.gz").write_bytes(b"")
    os.truncate(out / "s2_to_atlas_warped.nii.gz", 100)
    assert run_cli([*arguments, "--resume"])[0] == 0
    assert list(statuses(out).values()) == ["done", "done", "skipped", "skipped"]
    # What somebody changed is not what was registered, and not ours to replace unasked.
    changed = out / "s3_to_atlas_warped.nii.gz"
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    code, _, err = run_cli([*arguments, "--resume"])
    assert (code, "s3_to_atlas_warped.nii.gz is not what was written" in err) == (6, True)
    assert changed.read_bytes() == content
    assert run_cli([*arguments, "--resume", "--overwrite"])[0] == 0
    assert list(statuses(out).values()) == ["skipped", "skipped", "done", "skipped"]


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

    def full(job, *rest):
        if job.moving.name == "s3.nii.gz":
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise InputError(f"cannot write into {tmp_path}: {error.strerror}") from error
        return whole(job, *rest)

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
        register(pairs_of(atlas, images, out), out, means(model, out, 1), Running(workers=1), [])
    assert Interrupted.exit_code == 130
    assert not list(out.rglob(".partial-*"))
    assert statuses(out)["s4_to_atlas"] == "pending"
    assert len(list(out.glob("*_to_atlas.json"))) == 2
    monkeypatch.undo()
    record = register(pairs_of(atlas, images, out), out, means(model, out), Running(resume=True), [])
    assert record.counts() == {"done": 2, "skipped": 2, "failed": 0, "pending": 0}
    assert set(threading.enumerate()) <= threads

"""``--json`` prints one document and nothing else; paths may be texts in the library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ofg_deploy.nifti import load_image
from ofg_deploy.serve.apply import Application, apply
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.register import register


def test_every_verb_prints_one_document(tmp_path, files, tiny_model, world_labels, write_nifti, run_cli):
    fixed, moving, *grids = files
    model = tiny_model().path
    names = [
        write_nifti(tmp_path / f"{n}_seg.nii.gz", world_labels(g), g.world_from_vox)
        for n, g in zip("fm", grids, strict=True)
    ]
    labels = ["--fixed-labels", names[0], "--moving-labels", names[1]]
    out = tmp_path / "out"
    code, printed, _ = run_cli(["register", fixed, moving, "-m", model, "-o", out, *labels, "--json", "--report"])
    assert code == 0
    assert json.loads(printed) == json.loads((out / "mov_to_fix.json").read_text())
    code, printed, _ = run_cli(["report", out, "--json", "--qc-fail", "--limit", "dice_after=0.999"])
    assert code == 7  # the document comes all the same
    [row] = json.loads(printed)
    assert (row["pair"], row["status"]) == ("mov_to_fix", "fail")
    assert row["numbers"]["dice_after"] == json.loads((out / "mov_to_fix.json").read_text())["metrics"]["dice_after"]
    code, printed, _ = run_cli(["eval", out, "-o", tmp_path / "scores", "--json"])
    assert code == 0
    assert json.loads(printed) == json.loads((tmp_path / "scores/results.json").read_text())
    again = tmp_path / "again.nii.gz"
    warp = out / "mov_to_fix_Warp.nii.gz"
    code, printed, _ = run_cli(["apply", moving, "-t", warp, "-r", fixed, "-o", again, "--json", "--quiet"])
    assert code == 0
    assert json.loads(printed) == json.loads((tmp_path / "again.json").read_text())
    code, printed, _ = run_cli(["check", fixed, "--json"])
    assert (code, json.loads(printed)["files"][0]["status"]) == (0, "ok")
    (tmp_path / "pairs.csv").write_text("fixed,moving\nfix.nii.gz,mov.nii.gz\nfix.nii.gz,absent.nii.gz\n")
    batch = tmp_path / "batch"
    code, printed, _ = run_cli(["register", "--pairs", tmp_path / "pairs.csv", "-m", model, "-o", batch, "--json"])
    assert code == 6
    answer, written = json.loads(printed), json.loads((batch / "batch.json").read_text())
    assert {**answer, "seconds": 0, "written": ""} == {**written, "seconds": 0, "written": ""}
    assert answer["counts"]["failed"] == 1
    code, printed, err = run_cli(["eval", tmp_path / "nothing", "-o", tmp_path / "none", "--json"])
    assert (code, printed) == (3, "")
    assert err.startswith("ofg: error: ")


def test_texts_are_paths(tmp_path, files, tiny_model):
    fixed, moving, *_ = map(str, files[:2])
    out = str(tmp_path / "out")
    job = Job(fixed, moving, out, init="header")
    assert job.outputs("header")["warped"] == Path(out) / "mov_to_fix_warped.nii.gz"
    found = register(job, open_engine(str(tiny_model().path), "cpu"))
    warped = load_image(str(found.outputs["warped"]))
    again = str(tmp_path / "again.nii.gz")
    apply(Application((str(found.outputs["transform"]),), again, image=moving, reference=fixed))
    np.testing.assert_allclose(load_image(again).data, warped.data, atol=1e-2)


def test_completion_is_offered(run_cli):
    code, printed, _ = run_cli(["--help"])
    assert code == 0
    assert "--install-completion" in printed

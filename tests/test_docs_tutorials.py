"""The tutorials, followed as they stand in a folder with the example data, on few small heads."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
from documentation import SHORT, blocks, follow, ofg_lines, run_ofg

EXAMPLE = "docs/tutorials/example-data.md"
TRAIN = "docs/tutorials/train-a-network.md"
COHORT = "docs/tutorials/register-a-cohort.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and labels, made by the code of the page."""
    pytest.importorskip("nilearn")
    [(_, code)] = blocks(EXAMPLE, "python")
    small = code.replace("subjects, resolution_mm = 14, 3", "subjects, resolution_mm = 6, 9")
    assert small != code
    folder, before = tmp_path_factory.mktemp("example"), Path.cwd()
    try:
        os.chdir(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of nilearn
            exec(small, {})
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def folder(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(example, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("OFG_MODELS", str(tmp_path / "models"))
    return tmp_path / "here"


def test_register_two_scans(folder, run_cli) -> None:
    run = follow("docs/tutorials/register-two-scans.md", run_cli)
    assert len(run) == 5
    for name in ("warped.nii.gz", "warped_labels.nii.gz", "Warp.nii.gz", "0GenericAffine.mat"):
        assert (folder / f"out/moving_to_fixed_{name}").exists()
    measures = json.loads((folder / "out/moving_to_fixed.json").read_text())["metrics"]
    assert measures["dice_after"] > measures["dice_start"] + 0.02
    assert (folder / "out/report.html").exists()
    assert (folder / "labels_again.nii.gz").exists()


def test_train_a_network_and_what_is_done_with_it(folder, run_cli) -> None:
    # Its own numbers of epochs and steps give way to those of SHORT.
    short = {**SHORT, "register": ["--init", "none", "--threads", "1"]}
    run = follow(TRAIN, run_cli, short, changed=lambda line: line.replace("--epochs 10 --steps-per-epoch 40", ""))
    assert len(run) == 19
    for name in ("guided", "plain", "guided_refined", "none"):
        with (folder / f"scores_{name}/results.csv").open() as stream:
            assert len(list(csv.DictReader(stream))) == 2
    for name, model in (("with", "guided"), ("without", "plain"), ("model", "guided")):
        shutil.copy(f"{model}.onnx", f"{name}.onnx")
    shutil.move("guided", "run")
    assert len(follow("docs/how-to/compare-models.md", run_cli, {"bench": ["--repeats", "2", "--threads", "1"]})) == 2
    assert (folder / "speed.png").exists()


def test_register_a_cohort(folder, run_cli, monkeypatch) -> None:
    first = "ofg register --pairs pairs.csv -o cohort --quality fast"
    short = {**SHORT, "register": ["--init", "header"]}

    def job_array(script: str) -> None:
        """Each task of the array, as SLURM sets its variables."""
        subprocess.run(["bash", "-n", script], check=True)
        text = Path(script).read_text()
        last = int(re.search(r"--array=0-(\d+)", text)[1])
        [line] = ofg_lines(text)
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", str(last + 1))
        for task in range(last + 1):
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
            code, _, err = run_ofg(os.path.expandvars(line), run_cli, short)
            assert code == 0, err

    assert len(follow(COHORT, run_cli, short, codes={first: 6}, cluster=job_array)) == 6
    assert not (folder / "cohort/failures.csv").exists()
    for name in ("cohort", "cohort_slurm"):
        assert len(list((folder / name).glob("sub-*/*_Warp.nii.gz"))) == 5
        with (folder / name / "qc.tsv").open() as stream:
            assert len(list(csv.DictReader(stream, delimiter="\t"))) == 5
    assert (folder / "served/sub-01_to_atlas_warped.nii.gz").exists()

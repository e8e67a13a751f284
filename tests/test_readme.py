"""Every command of the README, run in order in one folder as a reader would, on small images.

They share this process: that each starts in its own is for the tests of the commands to say.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import make_subjects

from ofg_deploy.train.networks import build_network

ROOT = Path(__file__).resolve().parents[1]

# A reader's real run is long: the same command with these behind it is short.
SHORT = {
    "train": [
        "--epochs",
        "1",
        "--steps-per-epoch",
        "2",
        "--ncc-window",
        "5",
        "--max-pairs",
        "2",
        "--init",
        "none",
        "--threads",
        "1",
    ],
    "bench": ["--repeats", "2", "--threads", "1"],
}


def blocks(language: str) -> list[str]:
    every = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in every if name == language]


def commands() -> list[str]:
    return [line.split("  #")[0].strip() for block in blocks("") for line in block.splitlines() if line.strip()]


def test_ofg_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[[list[str]], tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = make_subjects(tmp_path)
    shutil.copy(images / "s0.nii.gz", tmp_path / "fixed.nii.gz")
    shutil.copy(images / "s1.nii.gz", tmp_path / "moving.nii.gz")
    shutil.copy(labels / "s1.nii.gz", tmp_path / "labels.nii.gz")
    (tmp_path / "pairs.csv").write_text(
        "name,fixed,moving,moving_labels\nfirst,fixed.nii.gz,moving.nii.gz,labels.nii.gz\n"
    )
    torch.manual_seed(0)
    torch.save({"state_dict": build_network("voxelmorph", (16, 16, 16)).state_dict()}, tmp_path / "checkpoint.pth.tar")
    run = [line for line in commands() if line.startswith("ofg ")]
    assert len(run) >= 7
    done_before: set[str] = set()
    for line in run:
        arguments = shlex.split(line.replace("160 192 224", "16 32 16"))[1:]
        verb = arguments[0]
        resumes = verb == "train" and "--resume" in arguments
        short = ["--threads", "1"] if resumes else SHORT.get(verb, [])
        if verb == "bench":
            for name in ("with.onnx", "without.onnx"):
                shutil.copy(tmp_path / "model.onnx", tmp_path / name)
        if verb == "register" and verb in done_before:  # the second example writes where the first one did
            short = ["--overwrite"]
        done_before.add(verb)
        code, _, err = run_cli([*arguments, *short])
        assert code == 0, (line, err)
        told = err.splitlines()  # networks of a single step gain nothing, and are said to
        assert all(line.startswith("ofg: warning: ") for line in told), (line, told)
    assert (tmp_path / "out/moving_to_fixed_Warp.nii.gz").exists()
    assert (tmp_path / "out/moving_to_fixed_warped_labels.nii.gz").exists()
    assert (tmp_path / "batch/s1_to_fixed_Warp.nii.gz").exists()
    assert (tmp_path / "listed/first/moving_to_fixed_warped_labels.nii.gz").exists()
    [python] = blocks("python")
    exec(python, {})
    assert (tmp_path / "results/moving_to_fixed_Warp.nii.gz").exists()


def test_other_commands_name_what_exists() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    makefile = (ROOT / "Makefile").read_text()
    others = [line for line in commands() if not line.startswith("ofg ")]
    for line in others:
        if made := re.fullmatch(r"make (\w+)", line):
            assert f"\n{made[1]}:" in makefile
        else:
            if line == f"pip install {project['name']}":
                continue
            extras = re.fullmatch(rf"pip install '{project['name']}\[([\w,]+)\]'", line)
            assert extras, line
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
    assert len(others) == 6


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/architecture.md",
        "docs/conventions.md",
        "docs/batch.md",
        "docs/quality.md",
        "docs/python.md",
        "CHANGELOG.md",
    ],
)
def test_links_and_pictures_exist(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target

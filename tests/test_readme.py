"""README.md: its commands run in order in one folder as a reader would, on small images; what it names exists.

They share this process: that each starts in its own is for the tests of the commands to say.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from documentation import ROOT, blocks, commands, run_ofg
from training_runs import make_subjects

README = "README.md"


def test_ofg_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[[list[str]], tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = make_subjects(tmp_path)
    shutil.copy(images / "s0.nii.gz", tmp_path / "fixed.nii.gz")
    shutil.copy(images / "s1.nii.gz", tmp_path / "moving.nii.gz")
    shutil.copy(labels / "s1.nii.gz", tmp_path / "labels.nii.gz")
    run = [line for line in commands(README) if line.startswith("ofg ")]
    assert len(run) == 6
    for line in run:
        code, _, err = run_ofg(line, run_cli)
        assert code == 0, (line, err)
        # A network of a single step gains nothing, and a warning says so.
        assert all(one.startswith("ofg: warning: ") for one in err.splitlines()), (line, err)
    for name in ("out/moving_to_fixed_Warp.nii.gz", "labels_on_fixed.nii.gz", "with_network/moving_to_fixed.json"):
        assert (tmp_path / name).exists()
    [(_, python)] = blocks(README, "python")
    exec(python, {})
    assert (tmp_path / "results/moving_to_fixed_Warp.nii.gz").exists()


def test_other_commands_name_what_exists() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    makefile = (ROOT / "Makefile").read_text()
    others = [line for line in commands(README) if not line.startswith("ofg ")]
    for line in others:
        if made := re.fullmatch(r"make (\w+)", line):
            assert f"\n{made[1]}:" in makefile
        elif line != f"pip install {project['name']}":
            extras = re.fullmatch(rf"pip install '{project['name']}\[([\w,]+)\]'", line)
            assert extras, line
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
    assert len(others) == 5


def test_it_is_short() -> None:
    assert len((ROOT / README).read_text().split()) < 500

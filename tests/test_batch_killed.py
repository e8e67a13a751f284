"""A batch that is really killed, and goes on: the same files as without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batches import results, statuses, write_subjects

HERE = Path(__file__).parent


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("point", ["half-written", "half-moved"])
def test_killed_and_resumed(tmp_path, make_grid, world_image, tiny_model, run_cli, point) -> None:
    images = write_subjects(tmp_path / "images", 6, make_grid, world_image)
    atlas = (images / "s0.nii.gz").rename(tmp_path / "atlas.nii.gz")
    model = tiny_model(gain_moving=(1.5, -0.7, 0.9)).path

    def arguments(out: str) -> list[str]:
        common = ["--init", "rigid", "--workers", "1", "--threads", "1", "--resume"]
        return ["register", *map(str, (atlas, images, "-m", model, "-o", tmp_path / out)), *common]

    command = [sys.executable, HERE / "killed_batch.py", point, *arguments("killed")]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    killed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "Error" not in killed.stderr
    out = tmp_path / "killed"
    assert len(list(out.glob("*_to_atlas.json"))) == 2
    assert len(list(out.glob(".partial-*/*"))) + len(list(out.glob("s3_*"))) >= 2
    children = [int(pid) for pid in killed.stdout.split() if pid.isdigit()][-1:]
    assert children
    for _ in range(300):  # nobody ends them: they must notice themselves
        if not any(map(alive, children)):
            break
        time.sleep(0.1)
    assert not any(map(alive, children))

    assert run_cli(arguments("killed"))[0] == 0
    assert run_cli(arguments("whole"))[0] == 0
    assert list(statuses(out).values()) == ["skipped", "skipped", "done", "done", "done"]
    assert results(out) == results(tmp_path / "whole")
    assert not list(out.rglob(".partial-*"))

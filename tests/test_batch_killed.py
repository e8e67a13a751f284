"""A batch that is really killed, and goes on: the same files as without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from batches import children, results, statuses, write_subjects

from ofg_deploy.batch.aligners import Aligners
from ofg_deploy.nifti import Volume, load_image
from ofg_deploy.preprocess import Start

HERE = Path(__file__).parent


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_killed(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, HERE / "killed_batch.py", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("point", ["half-written", "half-moved"])
def test_killed_and_resumed(tmp_path, make_grid, world_image, tiny_model, run_cli, point) -> None:
    images = write_subjects(tmp_path / "images", 6, make_grid, world_image)
    atlas = (images / "s0.nii.gz").rename(tmp_path / "atlas.nii.gz")
    model = tiny_model(gain_moving=(1.5, -0.7, 0.9)).path

    def arguments(out: str) -> list[str]:
        common = ["--init", "rigid", "--workers", "1", "--threads", "1", "--resume"]
        return ["register", *map(str, (atlas, images, "-m", model, "-o", tmp_path / out)), *common]

    killed = run_killed("SIGKILL", point, 3, *arguments("killed"))
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


def test_ended_by_a_batch_system_and_resumed(tmp_path, make_grid, world_image, tiny_model, run_cli) -> None:
    """SIGTERM, as from SLURM: the pair that is being written is finished, nothing is left half-written."""
    images = write_subjects(tmp_path / "images", 5, make_grid, world_image)
    atlas = (images / "s0.nii.gz").rename(tmp_path / "atlas.nii.gz")
    common = ["-m", tiny_model().path, "--init", "rigid", "--threads", "1", "-o", tmp_path / "out"]
    line = ["register", atlas, images, *common, "--workers", "1", "--resume"]
    ended = run_killed("SIGTERM", "half-written", 2, *line)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "2 of 4 pairs done, 2 not begun or not finished; the same command with --resume goes on" in ended.stderr
    assert list(statuses(tmp_path / "out").values()) == ["done", "done", "pending", "pending"]
    assert not list(tmp_path.rglob(".partial-*"))
    assert run_cli(line)[0] == 0
    assert list(statuses(tmp_path / "out").values()) == ["skipped", "skipped", "done", "done"]


def test_a_single_registration_ended_leaves_nothing(tmp_path, make_grid, world_image, tiny_model) -> None:
    images = write_subjects(tmp_path / "images", 2, make_grid, world_image)
    pair = ["register", images / "s0.nii.gz", images / "s1.nii.gz", "-m", tiny_model().path, "-o", tmp_path / "out"]
    ended = run_killed("SIGTERM", "half-written", 1, *pair)
    assert (ended.returncode, ended.stderr) == (130, "ofg: error: interrupted\n")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def two_images(tmp_path, make_grid, world_image):
    """Fixed and moving, read."""
    images = write_subjects(tmp_path / "images", 2, make_grid, world_image)
    return tuple(load_image(images / f"s{n}.nii.gz") for n in (0, 1))


def test_a_dead_process_for_starts_is_replaced(two_images) -> None:
    """One that the kernel ended for want of memory, say: those who wait for it and those who come later get theirs."""
    fixed, moving = two_images
    aligners = Aligners(1)
    expected = aligners.align(Start("rigid"), fixed, moving)
    for _ in range(2):
        [process] = children()
        os.kill(process, signal.SIGKILL)
        for _ in range(2):
            found = aligners.align(Start("rigid"), fixed, moving)
            np.testing.assert_array_equal(found.moving_from_fixed, expected.moving_from_fixed)
    aligners.close()
    assert not children()


def deadly(start: Start, fixed: Volume, moving: Volume) -> np.ndarray:
    """Ends its process on one image, as native code does that meets what it was not made for."""
    if moving.path.name.startswith("s2"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return start.align(fixed, moving)


def test_a_pair_that_ends_its_process_is_one_failed_pair(
    tmp_path, make_grid, world_image, tiny_model, run_cli, monkeypatch
) -> None:
    """Not the end of those beside it, nor of those that come after, nor of the batch that is resumed."""
    images = write_subjects(tmp_path / "images", 4, make_grid, world_image)
    atlas = (images / "s0.nii.gz").rename(tmp_path / "atlas.nii.gz")
    line = ["register", atlas, images, "-m", tiny_model().path, "--init", "centre", "--workers", "2"]
    monkeypatch.setattr("ofg_deploy.batch.aligners._align", deadly)
    out = tmp_path / "out"
    for arguments, others in (([], "done"), (["--resume"], "skipped")):
        code, _, stderr = run_cli([*line, "-o", out, *arguments])
        assert code == 6, stderr
        assert list(statuses(out).values()) == [others, "failed", others]
        assert "the process that looked for the affine start died (crashed, SIGSEGV)" in stderr
        assert "s2.nii.gz" in (out / "failures.csv").read_text()
    monkeypatch.undo()
    assert run_cli([*line, "-o", out, "--resume"])[0] == 0
    assert list(statuses(out).values()) == ["skipped", "done", "skipped"]


def test_ctrl_c_is_for_the_batch_alone(two_images) -> None:
    """A terminal sends it to every process, also to one that has just been started."""
    fixed, moving = two_images
    aligners = Aligners(1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(aligners.align, Start("rigid"), fixed, moving)
        while not (started := children()):
            time.sleep(0.01)
        os.kill(started[0], signal.SIGINT)
        here = Start("rigid").align(fixed, moving).moving_from_fixed
        np.testing.assert_array_equal(asked.result().moving_from_fixed, here)
    aligners.close()


def test_nobody_waits_for_a_start_that_is_not_wanted(two_images) -> None:
    fixed, moving = two_images
    aligners = Aligners(1)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(aligners.align, Start("affine"), fixed, moving) for _ in range(2)]
        while not children():
            time.sleep(0.01)
        aligners.close()
        for future in asked:
            with pytest.raises(CancelledError):
                future.result()
    assert not children()
    with pytest.raises(CancelledError):
        aligners.align(Start("affine"), fixed, moving)

"""``--executor ray`` on a cluster of two nodes on this machine: one is killed half-way, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from batches import results, statuses, write_subjects

from ofg_deploy.child import SAFE_PATHS

HERE = Path(__file__).parent


def test_killed_node_loses_nothing(tmp_path, make_grid, world_image, tiny_model, run_cli) -> None:
    pytest.importorskip("ray")
    images = write_subjects(tmp_path / "images", 11, make_grid, world_image)
    atlas = (images / "s0.nii.gz").rename(tmp_path / "atlas.nii.gz")
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_model(gain_moving=(1.5, -0.7, 0.9)).path.read_bytes())
    paths = os.pathsep.join(map(str, (HERE.parent, HERE)))
    user = tmp_path / "user"
    user.mkdir()
    # A worker that looked for modules where the user stands would die of these.
    for name in ("ofg_deploy", "numba", "nibabel") if SAFE_PATHS else ():
        (user / f"{name}.py").write_text("raise SystemExit('planted')")
    done = subprocess.run(
        [sys.executable, "-c", "import ray_batch; ray_batch.main()", atlas, images, model, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,  # a cluster that does not come up
        cwd=user,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "killed after [{'done': 3" in done.stdout
    assert "2 engines" in done.stdout
    assert set(statuses(tmp_path / "out").values()) == {"done"}
    assert len(statuses(tmp_path / "out")) == 10
    worked = [path.read_text().count("pair") for path in tmp_path.glob("ran-*")]
    assert len(worked) == 2
    assert sum(worked) > 10  # what the dead node had begun was begun again
    arguments = ["register", atlas, images, "-m", model, "-o", tmp_path / "here", "--runtime", "onnxruntime"]
    assert run_cli(arguments)[0] == 0
    assert results(tmp_path / "out") == results(tmp_path / "here")
    assert not list(tmp_path.rglob(".partial-*"))


def test_no_cluster_is_one_line(tmp_path, make_grid, world_image, tiny_model, run_cli) -> None:
    pytest.importorskip("ray")
    images = write_subjects(tmp_path / "images", 2, make_grid, world_image)
    arguments = ["register", images / "s0.nii.gz", images, "-m", tiny_model().path, "-o", tmp_path / "out"]
    code, _, err = run_cli([*arguments, "--executor", "ray", "--address", "127.0.0.1:1"])
    assert (code, err.count("\n")) == (5, 1), err
    assert "no Ray cluster at 127.0.0.1:1" in err
    assert not (tmp_path / "out").exists()

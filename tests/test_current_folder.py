"""No process runs code from the folder in which the user happens to stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from batches import write_subjects

ROOT = Path(__file__).parents[1]
# What children import early and late, and what the interpreter looks for by itself.
PLANTED = (
    *("pickle", "json", "struct", "random", "socket", "resource", "multiprocessing", "runpy", "signal", "tempfile"),
    *("numpy", "numba", "SimpleITK", "scipy", "nibabel", "torch", "ofg_deploy", "sitecustomize", "usercustomize"),
)

WAYS = """
import sys
from pathlib import Path

from ofg_deploy.batch.aligners import Aligners
from ofg_deploy.child import Child
from ofg_deploy.nifti import load_image
from ofg_deploy.preprocess import Intensity, NetworkInput, Start
from ofg_deploy.train.dataset import prepare_all
from ofg_deploy.train.pairs import PairFiles
from ofg_deploy.transform.dialects import load_map

def answer(caller):
    caller.send(1)

if __name__ == "__main__":
    images, way = Path(sys.argv[1]), sys.argv[2]
    paths = sorted(images.glob("s*.nii.gz"))
    if way == "transform":
        load_map(images / "composite.h5")
    elif way == "start":
        aligners = Aligners(1)
        aligners.align(Start("centre"), *map(load_image, paths[:2]))
        aligners.close()
    elif way == "preparation":
        expects = NetworkInput((16, 16, 16), (4.0, 4.0, 4.0), Intensity("minmax"), "none", "RAS")
        pairs = [PairFiles(paths[0], path) for path in paths[1:]]
        prepare_all(pairs, expects, images / "cache", 2, lambda: None)
    else:
        import ways

        with Child("of a test", ways.answer) as child:
            assert child.receive() == 1
"""


@pytest.fixture
def here(tmp_path) -> Path:
    """A folder full of modules that tell when they are imported."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in PLANTED:
        code = f"open({str(tmp_path / 'ran')!r}, 'a').write({name + ' '!r})\nraise ImportError('planted')\n"
        (folder / f"{name}.py").write_text(code)
    return folder


def run(here: Path, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *map(str, command)]
    given = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=here, env=given, timeout=120)


@pytest.mark.parametrize("way", ["transform", "start", "preparation", "child"])
def test_children(tmp_path, here, make_grid, world_image, way) -> None:
    if way == "preparation":
        pytest.importorskip("torch", reason="training needs torch")
    images = write_subjects(tmp_path / "images", 4, make_grid, world_image)
    sitk.WriteTransform(sitk.CompositeTransform([sitk.AffineTransform(3)]), str(images / "composite.h5"))
    (tmp_path / "ways.py").write_text(WAYS)
    done = run(here, tmp_path / "ways.py", images, way)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def test_children_of_an_interpreter_without_safe_paths(tmp_path, here, make_grid, world_image) -> None:
    """As Python 3.10, which knows no PYTHONSAFEPATH."""
    code = "import ofg_deploy.child\nofg_deploy.child.SAFE_PATHS = False\n" + WAYS
    (tmp_path / "ways.py").write_text(code)
    images = write_subjects(tmp_path / "images", 2, make_grid, world_image)
    for way in ("start", "child"):
        done = run(here, tmp_path / "ways.py", images, way)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def test_the_module_as_a_command(tmp_path, here) -> None:
    """``python -m`` puts the current folder first; all but the package itself is then found where it is installed."""
    (here / "ofg_deploy.py").unlink()
    done = run(here, "-m", "ofg_deploy", "check", "absent.nii")
    assert "absent.nii" in done.stdout + done.stderr
    imported = (tmp_path / "ran").read_text().split() if (tmp_path / "ran").exists() else []
    assert not set(imported) - {"runpy", "sitecustomize", "usercustomize"}, imported


def test_a_checkout_runs_from_its_own_folder() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ofg_deploy", "--version"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.stdout.startswith("ofg "), done.stderr

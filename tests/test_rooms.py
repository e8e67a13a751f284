"""What may be imported where, and how quickly the command answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ["errors", "outputs", "geometry", "nifti", "field", "affine", "preprocess", "metrics", "model_file", "cli"]
CORE += ["kernels.buffers", "kernels.refine"]
WITHOUT_TORCH = [
    f"{room}.{path.stem}"
    for room in ("serve", "evaluate", "data", "transform", "report")
    for path in (ROOT / f"ofg_deploy/{room}").glob("[a-z]*.py")
]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", [*CORE, *WITHOUT_TORCH])
def test_core_serve_and_evaluate_import_without_heavy_packages(module: str) -> None:
    """Each alone, in a process where none of these can be imported."""
    absent = ("torch", "onnx", "onnxruntime", "SimpleITK", "matplotlib", "numba")
    done = python(f"import sys; [sys.modules.update({{m: None}}) for m in {absent}]; import ofg_deploy.{module}")
    assert done.returncode == 0, done.stderr


def test_commands_of_serve_do_not_load_torch() -> None:
    done = python("import ofg_deploy.serve.register, sys; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_heavy() -> None:
    """What ``ofg --help`` imports beyond typer and rich is our own; the time itself is shown, not asserted."""
    done = python(
        "import sys\nfrom ofg_deploy.cli import main\nsys.argv = ['ofg', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'scipy', 'nibabel', 'torch', 'onnx', 'onnxruntime', 'SimpleITK', 'matplotlib', 'numba'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    assert "register" in done.stdout

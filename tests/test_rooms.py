"""What may be imported where, and how quickly the command answers."""

from __future__ import annotations

import json
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


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


EACH_ALONE = """
import importlib, json, os, sys, traceback

for name in ("torch", "onnx", "onnxruntime", "SimpleITK", "matplotlib", "numba"):
    sys.modules[name] = None
import nibabel, numpy, rich, typer  # what all of them may have, loaded once

found = {}
for module in sys.argv[1:]:
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            importlib.import_module(f"ofg_deploy.{module}")
            os.write(writing, b"imported")
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-4000:])
        os._exit(0)
    os.close(writing)
    found[module] = os.read(reading, 5000).decode()
    os.wait()
    os.close(reading)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, str]:
    """What came of importing each module, alone, where no heavy package can be: "imported", or the traceback."""
    done = python(EACH_ALONE, *CORE, *WITHOUT_TORCH)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("module", [*CORE, *WITHOUT_TORCH])
def test_core_serve_and_evaluate_import_without_heavy_packages(module: str, imported: dict[str, str]) -> None:
    assert imported[module] == "imported"


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

"""A package that is not installed: one line that names the extra, before any work, with exit code 5."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ofg_deploy.extras import PACKAGES

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parents[1]
# A process in which a module cannot be found, as where it was never installed.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {absent!r} else found(name, package)
from ofg_deploy.cli import main
sys.argv = ['ofg', *{arguments!r}]
main()
"""


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [
        (["torch"], ["train", "IMAGES", "-o", "OUT"], "train"),
        (["torch"], ["export", "RUN", "-o", "OUT.onnx"], "train"),
        (["torch"], ["info", "best.pt"], "train"),
        (["onnx"], ["export", "RUN", "-o", "OUT.onnx"], "train"),
        (["onnx"], ["bench", "MODEL", "MODEL"], "train"),
        (["onnxscript"], ["export", "RUN", "-o", "OUT.onnx"], "train"),
        (["lightning_fabric"], ["train", "IMAGES", "-o", "OUT"], "train"),
        (["tensorboard"], ["train", "IMAGES", "-o", "OUT"], "train"),
        (["matplotlib"], ["train", "IMAGES", "-o", "OUT"], "report"),
        (["filelock"], ["train", "-o", "OUT", "--resume"], "train"),
        (
            ["onnxruntime"],
            ["register", "a.nii", "b.nii", "-m", "MODEL", "-o", "OUT", "--runtime", "onnxruntime"],
            "cpu",
        ),
        *((["fastapi"], ["serve", "-m", "none"], "serve"), (["prometheus_client"], ["serve"], "serve")),
        (["openvino"], ["register", "a.nii", "b.nii", "-m", "MODEL", "-o", "OUT", "--runtime", "openvino"], "openvino"),
    ],
)
def test_every_verb_says_which_extra(tmp_path, files, tiny_model, absent, arguments, extra) -> None:
    (tmp_path / "best.pt").write_bytes(b"x")
    (tmp_path / "a.nii").write_bytes(b"x")
    line = [str(tiny_model().path) if word == "MODEL" else word for word in arguments]
    if absent == ["SimpleITK"]:
        line = [str(files[0]) if word == "a.nii" else word for word in line]
    code = WITHOUT.format(absent=absent, arguments=line)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    assert re.fullmatch(r"ofg: error: \S+.* is not installed: pip install .*\n", done.stderr), done.stderr
    assert extra in done.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("OUT")]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")
def test_the_extras_bring_what_they_are_said_to() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brings = {extra: " ".join(packages) for extra, packages in project["optional-dependencies"].items()}
    other = {"python_multipart": "python-multipart", "prometheus_client": "prometheus-client"}
    other |= {"lightning_fabric": "lightning-fabric", "tensorrt_rtx": "tensorrt-rtx", "cuda": "cuda-bindings"}
    for module, (_, extras) in PACKAGES.items():
        package = {"onnx_ir": "onnxscript", **other}.get(module, module)
        for where in [brings[extra] for extra in extras] or [" ".join(project["dependencies"])]:
            assert re.search(rf"(^|\s){re.escape(package)}(-gpu)?>=", where), (module, where)

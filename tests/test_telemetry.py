"""No runtime speaks to anybody or leaves anything in HOME, unless the user has turned that on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What is set on the machine that runs the tests decides nothing here.
OWN = ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
LOCAL = re.compile(r"sa_family=AF_(UNIX|NETLINK|UNSPEC)|inet_addr\(\"127\.|::1")


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in OWN}
    return kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def left_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def can_trace() -> bool:
    found = shutil.which("strace")
    return bool(found) and subprocess.run([found, "-f", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_registering_speaks_to_nobody(tmp_path, files, tiny_model, foreign, runtime) -> None:
    foreign(runtime)
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    code = "from ofg_deploy.cli import main; main()"
    line = [sys.executable, "-c", code, "register", *files[:2], "-m", tiny_model().path, "-o", tmp_path / "out"]
    traced = can_trace()
    watch = ["strace", "-f", "-q", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", trace] if traced else []
    command = [*map(str, (*watch, *line, "--runtime", runtime))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(home), timeout=120)
    assert done.returncode == 0, done.stderr
    assert left_in(home) == []
    if not traced:
        pytest.skip("HOME stayed empty; without strace nobody sees what native code sends")
    assert "exited with 0" in trace.read_text()
    sent = [text for text in trace.read_text().splitlines() if "sa_family" in text and not LOCAL.search(text)]
    assert sent == []


def test_other_uses_leave_nothing_in_home(tmp_path) -> None:
    """Benchmarks import runtimes by another door, and a batch asks whether ONNX Runtime knows CUDA."""
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "from pathlib import Path\n"
        "from ofg_deploy.serve import onnx_runtime\n"
        "onnx_runtime.Path.glob = lambda *_: [1]\n"
        "onnx_runtime.offers_cuda()\n"
        "import onnxruntime; onnxruntime.SessionOptions()\n"
        "from ofg_deploy.bench.candidate import Candidate\n"
        "for runtime in ('onnxruntime', 'openvino'):\n"
        "    Candidate(runtime, Path('x'), '', 'cpu', 1, None, None).import_runtime()\n"
    )
    pytest.importorskip("onnxruntime")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment(home)
    )
    assert done.returncode == 0, done.stderr
    assert left_in(home) == []


@pytest.mark.parametrize("consent", [None, "0", "1"])
def test_openvino_keeps_its_telemetry_where_the_user_agreed(tmp_path, monkeypatch, consent) -> None:
    from ofg_deploy import telemetry

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, telemetry.OPENVINO, raising=False)
    if consent is not None:
        (tmp_path / "intel").mkdir()
        (tmp_path / "intel" / telemetry.OPENVINO).write_text(consent)
    with telemetry.quiet():
        assert (telemetry.OPENVINO in sys.modules) is (consent != "1")
    assert telemetry.OPENVINO not in sys.modules


@pytest.mark.parametrize("given", [None, "0"])
def test_the_environment_stays_as_it_was(monkeypatch, given) -> None:
    """The switch is there while a runtime is imported; one that the user has set is left alone."""
    from ofg_deploy import telemetry

    monkeypatch.delitem(sys.modules, telemetry.ONNX_RUNTIME, raising=False)
    monkeypatch.delenv(telemetry.SWITCH, raising=False)
    if given is not None:
        monkeypatch.setenv(telemetry.SWITCH, given)
    with telemetry.quiet():
        assert os.environ[telemetry.SWITCH] == (given or "1")
    assert os.environ.get(telemetry.SWITCH) == given

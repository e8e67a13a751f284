"""Wheels for a machine without network: cut, copied in parts, joined, checked and installed."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_steps import bundle  # noqa: E402

MOST = 100_000


def fake_wheel(folder: Path, name: str, size: int) -> Path:
    """A wheel that pip installs: one module with so many bytes of noise beside it."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", f"SIZE = {size}\n")
        wheel.writestr(f"{name}/noise", np.random.default_rng(size).bytes(size))
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A bundle of a small wheel, one of three parts and another small one."""
    sizes = {"ofg_fake_small": 30_000, "ofg_fake_large": 250_000, "ofg_fake_last": 20_000}
    wheels = [fake_wheel(tmp_path / "wheels", name, size) for name, size in sizes.items()]
    out = tmp_path / "bundle"
    out.mkdir()
    bundle.split(wheels, out, MOST)
    return out


def test_parts_fit_and_are_the_wheels(made: Path, tmp_path: Path) -> None:
    manifest = json.loads((made / "bundle.json").read_text())
    calls = sorted(path for path in made.glob("call*"))
    assert [sum(f.stat().st_size for f in call.iterdir()) <= MOST for call in calls] == [True] * len(calls)
    assert [len(entry["parts"]) for entry in manifest["wheels"]] == [1, 3, 1]
    for entry in manifest["wheels"]:
        joined = b"".join((made / f"call{p['call']}" / p["file"]).read_bytes() for p in entry["parts"])
        assert joined == (tmp_path / "wheels" / entry["wheel"]).read_bytes()
    lines = "\n".join(bundle.instructions(made, manifest))
    assert all(
        f"call{n}" in lines and p["file"] in lines for e in manifest["wheels"] for p in e["parts"] for n in [p["call"]]
    )


def test_installed_part_by_part(made: Path) -> None:
    """What is whole is installed without its dependencies, what is not waits, and nothing is installed twice."""
    away = made / "call3"
    held = {path.name: path.read_bytes() for path in away.iterdir()}
    for name in held:
        (away / name).unlink()
    first = list(bundle.install(made))
    assert [line.split(": ")[1] for line in first] == ["installed", "waits for call3", "installed"]
    for name, content in held.items():
        (away / name).write_bytes(content)
    second = list(bundle.install(made))
    assert [line.split(": ")[1] for line in second] == ["installed before", "installed", "installed before"]
    script = "import ofg_fake_small, ofg_fake_large, ofg_fake_last; print(ofg_fake_large.SIZE)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(made / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "250000\n", done.stderr
    noise = made / "site/ofg_fake_large/noise"
    assert noise.read_bytes() == np.random.default_rng(250_000).bytes(250_000)
    assert list((made / "joined").iterdir()) == []


def test_a_damaged_part_is_refused(made: Path) -> None:
    path = made / "call2/ofg_fake_large-1.0-py3-none-any.whl.part0"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, bundle.__file__, "--install", made], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"bundle.py: {path} is damaged (sha256 differs): copy call2 again\n"
    assert not (made / "site/ofg_fake_large").exists()


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    """A package of the machine's own is not covered by ours."""
    wheel = fake_wheel(tmp_path / "wheels", "numpy", 10)
    bundle.split([wheel], tmp_path, MOST)
    assert list(bundle.install(tmp_path)) == [f"{wheel.name}: version {np.__version__} is there already and is kept"]
    assert not (tmp_path / "site").exists()


def test_versions_are_those_of_the_constraints() -> None:
    found = bundle.pinned(ROOT / "constraints.txt")
    lines = {line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    same = {line.lower() for line in lines}
    for name in (
        "nibabel",
        "isal",
        "SimpleITK",
        "lightning-fabric",
        "tensorboard",
        "matplotlib",
        "scipy",
        "cuda-bindings",
    ):
        [package] = [p for p in found if p.startswith(f"{name}==")]
        assert package.lower() in same
    rtx = next(line for line in lines if line.startswith("tensorrt-rtx=="))
    assert f"tensorrt-rtx-cu13-libs=={rtx.split('==')[1]}" in found
    assert not any("torch" in package or "triton" in package for package in found), "they are there, and large"

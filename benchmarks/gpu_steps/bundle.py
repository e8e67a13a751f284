"""The packages that a GPU machine without network lacks, as wheels in parts that can be copied there.

    make gpu-bundle                                              # here: download, split, and say what goes over when
    python3 benchmarks/gpu_steps/bundle.py --install build/gpu-bundle   # there: join, check, install

For machines to which only so much can be copied at a time: parts are at most ``--part-mib`` large, and each folder
``callN`` holds what fits into one copy. Installing may be repeated after each copy: what is whole is installed into
``site`` beside the parts (which benchmarks/gpu.py finds), the rest is named and waits. Only the standard library and
pip are needed. Everything comes from the package index that pip is configured for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MANIFEST, SITE = "bundle.json", "site"
PYTHON, ABI = "3.12", "cp312"
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (34, 31, 28, 27, 24, 17, 12, 5)] + [
    "manylinux2014_x86_64",
    "linux_x86_64",
]
# In the order of use: training steps, registration, what a resumed training writes, ONNX Runtime, TensorRT-RTX.
# Versions are those of constraints.txt; named here is what it does not pin.
PACKAGES = (
    *("nibabel", "isal", "filelock", "lightning-fabric", "SimpleITK"),
    *("tensorboard", "tensorboard-data-server", "absl-py", "grpcio", "markdown", "werkzeug"),
    *("matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pyparsing", "python-dateutil", "six", "pillow"),
    "scipy",
    "onnxruntime-gpu==1.31.1",  # built for CUDA 13, as the torch that is there
    *("cuda-bindings", "cuda-pathfinder"),
    *("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13"),
)
SAME_VERSION = {f"tensorrt-rtx-cu13{suffix}": "tensorrt-rtx" for suffix in ("", "-libs", "-bindings")}
MIB = 2**20


@dataclass(frozen=True)
class Part:
    """A piece of a wheel: its file's name, the copy it travels with (from 1), size and digest."""

    file: str
    call: int
    bytes: int
    sha256: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-bundle", help="default: build/gpu-bundle")
    parser.add_argument("--part-mib", type=int, default=56, help="largest part, and most of one copy (default: 56)")
    parser.add_argument("--install", type=Path, metavar="FOLDER", help="join, check and install what is whole there")
    options = parser.parse_args()
    try:
        if options.install:
            for text in install(options.install):
                print(text)
            return
        if options.part_mib < 1:
            raise ValueError(f"--part-mib {options.part_mib} must be at least 1")
        wheels = download(options.out / "wheels", pinned(ROOT / "constraints.txt"))
        manifest = split(wheels, options.out, options.part_mib * MIB)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"bundle.py: {error}")
    shutil.rmtree(options.out / "wheels")
    print("\n".join(instructions(options.out, manifest)))


def pinned(constraints: Path) -> list[str]:
    """The packages with the versions of the constraints, where these have any."""
    text = constraints.read_text()
    versions = {key(name): known for name, known in re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE)}
    found = []
    for package in PACKAGES:
        known = versions.get(key(SAME_VERSION.get(package, package)))
        found.append(f"{package}=={known}" if known and "==" not in package else package)
    return found


def key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def download(folder: Path, packages: Sequence[str]) -> list[Path]:
    """Their wheels for CPython 3.12 on x86-64 Linux, in this order, by pip; without what they depend on.

    Raises:
        CalledProcessError: pip could not.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip"]
    kind = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", "--abi", ABI, "--abi", "abi3"]
    kind += ["--abi", "none", *(word for platform in PLATFORMS for word in ("--platform", platform))]
    found = []
    for number, package in enumerate(packages):
        own = folder / f"{number:02}"
        own.mkdir(parents=True)
        done = subprocess.run(
            [*pip, "download", "--quiet", "--no-deps", *kind, "--dest", own, package], check=False, capture_output=True
        )
        if done.returncode:  # a source package without anything to compile becomes a wheel for any machine
            subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", own, package], check=True)
        [wheel] = own.glob("*.whl")
        if "any" not in wheel.stem and ABI not in wheel.stem and "abi3" not in wheel.stem:
            raise ValueError(f"{wheel.name} is not for CPython {PYTHON}")
        found.append(wheel)
        print(f"{wheel.name}: {wheel.stat().st_size / MIB:.1f} MiB", flush=True)
    return found


def split(wheels: Sequence[Path], out: Path, most: int) -> dict[str, Any]:
    """Cut the wheels into parts, the parts into folders ``callN`` of at most ``most`` bytes; the manifest of it all."""
    for old in out.glob("call*"):
        shutil.rmtree(old)
    entries, room, call = [], most, 1
    for wheel in wheels:
        content = wheel.read_bytes()
        pieces = [content[at : at + most] for at in range(0, len(content), most)]
        parts = []
        for number, piece in enumerate(pieces):
            if len(piece) > room:
                call, room = call + 1, most
            room -= len(piece)
            name = wheel.name if len(pieces) == 1 else f"{wheel.name}.part{number}"
            folder = out / f"call{call}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(piece)
            parts.append(vars(Part(name, call, len(piece), digest(piece))))
        entries.append({"wheel": wheel.name, "bytes": len(content), "sha256": digest(content), "parts": parts})
    manifest = {"schema": 1, "part_bytes": most, "wheels": entries}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def install(folder: Path) -> Iterable[str]:
    """Join and install what is whole; what happened, a line for each wheel.

    Raises:
        ValueError: a part or a wheel that is not what it was here. CalledProcessError: pip could not install it.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    site = folder / SITE
    for entry in manifest["wheels"]:
        done = site / ".installed" / entry["wheel"]
        if done.exists() and done.read_text() == entry["sha256"]:
            yield f"{entry['wheel']}: installed before"
            continue
        if there := version_there(entry["wheel"].split("-")[0]):
            yield f"{entry['wheel']}: version {there} is there already and is kept"
            continue
        paths = [folder / f"call{part['call']}" / part["file"] for part in entry["parts"]]
        missing = [f"call{part['call']}" for part, path in zip(entry["parts"], paths, strict=True) if not path.exists()]
        if missing:
            yield f"{entry['wheel']}: waits for {', '.join(missing)}"
            continue
        joined = folder / "joined" / entry["wheel"]
        joined.parent.mkdir(exist_ok=True)
        whole = hashlib.sha256()
        with joined.open("wb") as stream:
            for part, path in zip(entry["parts"], paths, strict=True):
                content = path.read_bytes()
                if digest(content) != part["sha256"]:
                    raise ValueError(f"{path} is damaged (sha256 differs): copy call{part['call']} again")
                whole.update(content)
                stream.write(content)
        if whole.hexdigest() != entry["sha256"]:
            raise ValueError(f"{joined} is damaged (sha256 differs): make the bundle again")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--no-compile", "--target", str(site), str(joined)], check=True)
        joined.unlink()
        done.parent.mkdir(exist_ok=True)
        done.write_text(entry["sha256"])
        yield f"{entry['wheel']}: installed"


def version_there(package: str) -> str | None:
    """Of a package that this Python has without the bundle."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def instructions(out: Path, manifest: dict[str, Any]) -> list[str]:
    """What goes over when, with the command that uses it."""
    try:
        where: Path = out.resolve().relative_to(ROOT)
    except ValueError:
        where = out
    calls: dict[int, list[str]] = {}
    sizes: dict[int, int] = {}
    for entry in manifest["wheels"]:
        for part in entry["parts"]:
            calls.setdefault(part["call"], []).append(part["file"])
            sizes[part["call"]] = sizes.get(part["call"], 0) + part["bytes"]
    lines = ["", "Copy the repository, and with it, one call after the other:"]
    for call, files in calls.items():
        lines.append(
            f"{call}. {where / MANIFEST} {where / f'call{call}'}   ({sizes[call] / MIB:.1f} MiB: {', '.join(files)})"
        )
        lines.append(f"   python3 benchmarks/gpu_steps/bundle.py --install {where}")
    lines += [
        "Steps that need no more than what is there run in between, so that no copy is waited for in vain:",
        "   before call 1:     python3 benchmarks/gpu.py --out DIR --steps a",
        "   after call 1:      python3 benchmarks/gpu.py --out DIR --steps b",
        "   after the last:    python3 benchmarks/gpu.py --out DIR --steps c,d,e,f --run build/brain",
        "The step of a package that is still missing is a row that says so. The results name the packages that are",
        "there: a call that brings nothing else may be left out, and --install keeps what it finds.",
    ]
    return lines


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()

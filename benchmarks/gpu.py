"""Everything of this project that needs an NVIDIA GPU, in one command that leaves its figures behind.

    python3 benchmarks/gpu.py --out DIR                 # all steps, at most 9 minutes
    python3 benchmarks/gpu.py --out DIR --steps a,b     # some of them; results are appended to those in DIR
    python3 benchmarks/gpu.py --out DIR --dry-run       # the same code in small on a CPU
    python3 benchmarks/gpu.py --out benchmarks/results --merge DIR/gpu.json

For a GPU machine that is rented for minutes and may have no network: nothing is downloaded, no third-party data are
needed, and after every step DIR/gpu.json and DIR/gpu.md are complete. Each step has a process and a time limit of its
own; a package that is missing, an error, a crash or a step over its limit is a row with the reason, and the next step
begins. How to bring the packages that such a machine lacks: benchmarks/GPU.md and ``make gpu-bundle``.

Steps: a inner steps of guidance; b training steps; c ONNX Runtime; d TensorRT-RTX; e ofg register; f training of a
run (``--run``) with the time that is left. Only the standard library is needed to start it.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu_steps.busy import gpu_name
from gpu_steps.plan import ROOT, STEPS, Settings, Step, run_steps
from gpu_steps.report import Report, line

PACKAGES = (
    *("torch", "triton", "numpy", "scipy", "numba", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt-rtx-cu13", "tensorrt", "cuda-bindings", "nibabel", "SimpleITK", "isal", "lightning-fabric"),
    *("tensorboard", "matplotlib", "filelock"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json, gpu.md and the trained checkpoint")
    parser.add_argument("--steps", default="".join(s.letter for s in STEPS), help="letters, as in a,b (default: all)")
    parser.add_argument("--minutes", type=float, default=9.0, help="of all steps together (default: 9)")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU; its rows say cpu")
    parser.add_argument("--run", type=Path, help="run folder of ofg train that step f resumes")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu-work", help="models and images; kept")
    parser.add_argument(
        "--packages", type=Path, default=ROOT / "build/gpu-bundle/site", help="folder of further packages"
    )
    parser.add_argument("--merge", type=Path, nargs="+", help="add the runs of these gpu.json and do nothing else")
    options = parser.parse_args()
    try:
        steps = chosen(options.steps)
        if not options.minutes > 0:
            raise ValueError(f"--minutes {options.minutes:g} must be above 0")
        report = Report(options.out)
        if options.merge:
            for path in options.merge:
                print(f"{path}: {report.merge(path)} new runs")
            return
    except (ValueError, OSError) as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        sys.exit(2)
    packages = options.packages.absolute() if options.packages.is_dir() else None
    report.begin(about(options, packages))
    settings = Settings(
        options.work.absolute(), options.out.absolute(), options.dry_run, absolute(options.run), packages
    )

    def finished(step: Step, rows: list[dict[str, Any]]) -> None:
        report.add(rows)
        for row in rows:
            print(line(row), flush=True)

    run_steps(steps, 60 * options.minutes, settings, finished)
    print(f"results: {report.json} {report.markdown}")


def chosen(letters: str) -> tuple[Step, ...]:
    """In the order of the plan. Raises ValueError for a letter that is no step."""
    wanted = [letter for letter in letters.replace(",", "") if not letter.isspace()]
    known = [step.letter for step in STEPS]
    unknown = [letter for letter in wanted if letter not in known]
    if unknown or not wanted:
        why = f" ({unknown[0]!r} is none)" if unknown else ""
        raise ValueError(f"--steps {letters!r}: give some of {','.join(known)}{why}")
    return tuple(step for step in STEPS if step.letter in wanted)


def about(options: argparse.Namespace, packages: Path | None) -> dict[str, Any]:
    """What every row of this run was measured with."""
    if packages:
        sys.path.insert(0, str(packages))
    where = "cpu (dry run)" if options.dry_run else gpu_name()
    return {
        "began": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": shlex.join(["benchmarks/gpu.py", *sys.argv[1:]]),
        "machine": f"{where}, {os.cpu_count()} cores, {platform.machine()}",
        "dry_run": options.dry_run,
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
    }


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def absolute(path: Path | None) -> Path | None:
    return path.absolute() if path else None


if __name__ == "__main__":
    main()

"""Does guidance cost anything at inference? Every network trained with and without it, exported, and measured.

Each network is trained for a few steps on real hippocampus MRI, once with On-the-Fly Guidance and once unsupervised:
what a graph costs does not depend on how long its weights were trained. Both are exported by ``ofg export`` and
measured as ``ofg bench`` does, on the grid they were trained on; VoxelMorph also at the size of the paper's brains,
which the same file takes. What lies in DIR already is kept.

    python benchmarks/zero_overhead.py --work DIR --json benchmarks/results/zero_overhead.json \
        --plot benchmarks/results/zero_overhead.png --docs docs/results.md
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hippocampus

from ofg_deploy.bench.proof import ProofOptions, prove
from ofg_deploy.geometry import Shape
from ofg_deploy.outputs import to_json

NETWORKS = ("voxelmorph", "lku-net", "vit-v-net", "transmorph")
GUIDANCE = {"ofg": ("--guidance-smoothness", "4"), "none": ("--guidance", "none")}
TRAINED: Shape = (48, 64, 48)
BRAIN: Shape = (160, 192, 224)
MARK = "<!-- zero_overhead -->"
TRAINING_PAIRS, VALIDATION_PAIRS, STEPS = 4, 2, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=hippocampus.DATA)
    parser.add_argument("--work", type=Path, required=True, help="runs and models; kept, so that it resumes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--docs", type=Path, help="page whose table between the two marks is written anew")
    parser.add_argument("--repeats", type=int, default=40, help="turns; a sixth, at least 4, at brain size")
    parser.add_argument("--threads", type=int, default=1, help="on one, waiting for a core is no processor time")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    cases = [(network, TRAINED) for network in NETWORKS] + [("voxelmorph", BRAIN)]
    models = {network: [model(options, network, guidance) for guidance in GUIDANCE] for network in NETWORKS}
    before, start = os.getloadavg(), time.perf_counter()
    rows = []
    for network, grid in cases:
        repeats = options.repeats if grid == TRAINED else max(4, options.repeats // 6)
        found = prove(models[network], ProofOptions(repeats=repeats, threads=options.threads, grid=grid))
        for row in found["latency"]:
            row["model"] = Path(row["model"]).name
            print(
                network,
                grid,
                row["candidate"],
                json.dumps(row["ratio"]),
                json.dumps(row["processor_ratio"]),
                flush=True,
            )
        rows.append(found)
    report = {
        "schema": 1,
        "training": f"{STEPS} steps on {TRAINING_PAIRS} pairs of hippocampus MRI",
        "cores": os.cpu_count(),
        "load_average": {"before": before, "after": os.getloadavg()},
        "seconds": round(time.perf_counter() - start, 1),
        "cases": rows,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(to_json(report))
    if options.plot:
        draw(report, options.plot)
    if options.docs:
        before, _, after = options.docs.read_text().split(MARK)
        options.docs.write_text(f"{before}{MARK}\n{table(report)}\n{MARK}{after}")
    print(table(report))


def table(report: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        "| network | grid | nodes | parameters | GFLOP | processor time, without / with | the same file again "
        "| clock | peak memory (MB) | with 5 steps on the pair |",
        "| --- " * 10 + "|",
    ]
    for case in report["cases"]:
        ratios = [interval(ratio_of(case, name)) for name in ("model 2", "model 1 again")]
        rows = {row["candidate"]: row for row in case["latency"]}
        peaks = [f"{rows[name]['peak_bytes'] / 1e6:.0f}" for name in ("model 2", "model 1")]
        cells = [
            *(case["network"], "x".join(map(str, case["grid"])), f"{case['nodes']}", f"{case['parameters']:,}"),
            *(f"{case['flops']['products'] / 1e9:.1f}", *ratios, f"{rows['model 2']['ratio']['median']:.3f}"),
            *(" / ".join(peaks), f"{ratio_of(case, None)['median']:.2f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"


def model(options: argparse.Namespace, network: str, guidance: str) -> Path:
    """The exported model of one training."""
    run = options.work / f"{network}-{guidance}"
    out = options.work / f"{run.name}.onnx"
    if not out.exists():
        if not (run / "best.pt").exists():
            train(options, network, guidance, run)
        ofg("export", run, "-o", out)
    return out


def train(options: argparse.Namespace, network: str, guidance: str, run: Path) -> None:
    pairs = options.work / "pairs.csv"
    if not pairs.exists():
        write_pairs(pairs, options.data)
    ofg(
        *("train", pairs, "-o", run, "--cache", options.work / "cache", "--network", network, *GUIDANCE[guidance]),
        *("--grid", *TRAINED, "--spacing", 1, 1, 1, "--init", "affine", "--epochs", 1, "--steps-per-epoch", STEPS),
        *("--threads", options.threads),
    )


def write_pairs(path: Path, data: Path) -> None:
    given = hippocampus.splits(data)
    counts = {"training": TRAINING_PAIRS, "validation": VALIDATION_PAIRS}
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["fixed", "moving", "fixed_labels", "moving_labels", "split"])
        for split, count in counts.items():
            for pair in zip(given[split][:count], given[split][count : 2 * count], strict=True):
                files = [data / kind / f"{name}.nii.gz" for kind in ("images", "labels") for name in pair]
                writer.writerow([*files, split])


def ofg(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "ofg_deploy", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def draw(report: dict[str, Any], path: Path) -> None:
    """Ratio to the guided network: of the unsupervised one, of itself again, and of optimising on the pair."""
    from matplotlib.figure import Figure

    names = [f"{case['network']}\n{'x'.join(map(str, case['grid']))}" for case in report["cases"]]
    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    kinds = {"model 2": "without guidance", "model 1 again": "same file again"}
    for shift, (candidate, label) in zip((-0.12, 0.12), kinds.items(), strict=True):
        found = [ratio_of(case, candidate) for case in report["cases"]]
        at = [n + shift for n in range(len(names))]
        median = [r["median"] for r in found]
        reach = [[r["median"] - r["low"] for r in found], [r["high"] - r["median"] for r in found]]
        left.errorbar(median, at, xerr=reach, fmt="o", capsize=3, label=label)
    left.axvspan(0.98, 1.02, color="grey", alpha=0.2)
    left.axvline(1, color="grey", linewidth=0.8)
    left.set(xlabel="processor time, ratio to the guided network", yticks=range(len(names)), yticklabels=names)
    left.legend(fontsize="small")
    right.barh(range(len(names)), [ratio_of(case, None)["median"] for case in report["cases"]], height=0.5)
    right.axvline(1, color="grey", linewidth=0.8)
    right.set(xlabel="the same with 5 optimiser steps on the pair")
    left.invert_yaxis()
    figure.savefig(path, dpi=130, format="png")


def ratio_of(case: dict[str, Any], candidate: str | None) -> dict[str, float]:
    """Of processor time; None is the candidate that optimises."""
    [found] = [
        row["processor_ratio"]
        for row in case["latency"]
        if (bool(row["steps_on_the_pair"]) if candidate is None else row["candidate"] == candidate)
    ]
    return found


if __name__ == "__main__":
    main()

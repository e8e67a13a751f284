"""Every network, with and without guidance, at the same wall-clock budget and the same seeds, on real hippocampus MRI.

The network's grid has 1.5 mm voxels, so that a short budget buys some learning; Dice is that of the label maps on their
own grid (1 mm), folding and SDlogJ are those of the predicted field. Each (network, guidance) gets the number of steps
that fit into the budget, by the processor time of a step on one thread; the runs themselves may then share the machine
without changing their result. The 40 test pairs (splits of ../shared/data/hippocampus) are touched once, after all
training ended. A killed benchmark continues where it stopped.

    python benchmarks/networks.py --work DIR --json benchmarks/results/networks.json --budget 90
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hippocampus
import numpy as np
import torch

from ofg_deploy import metrics
from ofg_deploy.field import jacobian_determinant, total_displacement_mm, warp
from ofg_deploy.nifti import load_labels
from ofg_deploy.outputs import to_json, write_bytes
from ofg_deploy.train.batches import TrainingFiles
from ofg_deploy.train.checkpoint import load_checkpoint, load_weights
from ofg_deploy.train.dataset import load_cached, prepare_all
from ofg_deploy.train.devices import launch
from ofg_deploy.train.loop import Trainer
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.pairs import PairFiles
from ofg_deploy.train.run import Run
from ofg_deploy.train.validation import predict

# Learning rates by family, the same with and without guidance.
NETWORKS = {"voxelmorph": 1e-3, "lku-net": 1e-3, "vit-v-net": 4e-4, "transmorph": 4e-4}
GUIDANCE = {
    "none": ("--guidance", "none"),
    "ofg": ("--recipe", "paper", "--guidance-smoothness", 4),
    "ofg-greedy": (
        *("--guidance-optimiser", "greedy", "--guidance-steps", 3, "--ncc-window", 5),
        *("--guidance-start", 0, "--guidance-sobolev", 0, "--guidance-field-sigma", 0.7),
        *("--guidance-step-voxels", 1, "--guidance-step-limit", 1e9),
    ),
}
# Greedy guidance is not of the paper: tried on the smallest network alone.
COMPARED = [(n, g) for n in NETWORKS for g in GUIDANCE if g != "ofg-greedy" or n == "voxelmorph"]
EPOCHS = 10


@dataclass(frozen=True)
class Cell:
    """One training of the comparison."""

    network: str
    guidance: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.network}-{self.guidance}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=hippocampus.DATA)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="prepared pairs; WORK/cache if absent")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=90, help="seconds of training on one idle thread")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at once, one thread each")
    options = parser.parse_args()
    options.cache = options.cache or options.work / "cache"
    options.work.mkdir(parents=True, exist_ok=True)

    pairs = options.work / "pairs.csv"
    if not pairs.exists():
        hippocampus.write_pairs(pairs, options.data, 200)
    seconds = calibrate(options, pairs)
    steps = {name: int(options.budget / s) for name, s in seconds.items()}
    cells = [Cell(n, g, s) for s in range(options.seeds) for n, g in COMPARED]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda cell: train(options, pairs, cell, steps[f"{cell.network} {cell.guidance}"]), cells))
    torch.set_num_threads(1)
    config = Run(options.work / cells[0].name).read()[0]
    prepare_all(test_pairs(options), config.expects, options.cache, options.jobs, lambda: None)
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = dict(zip(cells, pool.map(lambda cell: evaluate(options, cell), cells), strict=True))
    table = {
        f"{network} {guidance}": summary([rows[c] for c in cells if (c.network, c.guidance) == (network, guidance)])
        for network, guidance in COMPARED
    }
    for name, row in table.items():
        row |= {"steps": steps[name] // EPOCHS * EPOCHS, "seconds_per_step": seconds[name]}
    report = {
        "budget_seconds": options.budget,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, one thread a run",
        "learning_rates": NETWORKS,
        "guidance_options": GUIDANCE,
        "test_pairs": len(hippocampus.splits(options.data)["test_pairs"]),
        "affine_only": affine_only(options),
        "table": table,
        "runs": {cell.name: row for cell, row in rows.items()},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(to_json(report))
    print(json.dumps(table, indent=1))


def arguments(options: argparse.Namespace, pairs: Path, cell: Cell, steps: int) -> list[str]:
    given: list[object] = ["train", pairs, "-o", options.work / cell.name, "--cache", options.cache]
    given += ["--grid", 32, 48, 32, "--spacing", 1.5, 1.5, 1.5, "--init", "affine", "--network", cell.network]
    given += [*GUIDANCE[cell.guidance], "--lr", NETWORKS[cell.network]]
    given += ["--seed", cell.seed, "--epochs", EPOCHS, "--steps-per-epoch", max(1, steps // EPOCHS)]
    given += ["--validate-every", EPOCHS, "--picture-every", EPOCHS, "--threads", 1]
    return [str(g) for g in given]


def calibrate(options: argparse.Namespace, pairs: Path) -> dict[str, float]:
    """Seconds of a step by (network, guidance), timed in turn; measured once and kept."""
    record = options.work / "seconds_per_step.json"
    if record.exists():
        found: dict[str, float] = json.loads(record.read_text())
        return found
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    for network in NETWORKS:
        trainers = {g: calibration_trainer(options, pairs, Cell(n, g, 0)) for n, g in COMPARED if n == network}
        rounds = [{g: step_seconds(trainer) for g, trainer in trainers.items()} for _ in range(10)]  # in turn
        seconds |= {f"{network} {g}": round(min(r[g] for r in rounds), 4) for g in trainers}
    print("seconds a step:", seconds, flush=True)
    write_bytes(record, to_json(seconds).encode())
    return seconds


def calibration_trainer(options: argparse.Namespace, pairs: Path, cell: Cell) -> Trainer:
    run = Run(options.work / f"calibrate-{cell.name}")
    if not run.config.exists():  # an epoch of one step writes the run folder
        short = arguments(options, pairs, cell, 1)
        short[short.index("-o") + 1] = str(run.folder)
        short[short.index("--epochs") + 1] = "1"
        subprocess.run([sys.executable, "-m", "ofg_deploy", *short], check=True, stdout=subprocess.DEVNULL)
    config, files, cache = run.read()
    prepared = prepare_all(list(files.training), config.expects, cache, 1, lambda: None)
    run.last.unlink(missing_ok=True)
    unvalidated = replace(files, validation=())
    return Trainer(run, config, unvalidated, TrainingFiles(prepared, []), [], launch("cpu", "fp32"))


def step_seconds(trainer: Trainer) -> float:
    """Processor time of a step: on one thread that is its wall-clock on an idle machine, whoever else computes."""
    start = time.process_time()
    trainer._epoch(0, lambda step, loss: None)  # of a single step: reading, both passes, update
    return time.process_time() - start


def train(options: argparse.Namespace, pairs: Path, cell: Cell, steps: int) -> None:
    run = Run(options.work / cell.name)
    if run.metrics.exists() and len(run.metrics.read_text().splitlines()) == EPOCHS + 1:
        return
    command = arguments(options, pairs, cell, steps)
    if run.config.exists():
        command = ["train", "-o", str(run.folder), "--resume", "--threads", "1"]
    start = time.perf_counter()
    with (options.work / f"{cell.name}.log").open("a") as log:
        subprocess.run([sys.executable, "-m", "ofg_deploy", *command], check=True, stdout=log)
    print(f"{cell.name}: {time.perf_counter() - start:.0f} s", flush=True)


def test_pairs(options: argparse.Namespace) -> list[PairFiles]:
    folder = {kind: options.data / kind for kind in ("images", "labels")}
    return [
        PairFiles(*(folder[kind] / f"{pair[role]}.nii.gz" for kind in folder for role in ("fixed", "moving")))
        for pair in hippocampus.splits(options.data)["test_pairs"]
    ]


def evaluate(options: argparse.Namespace, cell: Cell) -> dict[str, float]:
    """Means over the test pairs."""
    run = Run(options.work / cell.name)
    config, _, cache = run.read()
    network = build_network(config.network, config.expects.shape)
    load_weights(network, load_checkpoint(run.best).state, run.best)
    return score(options, config, cache, lambda pair: predict(network, pair.moving, pair.fixed, "cpu"))


def affine_only(options: argparse.Namespace) -> dict[str, float]:
    config, _, cache = Run(options.work / Cell("voxelmorph", "none", 0).name).read()
    return score(options, config, cache, lambda pair: np.zeros((3, *pair.grid.shape), np.float32))


def score(options: argparse.Namespace, config: Any, cache: Path, field_of: Any) -> dict[str, float]:
    rows = []
    files = test_pairs(options)
    for pair_files, file in zip(files, prepare_all(files, config.expects, cache, 1, lambda: None), strict=True):
        pair = load_cached(file)
        fixed, moving = load_labels(pair_files.fixed_labels), load_labels(pair_files.moving_labels)
        field = field_of(pair)
        displacement = total_displacement_mm(field, pair.grid, fixed.grid, pair.moving_from_fixed)
        warped = warp(moving.data, moving.grid, fixed.grid, displacement, order=0)
        determinant = jacobian_determinant(field)
        rows.append(
            {
                "dice": metrics.mean(metrics.dice(fixed.data, warped)) or 0.0,
                "folding_percent": metrics.folding_percent(determinant),
                "sdlogj": metrics.sdlogj(determinant),
            }
        )
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean and standard deviation over seeds."""
    both = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        both[key], both[f"{key}_sd"] = round(float(np.mean(values)), 5), round(float(np.std(values, ddof=1)), 5)
    return both


if __name__ == "__main__":
    main()

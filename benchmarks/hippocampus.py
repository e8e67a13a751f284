"""Train on real hippocampus MRI, export, register the held-out test pairs, and say what users would pick instead.

Data: Medical Segmentation Decathlon Task04 as laid out in ../shared/data/hippocampus (135 training, 20 validation and
40 test subjects, 40 test pairs). Everything runs through the public commands; the test pairs are touched once, after
training ended. Settings were chosen on validation pairs only.

    python benchmarks/hippocampus.py --work DIR --json benchmarks/results/hippocampus.json
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy import metrics, nifti
from ofg_deploy.affine import align
from ofg_deploy.field import resample
from ofg_deploy.outputs import to_json

DATA = Path(__file__).resolve().parents[2] / "shared/data/hippocampus"
FIRST = 12  # the pairs on which the alternatives of other people were measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, required=True, help="run folder, cache, outputs; kept, so that it resumes")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--guidance", choices=["ofg", "none"], default="ofg")
    parser.add_argument("--guidance-steps", default="5")
    parser.add_argument("--guidance-smoothness", default="4")
    parser.add_argument("--smoothness", help="outer diffusion weight; the published one if absent")
    parser.add_argument("--lr", default="1e-3")
    parser.add_argument("--epochs", default="40")
    parser.add_argument("--steps-per-epoch", default="100")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--threads", default="0", help="of training; registration always uses what a user would get")
    parser.add_argument("--train-only", action="store_true", help="stop before the test pairs (for choosing settings)")
    options = parser.parse_args()

    seconds = train(options)
    if options.train_only:
        return
    model = options.work / "model.onnx"
    ofg("export", options.work / "run", "-o", model, "--overwrite")
    pairs = [(p["fixed"], p["moving"]) for p in splits(options.data)["test_pairs"]]
    rows = {
        "header alone": evaluate(options.data, pairs, lambda fixed, moving: np.eye(4)),
        "our affine start": evaluate(options.data, pairs, lambda *pair: align(*pair).moving_from_fixed),
        f"ofg register ({options.guidance})": [register(options, model, *pair) for pair in pairs],
        "ANTsPy affine": ants_rows(options.data, pairs, "Affine"),
        "ANTsPy SyN": ants_rows(options.data, pairs, "SyN"),
    }
    report = {
        "options": {name: value for name, value in vars(options).items() if name not in ("data", "work", "json")},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch threads {options.threads}",
        "training_seconds": seconds,
        "run_config": json.loads((options.work / "run/config.json").read_text())["config"],
        "best_validation": best_epoch(options.work / "run/metrics.csv"),
        "all_40_test_pairs": {name: summary(r) for name, r in rows.items() if r},
        f"first_{FIRST}_test_pairs": {name: summary(r[:FIRST]) for name, r in rows.items() if r},
        "per_pair_dice": {name: [round(r["dice"], 4) for r in found] for name, found in rows.items() if found},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(to_json(report))
    print(json.dumps(report[f"first_{FIRST}_test_pairs"], indent=1))
    print(json.dumps(report["all_40_test_pairs"], indent=1))


def splits(data: Path) -> dict[str, Any]:
    return json.loads((data / "splits.json").read_text())


def train(options: argparse.Namespace) -> float:
    """Start or resume the run; seconds of all its epochs."""
    run = options.work / "run"
    if not (run / "config.json").exists():
        options.work.mkdir(parents=True, exist_ok=True)
        write_pairs(options.work / "pairs.csv", options.data, options.pairs)
        guided = ["--recipe", "paper", "--guidance-steps", options.guidance_steps]
        guided += ["--guidance-smoothness", options.guidance_smoothness]
        ofg(
            *("train", options.work / "pairs.csv", "-o", run, "--cache", options.work / "cache"),
            *("--grid", 48, 64, 48, "--spacing", 1, 1, 1, "--init", "affine", "--guidance", options.guidance),
            *(guided if options.guidance == "ofg" else []),
            *(["--smoothness", options.smoothness] if options.smoothness else []),
            *("--lr", options.lr, "--epochs", options.epochs, "--steps-per-epoch", options.steps_per_epoch),
            *("--validate-every", 4, "--threads", options.threads),
        )
    else:
        ofg("train", "-o", run, "--resume", "--threads", options.threads)
    with (run / "metrics.csv").open() as stream:
        return round(sum(float(row["seconds"]) for row in csv.DictReader(stream)), 1)


def write_pairs(path: Path, data: Path, count: int) -> None:
    """Random training pairs, and every validation subject once as fixed image."""
    given = splits(data)
    every = [(a, b) for a in given["training"] for b in given["training"] if a != b]
    rows = [(*pair, "training") for pair in random.Random(0).sample(every, count)]
    held = given["validation"]
    rows += [(held[i], held[(i + 7) % len(held)], "validation") for i in range(len(held))]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["fixed", "moving", "fixed_labels", "moving_labels", "split"])
        for a, b, split in rows:
            images = [data / "images" / f"{name}.nii.gz" for name in (a, b)]
            labels = [data / "labels" / f"{name}.nii.gz" for name in (a, b)]
            writer.writerow([*images, *labels, split])


def best_epoch(path: Path) -> dict[str, str]:
    with path.open() as stream:
        return max((row for row in csv.DictReader(stream) if row["val_dice"]), key=lambda row: float(row["val_dice"]))


def ofg(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "ofg_deploy", *map(str, arguments)], check=True)


def register(options: argparse.Namespace, model: Path, fixed: str, moving: str) -> dict[str, float]:
    """One pair through the command; its own seconds exclude the start of Python, as for the alternatives."""
    out, labels = options.work / "test", options.data / "labels"
    images = [options.data / "images" / f"{name}.nii.gz" for name in (fixed, moving)]
    ofg(
        *("register", *images, "-m", model, "-o", out, "--overwrite"),
        *("--fixed-labels", labels / f"{fixed}.nii.gz", "--moving-labels", labels / f"{moving}.nii.gz"),
    )
    sidecar = json.loads((out / f"{moving}_to_{fixed}.json").read_text())
    found = sidecar["metrics"]
    return {
        "dice": found["dice_after"],
        "hd95_mm": found["hd95_mm"],
        "folding_percent": found["network_folding_percent"],
        "sdlogj": found["network_sdlogj"],
        "seconds": sum(sidecar["seconds"].values()),
    }


def evaluate(
    data: Path, pairs: list[tuple[str, str]], method: Callable[[nifti.Volume, nifti.Volume], Any]
) -> list[dict[str, float]]:
    """Rows of a method that gives one (4, 4) moving_from_fixed."""
    rows = []
    for names in pairs:
        fixed, moving = (nifti.load_image(data / "images" / f"{name}.nii.gz") for name in names)
        a, b = (nifti.load_labels(data / "labels" / f"{name}.nii.gz") for name in names)
        start = time.perf_counter()
        matrix = method(fixed, moving)
        seconds = time.perf_counter() - start
        rows.append(score(a, resample(b.data, b.grid, a.grid, matrix, order=0), seconds))
    return rows


def ants_rows(data: Path, pairs: list[tuple[str, str]], transform: str) -> list[dict[str, float]]:
    """What people use today, with its defaults; empty without the antspyx package."""
    try:
        import ants
    except ImportError:
        return []
    rows = []
    for fixed, moving in pairs:
        images = [ants.image_read(str(data / "images" / f"{name}.nii.gz")) for name in (fixed, moving)]
        labels = ants.image_read(str(data / "labels" / f"{moving}.nii.gz"))
        start = time.perf_counter()
        found = ants.registration(images[0], images[1], transform)
        seconds = time.perf_counter() - start
        warped = ants.apply_transforms(images[0], labels, found["fwdtransforms"], interpolator="nearestNeighbor")
        truth = nifti.load_labels(data / "labels" / f"{fixed}.nii.gz")
        rows.append(score(truth, np.rint(warped.numpy()).astype(np.int32), seconds))
    return rows


def score(truth: nifti.Volume, warped: Any, seconds: float) -> dict[str, float]:
    distances = metrics.hd95_mm(truth.data, warped, truth.grid.spacing_mm)
    return {
        "dice": metrics.mean(metrics.dice(truth.data, warped)) or 0.0,
        "hd95_mm": metrics.mean(distances) if distances else float("nan"),
        "seconds": seconds,
    }


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    means = {key: round(float(np.nanmean([row[key] for row in rows])), 4) for key in rows[0]}
    return {**means, "dice_sd": round(float(np.std([row["dice"] for row in rows])), 4), "pairs": len(rows)}


if __name__ == "__main__":
    main()

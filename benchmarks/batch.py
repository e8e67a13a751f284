"""Batch throughput as a share of what the slowest stage alone allows, and memory over a thousand pairs.

    python benchmarks/batch.py    # writes benchmarks/results/batch.json

The engine is a stand-in that waits, as for a GPU, and hands out a smooth field; everything else is real. It takes as
long as all other stages together take for one pair at a time, so it is the slowest stage, and one pair after the other
would reach a share of a half. The share is (pairs x engine time) / wall-clock.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from ofg_deploy.batch.pairs import from_folders
from ofg_deploy.batch.record import Record
from ofg_deploy.batch.work import Means
from ofg_deploy.cli.verbs.batch import Running, cores, register
from ofg_deploy.model_file import Contract
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.serve.job import Job

RESULTS = Path(__file__).parent / "results" / "batch.json"


class Waiting:
    """An engine that takes ``seconds`` and no processor."""

    model_sha256, runtime, provider = "0" * 64, "stand-in", "CPU (waits)"

    def __init__(self, shape: tuple[int, int, int], seconds: float) -> None:
        expects = NetworkInput(shape, (1.0, 1.0, 1.0), Intensity("minmax"), "none")
        self.contract = Contract("stand-in", expects, divisor=2, weights_sha256="0" * 64, training={})
        self._seconds = seconds
        rng = np.random.default_rng(0)
        self._field = np.stack([20 * gaussian_filter(rng.normal(size=shape), 6) for _ in range(3)]).astype(np.float32)

    def predict(self, moving: Any, fixed: Any) -> Any:
        time.sleep(self._seconds)
        return self._field.copy()


def write_images(folder: Path, count: int, shape: tuple[int, int, int]) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    image = (1000 * gaussian_filter(rng.random(shape), 2)).astype(np.float32)
    first = folder / "atlas.nii.gz"
    nib.save(nib.Nifti1Image(image.astype(np.int16), np.eye(4)), first)
    (folder / "moving").mkdir()
    for number in range(count):  # links: reading and hashing them is work all the same
        (folder / "moving" / f"m{number:04}.nii.gz").symlink_to(first)
    return folder


def run(images: Path, out: Path, engine: Waiting, workers: int) -> tuple[float, float, Record]:
    """Wall-clock and processor seconds for all pairs."""
    pairs = from_folders(images / "atlas.nii.gz", images / "moving", out, Job, {})
    means = Means(Path("none"), "cpu", 1, None, "onnxruntime", workers, 1, out, open=lambda *_: [engine])
    wall, processor = time.perf_counter(), time.process_time()
    record = register(pairs, out, means, Running(workers=workers), [])
    return time.perf_counter() - wall, time.process_time() - processor, record


def throughput(folder: Path, shape: tuple[int, int, int], count: int) -> dict[str, Any]:
    images = write_images(folder / "images", count, shape)
    run(images, folder / "warm", Waiting(shape, 0), 1)  # compiles
    wall, processor, _ = run(images, folder / "alone", Waiting(shape, 0), 1)
    seconds = wall / count
    engine = Waiting(shape, seconds)
    found = {}
    for workers in (1, cores() + 1, cores() + 2):
        wall, used, _ = run(images, folder / f"workers{workers}", engine, workers)
        found[f"workers {workers}"] = {
            "wall_s": round(wall, 2),
            "processor_s": round(used, 2),
            "share_of_slowest_stage": round(count * seconds / wall, 3),
        }
    return {
        "shape": shape,
        "pairs": count,
        "engine_s": round(seconds, 4),
        "other_stages_processor_s": round(processor / count, 4),
        **found,
    }


def memory(folder: Path, shape: tuple[int, int, int], count: int) -> dict[str, Any]:
    images = write_images(folder / "images", count, shape)
    seen: dict[str, float] = {}
    whole = Record.add

    def add(record: Record, outcome: Any) -> None:
        whole(record, outcome)
        done = len(record.outcomes)
        if done in (100, 500, 1000):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen[str(done)] = round(pages * resource.getpagesize() / 2**20, 1)

    Record.add = add  # type: ignore[method-assign]
    wall, _, record = run(images, folder / "out", Waiting(shape, 0), 3)
    return {"shape": shape, "rss_mib_after_pairs": seen, "pairs_a_minute": round(60 * len(record.pairs) / wall)}


def main() -> None:
    load = os.getloadavg()
    folder = Path(tempfile.mkdtemp())
    try:
        found = {
            "command": "python benchmarks/batch.py",
            "cores": cores(),
            "load_before": [round(value, 1) for value in load],
            "throughput": throughput(folder / "a", (64, 80, 64), 16),
            "memory": memory(folder / "b", (24, 24, 24), 1000),
            "load_after": [round(value, 1) for value in os.getloadavg()],
        }
    finally:
        shutil.rmtree(folder)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    json.dump(found, sys.stdout, indent=2)


if __name__ == "__main__":
    main()

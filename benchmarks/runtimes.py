"""CPU runtimes side by side: time of a field, and how far it is from eager torch.

Everything runs in one process on the same pair with the same number of threads, interleaved; ratios are medians over
rounds of (eager in this round) / (candidate in this round), which cancels slow phases of a shared machine. The pair is
the brain of ../shared/data and its own copy under a smooth random deformation of up to about 8 mm, int8 is calibrated
on two others made the same way. With --checkpoint the weights are those of a training; otherwise the head of a random
network is scaled to a field of 3 voxels.

    python benchmarks/runtimes.py --checkpoint RUN/best.pt --json benchmarks/results/runtimes.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from ofg_deploy import metrics
from ofg_deploy.export.onnx import trace
from ofg_deploy.export.parity import compare
from ofg_deploy.export.precision import at_precision
from ofg_deploy.export.quantise import quantise
from ofg_deploy.field import Field, sample
from ofg_deploy.geometry import Grid, Shape, lattice
from ofg_deploy.model_file import CONTRACT_KEY, SEAL_KEY, UNSEALED, Contract, seal
from ofg_deploy.nifti import load_image, load_labels
from ofg_deploy.outputs import to_json
from ofg_deploy.preprocess import Intensity, NetworkInput, PreparedPair
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.train.checkpoint import load_checkpoint, load_weights
from ofg_deploy.train.networks import build_network

BRAIN = Path(__file__).resolve().parents[2] / "shared/data/brain_t1"
PRECISIONS = ("fp32", "int8")  # and bf16, which ONNX Runtime does not run on a CPU
RUNTIMES = ("onnxruntime", "openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="voxelmorph")
    parser.add_argument("--grid", type=int, nargs=3, default=(160, 192, 224))
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--brain", type=Path, default=BRAIN, help="folder with an image *t1* or *scan* and its *seg*")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    grid: Shape = tuple(options.grid)
    pair, labels = make_pair(options.brain, grid, seed=0)
    network = make_network(options, pair)
    fields: dict[str, Callable[[Any, Any], Field]] = {
        "eager torch": torch_call(network, torch.contiguous_format),
        "torch channels-last": torch_call(deepcopy(network), torch.channels_last_3d),
    }
    providers: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision, model in models(network, grid, options.brain).items():
            path = Path(folder) / f"{precision}.onnx"
            path.write_bytes(sealed(model, options.network, grid, network.divisor, precision))
            for runtime in RUNTIMES if precision in PRECISIONS else ("openvino",):
                engine = open_engine(path, "cpu", options.threads, runtime=runtime)
                fields[f"{runtime} {precision}"] = engine.predict
                providers[f"{runtime} {precision}"] = f"{engine.runtime}, {engine.provider}"
    seconds = interleaved({name: lambda f=f: f(pair.moving, pair.fixed) for name, f in fields.items()}, options.rounds)
    eager_field = fields["eager torch"](pair.moving, pair.fixed)
    rows = {}
    for name, call in fields.items():
        parity = compare(lambda *_: eager_field, call, [pair], [lambda field: dice(pair, labels, field)])
        times = np.array(seconds[name])
        rows[name] = {
            "p50_s": round(float(np.median(times)), 3),
            "to_eager": round(float(np.median(np.array(seconds["eager torch"]) / times)), 2),
            "field_mm_mean": parity.field_mm_mean,
            "field_mm_p99": parity.field_mm_p99,
            "field_mm_max": parity.field_mm_max,
            "dice_difference": parity.dice_difference,
            "folding_difference_percent": parity.folding_difference_percent,
            "runs_in": providers.get(name, f"torch {torch.__version__}"),
        }
    for precision in PRECISIONS:  # what ofg_deploy/serve/runtimes.py decides by
        ours, other = (np.array(seconds[f"{runtime} {precision}"]) for runtime in ("openvino", "onnxruntime"))
        rows[f"openvino {precision}"]["to_onnxruntime"] = round(float(np.median(other / ours)), 1)
    report = {
        "network": options.network,
        "grid": list(grid),
        "threads": options.threads,
        "rounds": options.rounds,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load_at_end": round(os.getloadavg()[0], 1),
        "weights": "trained" if options.checkpoint else "random, head scaled",
        "field_mm_largest": float(np.linalg.norm(eager_field, axis=0).max()),
        "eager_dice": dice(pair, labels, eager_field),
        "table": rows,
    }
    show(report)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        runs = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(to_json({**runs, options.network: report}))


def make_pair(folder: Path, grid: Shape, seed: int) -> tuple[PreparedPair, tuple[Any, Any]]:
    """The brain as fixed, and as moving itself under a smooth deformation with other contrast; their label maps."""
    files = sorted(folder.glob("*.nii*"))
    image = load_image(next(f for f in files if "seg" not in f.name))
    labels = next((load_labels(f) for f in files if "seg" in f.name), None)
    data = np.clip(image.data / np.percentile(image.data, 99.5), 0, 1).astype(np.float32)
    numbers = np.zeros(data.shape, np.int16) if labels is None else labels.data.astype(np.int16)
    step = [n / m for n, m in zip(data.shape, grid, strict=True)]
    places = lattice(grid) * np.array(step).reshape(3, 1, 1, 1)
    rng = np.random.default_rng(seed)
    coarse = [gaussian_filter(rng.standard_normal(tuple(n // 4 + 1 for n in grid)), 4) for _ in range(3)]
    where = lattice(grid) / 4
    bend = np.stack([sample((8 / np.abs(c).max() * c).astype(np.float32), where) for c in coarse])
    fixed = sample(data, places).astype(np.float32)
    moving = (sample(data, places + bend) ** 0.9).astype(np.float32)
    nearest = [nearest_of(numbers, p) for p in (places, places + bend)]
    there = Grid(grid, np.eye(4))
    return PreparedPair(fixed, moving, there, np.eye(4), overlap=1.0, outside=0.0), (nearest[0], nearest[1])


def nearest_of(numbers: Any, places: Any) -> Any:
    upper = np.array(numbers.shape).reshape(3, 1, 1, 1) - 1
    return numbers[tuple(np.clip(np.rint(places).astype(np.intp), 0, upper))]


def dice(pair: PreparedPair, labels: tuple[Any, Any], field: Field) -> float:
    warped = nearest_of(labels[1], lattice(pair.grid.shape) + field)
    return metrics.mean(metrics.dice(labels[0], warped)) or 0.0


def make_network(options: argparse.Namespace, pair: PreparedPair) -> Any:
    torch.manual_seed(0)
    network = build_network(options.network, pair.grid.shape).eval()
    if options.checkpoint:
        load_weights(network, load_checkpoint(options.checkpoint).state, options.checkpoint)
        return network
    heads = [p for name, p in network.named_parameters() if name.startswith(("flow", "reg_head")) and p.dim() > 1]
    with torch.inference_mode():
        field = network(*(torch.from_numpy(i)[None, None] for i in (pair.moving, pair.fixed)))
    for head in heads:
        head.data *= 3 / float(field.abs().max())
    return network


def models(network: Any, grid: Shape, brain: Path) -> dict[str, onnx.ModelProto]:
    """The exported graph by precision."""
    model = trace(network, grid)
    low = at_precision(model, "bf16", set())
    return {"fp32": model, "bf16": low, "int8": quantise(model, [make_pair(brain, grid, seed)[0] for seed in (1, 2)])}


def sealed(model: onnx.ModelProto, network: str, grid: Shape, divisor: int, precision: str) -> bytes:
    expects = NetworkInput(grid, (1.0, 1.0, 1.0), Intensity("minmax"), "none")
    contract = Contract(network, expects, divisor, "0" * 64, {}, precision=precision)
    onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.to_json(), SEAL_KEY: UNSEALED})
    return seal(model.SerializeToString())


def torch_call(network: Any, layout: torch.memory_format) -> Callable[[Any, Any], Field]:
    network = network.to(memory_format=layout)

    def call(moving: Any, fixed: Any) -> Field:
        with torch.inference_mode():
            pair = (torch.from_numpy(image)[None, None].to(memory_format=layout) for image in (moving, fixed))
            return network(*pair)[0].numpy()

    return call


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls.items())
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name, call in order:
            time.sleep(0.3)  # threads of the one before spin on for a while
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def show(report: dict[str, Any]) -> None:
    grid = "x".join(str(n) for n in report["grid"])
    table = Table(
        "runtime", "p50 (s)", "to eager", "mm mean", "mm 99 %", "mm max", "Dice", "runs in",
        title=f"{report['network']} {grid}, {report['threads']} threads, {report['weights']}",
    )  # fmt: skip
    for name, row in report["table"].items():
        errors = [f"{row[f'field_mm_{key}']:.2g}" for key in ("mean", "p99", "max")]
        figures = [f"{row['p50_s']:.2f}", f"{row['to_eager']:.2f}", *errors, f"{row['dice_difference']:.2g}"]
        table.add_row(name, *figures, row["runs_in"])
    Console(width=150).print(table)


if __name__ == "__main__":
    main()

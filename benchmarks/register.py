"""What a registration costs: the cold command stage by stage, the kernels against scipy, other tools on the same pair.

    python benchmarks/register.py --work DIR --json benchmarks/results/register.json cold --before OTHER_CHECKOUT
    python benchmarks/register.py --work DIR --json benchmarks/results/register.json kernels
    python benchmarks/register.py --work DIR --json benchmarks/results/register.json peers --tools FOLDER

``cold`` runs ``ofg register --init none`` in a new process each time, in turns with another checkout of this project.
Its network is a VoxelMorph with random weights. ``peers`` needs ANTsPy and, in a folder of their own (pip install with
--no-deps --target), picsl_greedy and convexAdam; its pairs, rendered but for hippocampi, are those of ``peer_pairs``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peer_pairs import CONTRASTS, Pair, abdomen, heads, hippocampi

SETS = ["brains", "contrasts", "hippocampus", "abdomen"]
SHAPE = (160, 192, 224)
ENGINE = ("open engine", "network")


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["cold", "kernels", "peers"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--before", type=Path, help="another checkout of this project")
    parser.add_argument("--tools", type=Path, help="folder with picsl_greedy and convexAdam")
    parser.add_argument("--heads", type=int, nargs=2, default=[0, 1], help="which label maps; a --work for each two")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="what peers are compared on")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="WORDS", help="leave out tools whose names hold these"
    )
    parser.add_argument("--contrasts", nargs="+", choices=CONTRASTS[1:], default=CONTRASTS[1:], help="of the heads")
    parser.add_argument("--split", choices=["validation", "test"], default="validation", help="of the hippocampi")
    parser.add_argument("--pairs", type=int, default=12, help="hippocampi at most")
    parser.add_argument("--runtime", nargs="+", default=["openvino", "onnxruntime"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    load = [os.getloadavg()[0]]
    rows = {"cold": cold, "kernels": kernels, "peers": peers}[options.part](options)
    load.append(os.getloadavg()[0])
    report = {"cores": os.cpu_count(), "load": [round(v, 1) for v in load], "rows": rows}
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        part = options.part if options.heads == [0, 1] else f"{options.part}, heads {options.heads}"
        options.json.write_text(json.dumps({**known, part: report}, indent=2) + "\n")


def cold(options: argparse.Namespace) -> dict[str, Any]:
    fixed, moving, *_ = brains(options.work, options.heads)
    trees = {"now": Path(__file__).resolve().parents[1]} | ({"before": options.before} if options.before else {})
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.rounds + 1):  # the first one compiles and fills the disk's cache
        for runtime in options.runtime:
            for name, tree in trees.items():
                given = ["--runtime", runtime, "--init", "none"]
                found = registration(tree, fixed, moving, model(options.work, 3.0), options.work / "out", given)
                runs.setdefault(f"{name}, {runtime}", []).append(found)
                print(name, runtime, f"{found['processor_s']:.2f} s of processor time", file=sys.stderr, flush=True)
    return {name: summary(found[1:]) for name, found in runs.items()}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians; the share outside the engine is of processor time, which waiting for a core does not change."""
    whole, seconds = (np.median([run[key] for run in runs]) for key in ("processor_s", "wall_s"))
    stages = {key: np.median([run["stages"][key] for run in runs]) for key in runs[0]["stages"]}
    walls = {key: np.median([run["walls"][key] for run in runs]) for key in runs[0]["walls"]}
    engine, engine_wall = (sum(found[key] for key in ENGINE) for found in (stages, walls))
    return {
        "wall_s": round(float(seconds), 2),
        "outside_engine_wall_percent": round(100 * float(1 - engine_wall / seconds), 1),
        "processor_s": round(float(whole), 2),
        "outside_engine_processor_percent": round(100 * float(1 - engine / whole), 1),
        "stages_processor_s": {key: round(float(value), 3) for key, value in stages.items()},
        "stages_wall_s": {key: round(float(value), 3) for key, value in walls.items()},
        "peak_mb": round(max(run["peak_mb"] for run in runs)),
        "engine_peak_mb": round(max(run["engine_peak_mb"] for run in runs)),
    }


def registration(tree: Path, fixed: Path, moving: Path, network: Path, out: Path, more: list[str]) -> dict[str, Any]:
    given = [str(fixed), str(moving), "-m", str(network), "-o", str(out), "--overwrite", *more]
    here = {**os.environ, "PYTHONPATH": str(tree)}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, __file__, "child", *given], env=here, cwd=tree, stdout=subprocess.PIPE, text=True
    )
    said = process.stdout.read() if process.stdout else ""
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"ofg register failed in {tree}: {said}")
    found = json.loads(said.strip().splitlines()[-1])
    return {
        **found,
        "wall_s": time.perf_counter() - start,
        "processor_s": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / 1024,
    }


def child(arguments: list[str]) -> None:
    """``ofg register`` with the processor time of its stages, which run one after another but for measure and write."""
    stages: dict[str, float] = {}
    walls: dict[str, float] = {}
    peaks: dict[str, float] = {}
    from contextlib import contextmanager

    from ofg_deploy.serve import command, registration

    plain, opened = registration.Clock.__call__, command.open_engine

    @contextmanager
    def clock(self: Any, stage: str) -> Any:
        start, wall = time.process_time(), time.perf_counter()
        with plain(self, stage):
            yield
        stages[stage], walls[stage] = time.process_time() - start, time.perf_counter() - wall
        peaks[stage] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def open_engine(*given: Any, **named: Any) -> Any:
        stages["start"], wall = time.process_time(), time.perf_counter()
        engine = opened(*given, **named)
        stages["open engine"], walls["open engine"] = time.process_time() - stages["start"], time.perf_counter() - wall
        peaks["open engine"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return engine

    registration.Clock.__call__, command.open_engine = clock, open_engine  # type: ignore[method-assign]
    from ofg_deploy.cli import main as ofg

    sys.argv = ["ofg", "register", *arguments]
    try:
        ofg()
    except SystemExit as end:
        if end.code:
            raise
    print()
    print(json.dumps({"stages": stages, "walls": walls, "engine_peak_mb": peaks["network"]}))


def kernels(options: argparse.Namespace) -> dict[str, Any]:
    from scipy.ndimage import map_coordinates, zoom

    from ofg_deploy import field, geometry
    from ofg_deploy.nifti import load_image

    fixed_path, moving_path, *_ = brains(options.work, options.heads)
    fixed, moving = load_image(fixed_path), load_image(moving_path)
    network = geometry.network_grid(fixed.grid, (160, 224, 192), (1.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 4, (3, *(n // 16 for n in network.shape)))
    vectors = np.stack([zoom(c, 16, order=1) for c in coarse]).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] += rng.normal(0, 0.02, (3, 3))
    total = field.total_displacement_mm(vectors, network, fixed.grid, affine)
    points, move = geometry.lattice, geometry.transform_points

    def scipy_total() -> Any:
        in_mm = np.tensordot(network.world_from_vox[:3, :3], vectors, axes=1)
        index = move(network.vox_from_world @ fixed.grid.world_from_vox, points(fixed.grid.shape))
        here = move(fixed.grid.world_from_vox, points(fixed.grid.shape))
        there = here + [map_coordinates(c, index, order=1, mode="nearest", prefilter=False) for c in in_mm]
        return (move(affine, there) - here).astype(np.float32)

    def scipy_warp() -> Any:
        here = move(fixed.grid.world_from_vox, points(fixed.grid.shape)) + total
        index = move(moving.grid.vox_from_world, here)
        values = map_coordinates(moving.data, index, order=1, mode="nearest", prefilter=False)
        upper = np.array(moving.grid.shape).reshape(3, 1, 1, 1) - 0.5
        values[((index < -0.5) | (index > upper)).any(axis=0)] = 0
        return values

    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "warp": (lambda: field.warp(moving.data, moving.grid, fixed.grid, total), scipy_warp),
        "field conversion": (
            lambda: field.total_displacement_mm(vectors, network, fixed.grid, affine),
            scipy_total,
        ),
    }
    rows = {}
    for name, (ours, theirs) in pairs.items():
        gap = float(np.abs(ours() - theirs()).max())
        times = [(*timed(ours), *timed(theirs)) for _ in range(options.rounds)]
        wall, processor, scipy_wall, scipy_processor = np.median(times, axis=0)
        rows[name] = {
            "ours_s": round(wall, 3),
            "scipy_s": round(scipy_wall, 3),
            "times_faster": round(float(np.median([b / a for a, _, b, _ in times])), 1),
            "times_less_processor": round(float(np.median([b / a for _, a, _, b in times])), 1),
            "largest_difference": gap,
        }
        rows[name] |= {"ours_processor_s": round(processor, 3), "scipy_processor_s": round(scipy_processor, 3)}
    return rows


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def peers(options: argparse.Namespace) -> dict[str, Any]:
    """Every tool on every pair of the sets that are asked for: means over the pairs of a set."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, pairs in peer_sets(options).items():
        ours(options, pairs[0], "fast")  # compiles, and fills the disk's cache
        for number, pair in enumerate(pairs):
            for tool, call in peer_tools(options, pair).items():
                row = peer(call, pair)
                found.setdefault(name, {}).setdefault(tool, []).append(row)
                print(f"{name}, pair {number}, {tool}: {row}", flush=True)
    return {
        name: {tool: {key: round(float(np.mean([r[key] for r in rows])), 4) for key in rows[0]} | {"pairs": len(rows)}
               for tool, rows in tools.items()}
        for name, tools in found.items()
    }  # fmt: skip


def peer_sets(options: argparse.Namespace) -> dict[str, list[Pair]]:
    made: dict[str, list[Pair]] = {}
    for name in options.sets:
        if name == "hippocampus":
            made[f"hippocampus, {options.split} pairs"] = hippocampi(options.work, options.split, options.pairs)
        elif name == "abdomen":
            made["abdomen, phantom"] = [abdomen(options.work / "abdomen")]
        elif name == "contrasts":
            for contrast in options.contrasts:
                folder = options.work / f"heads_{contrast}"
                made[f"brains, rendered, T1 and {contrast}"] = [heads(folder, options.heads, contrast)]
        else:
            made["brains, rendered, T1"] = [heads(options.work, options.heads)]
    return made


def peer_tools(options: argparse.Namespace, pair: Pair) -> dict[str, Callable[[], Path | None]]:
    def script(name: str, text: str) -> Callable[[], Path]:
        return lambda: by_script(options, name, text, pair.fixed, pair.moving)

    tools: dict[str, Callable[[], Path | None]] = {"before": lambda: None}
    for quality in ("fast", "default", "best"):
        tools[f"ofg register -m none --quality {quality}"] = partial(ours, options, pair, quality)
    tools["ANTsPy SyNOnly (mattes)"] = script("ants", ANTS)
    tools["ANTsPy SyNOnly (CC, radius 4)"] = script("ants_cc", ANTS_CC)
    if options.tools:
        tools["Greedy NCC 2x2x2, 100x50x20"] = script("greedy", GREEDY)
        tools["ConvexAdam (MIND)"] = script("convexadam", CONVEX_ADAM)
    return {name: call for name, call in tools.items() if not any(words in name for words in options.without)}


def peer(tool: Callable[[], Path | None], pair: Pair) -> dict[str, float]:
    from ofg_deploy import metrics
    from ofg_deploy.field import jacobian_determinant, warp
    from ofg_deploy.nifti import load_labels, load_transform

    a, b = load_labels(pair.fixed_labels), load_labels(pair.moving_labels)
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    path = tool()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    field = np.zeros((3, *a.grid.shape), np.float32) if path is None else load_transform(path)[0]
    dice = metrics.dice(a.data, warp(b.data, b.grid, a.grid, field, order=0))
    determinant = jacobian_determinant(field, a.grid.world_from_vox)
    return {
        "dice": round(metrics.mean(dice) or 0.0, 4),
        "folding_percent": round(metrics.folding_percent(determinant), 4),
        "sdlogj": round(metrics.sdlogj(determinant), 3),
        "wall_s": round(wall, 1),
        "processor_s": round(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime, 1),
        "labels": len(dice),
    }


def ours(options: argparse.Namespace, pair: Pair, quality: str) -> Path:
    out = options.work / "ours"
    shutil.rmtree(out, ignore_errors=True)
    command = ["register", pair.fixed, pair.moving, "-m", "none", "--init", "none", "--quality", quality, "-o", out]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    call = [sys.executable, "-m", "ofg_deploy", *map(str, command)]
    subprocess.run(call, env=here, check=True, stdout=subprocess.DEVNULL)
    return next(out.glob("*_Warp.nii.gz"))


ANTS_CC = """
import ants
a, b = ants.image_read(fixed), ants.image_read(moving)
ants.registration(a, b, type_of_transform="SyNOnly", initial_transform="Identity", outprefix=out + "/", syn_metric="CC",
                  syn_sampling=4, reg_iterations=(40, 20, 10))
"""
ANTS = """
import ants
a, b = ants.image_read(fixed), ants.image_read(moving)
ants.registration(a, b, type_of_transform="SyNOnly", initial_transform="Identity", outprefix=out + "/")
"""
GREEDY = """
from picsl_greedy import Greedy3D
Greedy3D().execute(f"-threads 2 -m NCC 2x2x2 -i {fixed} {moving} -n 100x50x20 -o {out}/raw.nii.gz")
import SimpleITK as sitk
sitk.WriteImage(sitk.ReadImage(out + "/raw.nii.gz"), out + "/1Warp.nii.gz")
"""
CONVEX_ADAM = """
import nibabel, numpy, torch
from pathlib import Path
from convexAdam.convex_adam_MIND import convex_adam_pt
from ofg_deploy.nifti import load_image, save_transform
a, b = load_image(Path(fixed)), load_image(Path(moving))
found = convex_adam_pt(torch.from_numpy(a.data.copy()), torch.from_numpy(b.data.copy()), dtype=torch.float32)
mm = numpy.einsum("ij,xyzj->ixyz", a.grid.world_from_vox[:3, :3], found).astype(numpy.float32)
save_transform(Path(out) / "1Warp.nii.gz", mm, a.grid)
"""


def by_script(options: argparse.Namespace, name: str, script: str, fixed: Path, moving: Path) -> Path:
    out = options.work / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    begin = f"fixed, moving, out = {str(fixed)!r}, {str(moving)!r}, {str(out)!r}\n"
    tools = [str(options.tools)] if options.tools else []
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), *tools])}
    subprocess.run([sys.executable, "-c", begin + script], env=here, check=True, stdout=subprocess.DEVNULL)
    return next(out.glob("*1Warp.nii.gz"))


def brains(work: Path, numbers: list[int]) -> tuple[Path, Path, Path, Path]:
    """Fixed and moving image, fixed and moving labels of two rendered heads."""
    pair = heads(work, numbers)
    return pair.fixed, pair.moving, pair.fixed_labels, pair.moving_labels


def model(work: Path, voxels: float) -> Path:
    """VoxelMorph with random weights, its head scaled to a field of at most so many voxels."""
    path = work / f"voxelmorph_{voxels:g}.onnx"
    if not path.exists():
        script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, torch
from runtimes import sealed
from ofg_deploy.export.onnx import trace
from ofg_deploy.train.networks import build_network
torch.manual_seed(0)
network = build_network("voxelmorph", {SHAPE}).eval()
pair = [torch.rand((1, 1, *{SHAPE})) for _ in range(2)]
with torch.inference_mode():
    largest = float(network(*pair).abs().max())
for name, weight in network.named_parameters():
    if name.startswith("flow") and weight.dim() > 1:
        weight.data *= {voxels} / largest
open({str(path)!r}, "wb").write(sealed(trace(network, {SHAPE}), "voxelmorph", {SHAPE}, network.divisor, "fp32"))
"""
        subprocess.run([sys.executable, "-c", script], check=True)
    return path


if __name__ == "__main__":
    main()

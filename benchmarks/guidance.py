"""The guided step against (a) its published formulation and (b) separable sums with autograd: speed and memory.

One run, the three in turn, so that a slow phase of the machine hits them alike; ratios are medians over the turns.

    python benchmarks/guidance.py --shape 160 192 160 --json benchmarks/results/guidance.json [--plot FILE]

(a) Five dense convolutions, autograd, torch's Adam with amsgrad. (b) The same with one average pooling per axis over
the five channels at once. Ours: ``ofg_deploy.kernels.refine.Adam`` in calls of K = 5 steps, as training makes them,
divided by K.
Expectations and what came of them: benchmarks/NOTES.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.kernels.refine import Adam
from ofg_deploy.outputs import to_json
from ofg_deploy.train.losses import diffusion, warp

Shape = tuple[int, int, int]
Pair = tuple[np.ndarray, np.ndarray, np.ndarray]
STEPS, LR, WINDOW = 5, 0.1, 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 192, 160), metavar=("X", "Y", "Z"))
    parser.add_argument("--memory-shape", type=int, nargs=3, default=(112, 128, 112), metavar=("X", "Y", "Z"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="turns of the three; (a) takes half a minute for each")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="cost against voxels and against K, as a picture")
    options = parser.parse_args()
    shape = tuple(options.shape)

    torch.set_num_threads(options.threads)
    before = os.getloadavg()
    seconds, agreement = speed(shape, options.threads, options.rounds)
    ratios = {
        name: [other / ours for other, ours in zip(seconds[name], seconds["ours"], strict=True)]
        for name in ("published", "separable")
    }
    peaks = {name: peak_bytes_per_voxel(name, tuple(options.memory_shape), options.threads) for name in METHODS}
    report: dict[str, Any] = {
        "shape": shape,
        "speedup_vs_published": float(np.median(ratios["published"])),
        "speedup_vs_separable": float(np.median(ratios["separable"])),
        "bytes_per_voxel": held_bytes_per_voxel(shape, options.threads),
        "peak_bytes_per_voxel": {"shape": options.memory_shape, **peaks},
        "seconds_per_step": {name: float(np.median(values)) for name, values in seconds.items()},
        "every_round": {"seconds_per_step": seconds, "speedup": ratios},
        "relative_difference_after_one_step": agreement,
        "threads": options.threads,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load_average": {"before": before, "after": os.getloadavg()},
        "versions": {"torch": torch.__version__, "numba": numba.__version__, "numpy": np.__version__},
    }
    if options.plot:
        report["scaling"] = scaling(options.threads)
        plot(report["scaling"], options.plot)
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(to_json(report))


def make_pair(shape: Shape) -> Pair:
    """Field (3, X, Y, Z), moving, fixed: smooth noise with an empty margin, as heads have; 1.5 voxels of field."""
    rng = np.random.default_rng(0)

    def smooth(sigma: float) -> np.ndarray:
        noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
        return noise / noise.std()

    images = [np.clip(0.5 + 0.2 * smooth(2.0), 0, 1) for _ in range(2)]
    for image in images:
        for axis, size in enumerate(shape):
            np.moveaxis(image, axis, 0)[: size // 10] = 0
            np.moveaxis(image, axis, 0)[-(size // 10) :] = 0
    return np.stack([1.5 * smooth(6.0) for _ in range(3)]), images[0], images[1]


def correlation(sums: tuple[torch.Tensor, ...], window: int) -> torch.Tensor:
    """The published arithmetic from the five window sums on."""
    sum_a, sum_b, sum_aa, sum_bb, sum_ab = sums
    size = float(window**3)
    mean_a, mean_b = sum_a / size, sum_b / size
    cross = sum_ab - mean_b * sum_a - mean_a * sum_b + mean_a * mean_b * size
    var_a = sum_aa - 2 * mean_a * sum_a + mean_a * mean_a * size
    var_b = sum_bb - 2 * mean_b * sum_b + mean_b * mean_b * size
    return -(cross * cross / (var_a * var_b + 1e-5)).mean()


def dense(a: torch.Tensor, b: torch.Tensor, window: int = WINDOW) -> torch.Tensor:
    kernel = torch.ones(1, 1, window, window, window)
    products = a, b, a * a, b * b, a * b
    return correlation(tuple(functional.conv3d(x, kernel, padding=window // 2) for x in products), window)


def separable(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    sums = torch.cat([a, b, a * a, b * b, a * b], dim=1)
    for axis in range(3):
        window = [WINDOW if i == axis else 1 for i in range(3)]
        sums = functional.avg_pool3d(sums, window, stride=1, padding=[n // 2 for n in window])
    return correlation((sums * float(WINDOW**3)).split(1, dim=1), WINDOW)


class Autograd:
    """A step of (a) or (b): called again and again it goes on optimising."""

    def __init__(self, similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], pair: Pair) -> None:
        field, self.moving, self.fixed = (torch.from_numpy(a)[None] for a in (pair[0], pair[1][None], pair[2][None]))
        self.similarity, self.field = similarity, field.clone().requires_grad_()
        self.adam = torch.optim.Adam([self.field], lr=LR, amsgrad=True)

    def __call__(self) -> np.ndarray:
        self.adam.zero_grad()
        (self.similarity(warp(self.moving, self.field), self.fixed) + diffusion(self.field)).backward()
        self.adam.step()
        return self.field.detach()[0].numpy()


class Ours:
    """``steps`` steps of ours, from the same start each time; buffers are kept, as training keeps them."""

    def __init__(self, pair: Pair, threads: int, steps: int = STEPS) -> None:
        self.pair, self.threads, self.steps, self.buffers = pair, threads, steps, Buffers()

    def __call__(self) -> np.ndarray:
        return Adam(self.steps, LR, window=WINDOW).refine(*self.pair, self.threads, self.buffers)


METHODS: dict[str, Callable[[Pair, int], Callable[[], np.ndarray]]] = {
    "published": lambda pair, threads: Autograd(dense, pair),
    "separable": lambda pair, threads: Autograd(separable, pair),
    "ours": Ours,
}


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def speed(shape: Shape, threads: int, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds per step in each turn; how far our field is from that of (a) after one step, of the change."""
    pair = make_pair(shape)
    for build in METHODS.values():
        build(make_pair((24, 24, 24)), threads)()  # compiled, loaded, threads started
    calls = {name: build(pair, threads) for name, build in METHODS.items()}
    calls["ours"]()  # the first call touches its buffers for the first time
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    fields = {"ours": Ours(pair, threads, steps=1)()}
    for turn in range(rounds):
        for name, call in calls.items():
            # Several of the quick ones, spread around the slow one, weigh its half minute more fairly.
            repeats = {"published": 1, "separable": 2, "ours": 5}[name]
            values = [timed(call) for _ in range(repeats)]
            if turn == 0 and name == "published":
                fields[name] = call.field.detach()[0].numpy().copy()
            seconds[name].append(float(np.median(values)) / (STEPS if name == "ours" else 1))
    change = np.linalg.norm(fields["published"] - pair[0])
    return seconds, float(np.linalg.norm(fields["ours"] - fields["published"]) / change)


def held_bytes_per_voxel(shape: Shape, threads: int) -> float:
    """Everything ours allocates beyond the images and the field given to it: buffers, and the refined field itself."""
    method = Ours(make_pair(shape), threads, steps=1)
    refined = method()
    return float((method.buffers.nbytes + refined.nbytes) / np.prod(shape))


def peak_bytes_per_voxel(name: str, shape: Shape, threads: int) -> float:
    """Growth of a fresh process's resident memory over two calls, sampled, beyond images and field given."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, shape, threads))


def _peak(name: str, shape: Shape, threads: int) -> float:
    torch.set_num_threads(threads)
    METHODS[name](make_pair((24, 24, 24)), threads)()
    pair = make_pair(shape)
    start, peak, done = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call = METHODS[name](pair, threads)
    for _ in range(2):
        call()
    done.set()
    watcher.join()
    return (peak[0] - start) / float(np.prod(shape))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def scaling(threads: int) -> dict[str, Any]:
    """Seconds of a call against voxels (K = 5) and against K (one shape), each with its straight line."""
    # Multiples of two slabs, so that two threads have as much to do.
    shapes = [(32 * n, 32 * n + 8, 32 * n) for n in (1, 2, 3, 4, 5)]
    voxels, seconds = [int(np.prod(shape)) for shape in shapes], []
    for shape in shapes:
        call = Ours(make_pair(shape), threads)
        call()
        seconds.append(min(timed(call) for _ in range(5)))
    pair, steps, by_steps = make_pair((96, 104, 96)), [1, 2, 5, 10, 15, 20], []
    for count in steps:
        call = Ours(pair, threads, count)
        call()
        by_steps.append(min(timed(call) for _ in range(5)))
    return {
        "voxels": {"x": voxels, "seconds": seconds, "r_squared": r_squared(voxels, seconds)},
        "steps": {"x": steps, "seconds": by_steps, "r_squared": r_squared(steps, by_steps)},
    }


def r_squared(x: list[int], y: list[float]) -> float:
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def plot(found: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    labels = {"voxels": "voxels (K = 5)", "steps": "K (96 x 104 x 96)"}
    for axis, (name, row) in zip(axes, found.items(), strict=True):
        x, y = np.array(row["x"]), np.array(row["seconds"])
        line = np.polyfit(x, y, 1)
        axis.plot(x, y, "o", x, np.polyval(line, x), "-", color="C0")
        axis.set(xlabel=labels[name], ylabel="seconds", title=f"r² = {row['r_squared']:.4f}", ylim=(0, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

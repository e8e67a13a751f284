"""What makes the target good: the same small network trained by each method for the same processor time, three seeds.

A run's clock is the processor time of its own steps on one thread, so that others on the machine do not shorten it;
validation does not count. Learning rates decay with the share of the budget that is spent. Choices are made on
validation pairs; test pairs are touched once, by ``--test``, after all training. Every run is kept as it ends, and a
killed benchmark goes on with the next one.

    python benchmarks/guidance_quality.py hippocampus --work DIR --budget 450 --test --figure docs/guidance.png
    python benchmarks/guidance_quality.py brains --work DIR --budget 300 --test
    python benchmarks/guidance_quality.py hippocampus --work DIR --budget 450 --network half --lr 3e-3 --test
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from guidance import dense
from guidance_data import Subjects, load, syn, syn_behind_affine

from ofg_deploy.field import jacobian_determinant
from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.kernels.multilevel import Multilevel
from ofg_deploy.kernels.refine import Greedy
from ofg_deploy.metrics import folding_percent
from ofg_deploy.options.training import GUIDANCE_OPTIONS, PUBLISHED
from ofg_deploy.outputs import to_json
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.guidance import refine
from ofg_deploy.train.losses import diffusion, ofg_loss, warp
from ofg_deploy.train.networks import voxelmorph
from ofg_deploy.train.networks.half_resolution import VoxelMorphHalf
from ofg_deploy.train.objective import Batch, Objective
from ofg_deploy.train.steady_adam import SteadyAdam

RESULTS = Path(__file__).parent / "results/guidance_quality.json"
EPOCHS = 1000  # steps in which the learning rates decay
CURVE = 10  # validations on the way
GREEDY = {"guidance_optimiser": "greedy", **GUIDANCE_OPTIONS["greedy"], "lr": 2e-3}
METHODS: dict[str, dict[str, Any]] = {
    "unsupervised": {"guidance": "none", "ncc_window": 5, "lr": 3e-3},
    "unsupervised, rate 2e-3": {"guidance": "none", "ncc_window": 5, "lr": 2e-3},
    "published": {**PUBLISHED, "lr": 2e-3},
    "greedy": GREEDY,
    "greedy + similarity": {**GREEDY, "guidance_similarity": 1.0},
    "greedy, no limit": {**GREEDY, "guidance_step_voxels": 1.0, "guidance_step_limit": 1e9},
    "greedy, 3 steps": {**GREEDY, "guidance_steps": 3},
    "late published": {**PUBLISHED, "guidance_start": 0.35, "lr": 3e-3},
    "unsupervised, window 9": {"guidance": "none", "lr": 3e-3},
    "published, inner lr 0.2": {**PUBLISHED, "guidance_lr": 0.2, "lr": 3e-3},
}
COMPARED = ["unsupervised", "published", "greedy"]
# The same as the published scripts compute it: dense convolutions, autograd, torch's Adam inside and outside.
AS_SCRIPTED = " as scripted"
METHODS |= {f"{name}{AS_SCRIPTED}": METHODS[name] for name in ("unsupervised", "published")}
Loss = Callable[[torch.Tensor, Batch, int], torch.Tensor]
REFINERS = {
    "15 greedy steps": Greedy(15),
    "15 coarse and 15 fine greedy steps": Multilevel(Greedy(15), (15,)),
}
WITHOUT_NETWORK = {"40 greedy steps": Greedy(40), "20 coarse and 20 fine greedy steps": Multilevel(Greedy(20), (20,))}


class SmallVoxelMorph(voxelmorph.VoxelMorph):
    """Three levels, half the width: a minute on one core is enough to learn something."""

    divisor = 8
    encoder = (8, 16, 16)
    head = (16, 8)


voxelmorph.DECODER = (16, 16, 16)


class SmallVoxelMorphHalf(VoxelMorphHalf):
    """Three levels as well: five times the weights, a third of the time."""

    divisor = 8
    encoder = (16, 32, 64)


NETWORKS = {"full": SmallVoxelMorph, "half": SmallVoxelMorphHalf}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=["hippocampus", "brains"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--budget", type=float, default=120, help="seconds of processor time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--network", choices=list(NETWORKS), default="full", help="resolution of its flow")
    parser.add_argument("--lr", type=float, help="learning rate of every method instead of its own")
    parser.add_argument("--methods", nargs="+", default=COMPARED, choices=list(METHODS))
    parser.add_argument("--figure", type=Path, help="picture of the test pairs")
    parser.add_argument("--test", action="store_true", help="all training is over: touch the test pairs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subjects = load(options.set, options.work)
    for seed in range(options.seeds):
        for method in options.methods:
            keep(options, f"{method}-{seed}", lambda m=method, s=seed: train(options, subjects, m, s))
    if options.test:
        test(options, subjects)
    if options.figure:
        draw(json.loads(options.json.read_text())[section(options)], options.figure)


def section(options: argparse.Namespace) -> str:
    """Where results are kept: runs of another length, network, rate or optimiser are other results.

    "Clipped" is ``SteadyAdam`` (but for what is as scripted); sections without it are older and had plain Adam.
    """
    network = ", flow at half resolution" if options.network == "half" else ""
    rate = f", rate {options.lr:g}" if options.lr else ""
    return f"{options.set}, {options.budget:g} s{network}{rate}, clipped"


def keep(options: argparse.Namespace, key: str, work: Any) -> None:
    """Do what is not in the results yet, and write it down at once."""
    results = json.loads(options.json.read_text()) if options.json.exists() else {}
    found = results.setdefault(
        section(options), {"machine": f"{os.cpu_count()} cores, {platform.machine()}, one thread"}
    )
    if key not in found:
        result = work()
        # Read again: the other set may have been written to the same file in the meantime.
        results = json.loads(options.json.read_text()) if options.json.exists() else results
        results.setdefault(section(options), found)[key] = result
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(to_json(results))
        print(section(options), key, json.dumps(result), flush=True)


def configuration(subjects: Subjects, method: str, seed: int, lr: float | None) -> TrainConfig:
    expects = NetworkInput(subjects.grid.shape, subjects.grid.spacing_mm, Intensity(), "affine")
    config = TrainConfig(expects, epochs=EPOCHS, seed=seed, **METHODS[method])
    return replace(config, lr=lr or config.lr)


def train(options: argparse.Namespace, subjects: Subjects, method: str, seed: int) -> dict[str, Any]:
    config = configuration(subjects, method, seed, options.lr)
    torch.manual_seed(seed)
    network = NETWORKS[options.network](subjects.grid.shape).to(memory_format=torch.channels_last_3d).train()
    adam: torch.optim.Optimizer
    if method.endswith(AS_SCRIPTED):
        loss, adam = scripted_loss(config), torch.optim.Adam(network.parameters(), lr=config.lr, amsgrad=True)
    else:
        loss, adam = our_loss(config), SteadyAdam(network.parameters(), lr=config.lr)
    rng, pairs, queue = np.random.default_rng(seed), subjects.pairs["training"], []
    loss(torch.zeros(1, 3, *subjects.grid.shape), batch(subjects, *pairs[0]), 0)  # compiles
    steps, spent, curve = 0, 0.0, []
    while spent < options.budget:
        start = time.process_time()
        queue = queue or list(rng.permutation(len(pairs)))
        one = batch(subjects, *pairs[queue.pop()])
        epoch = min(EPOCHS - 1, int(EPOCHS * spent / options.budget))
        for group in adam.param_groups:
            group["lr"] = config.lr * config.decay(epoch)
        loss(network(one.moving, one.fixed), one, epoch).backward()
        adam.step()
        adam.zero_grad()
        steps, spent = steps + 1, spent + time.process_time() - start
        if spent >= options.budget * (len(curve) + 1) / CURVE:
            found = evaluate(subjects, network, "validation")
            curve.append([round(spent, 1), found["dice"], found["folds"]])
    torch.save(network.state_dict(), weights(options, method, seed))
    return {"steps": steps, "seconds": round(spent, 1), "curve": curve, **evaluate(subjects, network, "validation")}


def our_loss(config: TrainConfig) -> Loss:
    objective = Objective(config, torch.device("cpu"))
    return lambda field, one, epoch: objective(field, one, epoch).loss


def scripted_loss(config: TrainConfig) -> Loss:
    """The same numbers at the published scripts' cost (``guidance.py`` (a))."""
    similarity = partial(dense, window=config.ncc_window)

    def loss(field: torch.Tensor, one: Batch, epoch: int) -> torch.Tensor:
        regularity = config.outer_smoothness(epoch) * diffusion(field)
        if config.guidance == "none":
            return similarity(warp(one.moving, field), one.fixed) + regularity
        lr = config.guidance_lr * config.decay(epoch)
        refined = refine(field, one.moving, one.fixed, config.guidance_steps, lr, similarity)
        return ofg_loss(field, refined) + regularity

    return loss


def weights(options: argparse.Namespace, method: str, seed: int) -> Path:
    return options.work / options.set / f"{method}-{seed}, {section(options).removeprefix(f'{options.set}, ')}.pt"


def batch(subjects: Subjects, fixed: int, moving: int) -> Batch:
    return Batch(*(torch.from_numpy(subjects.images[n])[None, None] for n in (moving, fixed)))


def predict(network: torch.nn.Module | None, subjects: Subjects, fixed: int, moving: int) -> np.ndarray:
    if network is None:
        return np.zeros((3, *subjects.grid.shape), np.float32)
    one = batch(subjects, fixed, moving)
    with torch.no_grad():
        return np.ascontiguousarray(network.eval()(one.moving, one.fixed)[0].numpy())


def evaluate(
    subjects: Subjects, network: torch.nn.Module | None, split: str, refiners: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Means over the pairs of a split, of the prediction and of what ``refiners`` make of it."""
    buffers, rows = Buffers(), []
    for fixed, moving in subjects.pairs[split]:
        field = predict(network, subjects, fixed, moving)
        row = {"dice": subjects.dice(field, fixed, moving), "folds": folding_percent(jacobian_determinant(field))}
        for name, refiner in (refiners or {}).items():
            start = time.process_time()
            refined = refiner.refine(field, subjects.images[moving], subjects.images[fixed], 1, buffers)
            row[f"{name}: s"] = time.process_time() - start
            row[f"{name}: dice"] = subjects.dice(refined, fixed, moving)
            row[f"{name}: folds"] = folding_percent(jacobian_determinant(refined))
        rows.append(row)
    if network is not None:
        network.train()
    return {key: round(float(np.mean([r[key] for r in rows])), 5) for key in rows[0]}


def test(options: argparse.Namespace, subjects: Subjects) -> None:
    def trained(method: str, seed: int) -> dict[str, Any]:
        network = NETWORKS[options.network](subjects.grid.shape)
        network.load_state_dict(torch.load(weights(options, method, seed), weights_only=True))
        return evaluate(subjects, network, "test", REFINERS)

    for seed in range(options.seeds):
        for method in options.methods:
            keep(options, f"test {method}-{seed}", lambda m=method, s=seed: trained(m, s))
    keep(options, "test no network", lambda: evaluate(subjects, None, "test", WITHOUT_NETWORK))
    pairs = subjects.pairs["test"]
    keep(options, "test ANTsPy SyN", lambda: summary(list(syn(subjects, pairs))))
    keep(options, "test ANTsPy SyN behind our affine", lambda: summary(list(syn_behind_affine(subjects, pairs))))


def summary(rows: list[tuple[float, float]]) -> dict[str, Any]:
    """Mean Dice and seconds; pairs that were lost altogether, which a mean hides."""
    dice, seconds = np.array(rows).T
    return {
        "dice": round(float(dice.mean()), 5),
        "median": round(float(np.median(dice)), 5),
        "lost": int((dice < 0.1).sum()),
        "seconds": round(float(seconds.mean()), 3),
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Dice and folding of the validation pairs on the way, and both of the test pairs, as trained and refined."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    rising, folding, tested = figure.subplots(1, 3)
    floor = 1e-4  # percent: nothing folds
    refined, no_network, syn_key = next(iter(REFINERS)), list(WITHOUT_NETWORK)[-1], "test ANTsPy SyN behind our affine"
    for method, colour in zip(COMPARED, ("tab:gray", "tab:blue", "tab:orange"), strict=True):
        runs = [row for key, row in results.items() if key.rpartition("-")[0] == method]
        seconds, dice, folds = np.array([run["curve"] for run in runs]).transpose(2, 0, 1)
        for axes, values in ((rising, dice), (folding, np.maximum(folds, floor))):
            axes.plot(seconds.mean(axis=0), values.mean(axis=0), color=colour, label=method)
            axes.fill_between(seconds.mean(axis=0), values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2)
        rows = [row for key, row in results.items() if key.rpartition("-")[0] == f"test {method}"]
        for marker, key, suffix in (("o", "", ""), ("^", f"{refined}: ", f" + {refined}")):
            points = [max(r[f"{key}folds"], floor) for r in rows], [r[f"{key}dice"] for r in rows]
            tested.plot(*points, marker, color=colour, label=method + suffix)
    tested.axhline(results[syn_key]["dice"], color="black", linewidth=1, label=syn_key.removeprefix("test "))
    without = results["test no network"][f"{no_network}: dice"]
    tested.axhline(without, color="black", linewidth=1, linestyle=":", label=f"no network, {no_network}")
    rising.set(xlabel="processor time (s)", ylabel="Dice, validation pairs")
    folding.set(yscale="log", xlabel="processor time (s)", ylabel="folding (%), validation pairs; 0.0001 is none")
    tested.set(xscale="log", xlabel="folding (%), 0.0001 is none", ylabel="Dice, test pairs")
    rising.legend(fontsize=7)
    tested.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

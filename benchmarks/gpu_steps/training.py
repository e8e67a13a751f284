"""Step b: one training step of each network, without guidance and with it. Needs nibabel and isal beside torch.

A step is forward, loss (with the inner steps), backward and optimiser, as ``ofg train`` makes it; the pair is noise
that lies on the device already. Memory is the peak that torch allocated, weights and optimiser included.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from gpu_steps.context import Context, Figures
from gpu_steps.timing import median, smooth_pair
from ofg_deploy.options.training import GUIDANCE_OPTIONS, PUBLISHED
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.objective import Batch, Objective
from ofg_deploy.train.steady_adam import SteadyAdam

GRID, TINY = (160, 192, 224), (16, 32, 16)
NETWORKS = ("voxelmorph", "voxelmorph-half", "transmorph", "lku-net")
TINY_NETWORKS = ("voxelmorph-half",)  # the smallest
GUIDANCE: dict[str, dict[str, Any]] = {
    "none": {"guidance": "none"},
    "published, K = 5": {**PUBLISHED, "guidance_steps": 5, "ncc_window": 9},
    "greedy, K = 6": {"guidance_optimiser": "greedy", **GUIDANCE_OPTIONS["greedy"]},
}
AIM = "at most 1.3 times the step without guidance"


def measure(context: Context) -> None:
    """Rows in the order of the networks; without guidance first, which the others are compared with."""
    for network in TINY_NETWORKS if context.dry else NETWORKS:
        for precision in ("fp32",) if context.dry else ("fp32", "bf16"):
            alone: dict[str, float] = {}
            for guidance, backend in [
                *(("none", "torch"), ("published, K = 5", "torch"), ("published, K = 5", "triton")),
                *(("greedy, K = 6", "torch"), ("greedy, K = 6", "triton")),
            ]:
                if context.dry and backend == "triton":
                    continue  # seconds in the interpreter, and step a has run the kernels
                on = "" if guidance == "none" else f", {backend}"
                what = f"training step, {network}, {precision}, guidance {guidance}{on}"
                context.attempt(what, partial(step, context, network, precision, guidance, backend, alone), AIM)


def step(
    context: Context, network: str, precision: str, guidance: str, backend: str, alone: dict[str, float]
) -> Figures:
    """Time and memory; ``alone`` keeps the time of the step without guidance."""
    device, grid = torch.device(context.device), TINY if context.dry else GRID
    repeats, warm = (1, 0) if context.dry else (4, 2)
    small = {"ncc_window": 3} if context.dry else {}
    config = TrainConfig(
        NetworkInput(grid, (1.0, 1.0, 1.0), Intensity(), "none"),
        network=network,
        epochs=10,
        precision=precision,
        **{"lr": 1e-4, **GUIDANCE[guidance], **small},
    )
    torch.manual_seed(0)
    model = build_network(network, grid).to(device, memory_format=torch.channels_last_3d)
    optimiser = SteadyAdam(model.parameters(), config.lr)
    # On a CPU the inner steps in plain torch, so that the row is what it says.
    objective = Objective(config, device, backend if config.guidance == "ofg" else "auto")
    _, moving, fixed = smooth_pair(grid, context.device)
    batch = Batch(moving, fixed)

    def once() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            field = model(batch.moving, batch.fixed)
        loss = objective(field, batch, config.epochs - 1).loss  # in the last epoch guidance has begun
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    taken = median(once, context.device, repeats, warm)
    if guidance == "none":
        alone["s"] = taken
    found: Figures = {"ms": 1e3 * taken}
    if guidance != "none" and alone:
        found["times the step without guidance"] = taken / alone["s"]
        found["share of the inner steps"] = 1 - alone["s"] / taken
    if device.type == "cuda":
        found["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found

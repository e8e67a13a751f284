"""A network after a few training steps on two heads: what its graph costs does not depend on how long they were."""

from __future__ import annotations

from typing import Any

import torch

from gpu_steps.models import make_pair
from gpu_steps.phantom import Shape
from ofg_deploy.options.training import PUBLISHED
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.objective import Batch, Objective


def trained(name: str, device: str, grid: Shape, steps: int) -> Any:
    """The network on the CPU, ready to be exported for any grid of multiples."""
    config = TrainConfig(
        NetworkInput(grid, (1.0, 1.0, 1.0), Intensity(), "none"), network=name, **{**PUBLISHED, "ncc_window": 5}
    )
    pair = make_pair(grid)[0]
    batch = Batch(*(torch.from_numpy(image)[None, None].to(device) for image in (pair.moving, pair.fixed)))
    torch.manual_seed(0)
    network = build_network(name, grid).to(device)
    optimiser = torch.optim.Adam(network.parameters(), config.lr, amsgrad=True)
    objective = Objective(config, torch.device(device))
    for _ in range(steps):
        objective(network(batch.moving, batch.fixed), batch, config.epochs - 1).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return network.cpu().eval()

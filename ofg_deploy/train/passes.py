"""A training step of a network that will be asked several times over one pair: it may begin where it left off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.greedy import compose
from ofg_deploy.train.losses import warp

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def passes_before(config: TrainConfig, epoch: int, step: int) -> int:
    """How many passes a step begins after: 0 to ``config.passes - 1``, each for the same share of the steps.

    The same in all processes, which have to call their networks equally often.

    Args:
        epoch: counted from 0. step: of the epoch, from 1.
    """
    if config.passes == 1:
        return 0
    return int(np.random.default_rng((config.seed, epoch, step)).integers(config.passes))


def predict_after(network: Network, moving: torch.Tensor, fixed: torch.Tensor, before: int) -> torch.Tensor:
    """The field (N, 3, X, Y, Z) of the whole after one pass more than ``before``; only the last has a gradient.

    As ``ofg_deploy.passes`` does it: the moving image is sampled from ``moving`` by the field so far, edge values held,
    and the update is composed with that field.

    Args:
        moving, fixed: (N, 1, X, Y, Z) in 0..1.
    """
    if not before:
        return network(moving, fixed)
    with torch.no_grad():
        field = network(moving, fixed).float()
        for _ in range(before - 1):
            field = compose(field, network(warp(moving, field, beyond="border"), fixed).float())
        moved = warp(moving, field, beyond="border")
    return compose(field, network(moved, fixed).float())

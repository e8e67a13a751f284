"""``hours``: a run that ends in time. Its length and learning rate come from what a step takes on this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta

from ofg_deploy.errors import UsageError
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.pairs import DEFAULT_PAIRS

PUBLISHED = (500, DEFAULT_PAIRS, 1e-4)  # epochs, pairs of each, learning rate
# Highest rates that were tried and held: with clipped gradients (docs/guidance.md), or in benchmarks/networks.py.
HIGHEST_RATE = {"voxelmorph": 3e-3, "voxelmorph-2": 3e-3, "voxelmorph-half": 3e-3, "lku-net": 1e-3}
OF_OTHERS = 4e-4
UNCLIPPED = 2e-3
RESERVE = 0.85  # of the time that is left; the rest is for reading pairs, updates of the weights and other work here
VALIDATING = 0.1  # at most this share of the time goes into validation
AFTER_EPOCH_S = 1.0  # checkpoint, curve, logs
MOST_EPOCHS, FEWEST_STEPS = 50, 10  # of a run; of an epoch
TOO_SHORT = 500  # steps; below it a network has hardly begun to learn


@dataclass(frozen=True)
class Budget:
    """How long a run may take.

    Attributes:
        hours: in all, the preparation of pairs included.
        given: options by field of ``TrainConfig`` that the user named; they stay as they are.

    Raises:
        UsageError: no such time, or nothing left to plan.
    """

    hours: float
    given: frozenset[str]

    def __post_init__(self) -> None:
        if not 0 < self.hours < math.inf:
            raise UsageError(f"`hours` {self.hours:g}: give the time the run may take, above 0")
        if {"epochs", "steps_per_epoch"} <= self.given:
            raise UsageError("`hours` plans the length of the run: leave out `epochs` or `steps_per_epoch`")

    @property
    def most_pairs(self) -> int:
        """Training pairs that are prepared: as usual for an hour or more, in proportion for less, at least 20."""
        return min(DEFAULT_PAIRS, max(20, round(DEFAULT_PAIRS * self.hours)))


@dataclass(frozen=True)
class Costs:
    """Seconds that were measured on this machine.

    Attributes:
        step: of one batch of each process, without reading it.
        validation: of all validation pairs.
        left: of the budget.
        pairs_at_once: pairs in a batch of all processes.
    """

    step: float
    validation: float
    left: float
    pairs_at_once: int = 1


def plan(config: TrainConfig, budget: Budget, costs: Costs) -> TrainConfig:
    """The configuration with epochs, steps, learning rate and validations that fit; what was given stays.

    The learning rate follows the length: rate x steps is that of the published run (500 epochs of 400 pairs at 1e-4),
    up to the highest rate that was tried with the network.
    """
    usable = max(costs.left, 0.0) * RESERVE
    steps = max(1, int(usable * (1 - VALIDATING) / costs.step))
    ways = 2 if config.two_way else 1
    each = costs.pairs_at_once * config.accumulate  # pairs of an optimiser step, the least an epoch can have
    if "epochs" in budget.given:
        epochs = config.epochs
    elif "steps_per_epoch" in budget.given and config.steps_per_epoch:
        epochs = max(1, steps * costs.pairs_at_once // (config.steps_per_epoch * ways))
    else:
        epochs = min(MOST_EPOCHS, max(1, steps // FEWEST_STEPS), max(1, int(VALIDATING * usable / AFTER_EPOCH_S)))
    per_epoch = config.steps_per_epoch
    if "steps_per_epoch" not in budget.given:
        pairs = steps * costs.pairs_at_once // (epochs * ways)
        per_epoch = max(each // ways or 1, pairs // each * each)
    validations = max(1, int(VALIDATING * usable / max(costs.validation, 1e-6)))
    every = config.validate_every if "validate_every" in budget.given else max(1, -(-epochs // validations))
    updates = epochs * (per_epoch or 0) * ways / each
    lr = config.lr if "lr" in budget.given else rate_for(config, updates)
    return replace(config, epochs=epochs, steps_per_epoch=per_epoch, validate_every=every, lr=lr)


def describe(config: TrainConfig, budget: Budget, costs: Costs) -> list[str]:
    """What was planned and what a published run would take, a line each; the last warns where the time is too short."""
    per_epoch, ways = config.steps_per_epoch or 0, 2 if config.two_way else 1
    epochs, pairs, lr = PUBLISHED
    full = timedelta(seconds=round(epochs * pairs * ways / costs.pairs_at_once * costs.step))
    lines = [
        f"planned for {budget.hours:g} h: {config.network}, {config.epochs} epochs of {per_epoch} pairs, learning rate "
        f"{config.lr:.2g}, validated every {config.validate_every}; the published length ({epochs} epochs of {pairs} "
        f"pairs at {lr:g}) would take {full} with this network on this machine"
    ]
    total = config.epochs * per_epoch * ways // costs.pairs_at_once
    if total < TOO_SHORT:
        lines.append(
            f"only {total} steps fit into {budget.hours:g} h, a network hardly learns from fewer than {TOO_SHORT}: "
            "give more `hours` or a larger `spacing`, or register without a network (ofg register -m none)"
        )
    return lines


def updates_of(config: TrainConfig, pairs: int, processes: int) -> float:
    """Steps of the optimiser in a whole run over ``pairs`` training pairs."""
    ways = 2 if config.two_way else 1
    return (
        config.epochs * (config.steps_per_epoch or pairs) * ways / (config.batch_size * config.accumulate * processes)
    )


def rate_for(config: TrainConfig, updates: float) -> float:
    """The learning rate of a run of so many optimiser steps: as published for the published length, more for less.

    Rate x steps is that of the published run, between its rate and the highest that was tried with the network.
    """
    epochs, pairs, lr = PUBLISHED
    highest = HIGHEST_RATE.get(config.network, OF_OTHERS)
    if not config.steady:
        highest = min(highest, UNCLIPPED)
    return float(f"{min(highest, max(lr, lr * epochs * pairs / max(updates, 1))):.2g}")

"""Which pairs a process sees in which order: decided by seed, epoch and the number of processes alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ofg_deploy.errors import DeviceError, InputError
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.dataset import load_cached
from ofg_deploy.train.labels import load_network_labels
from ofg_deploy.train.objective import Batch


@dataclass(frozen=True)
class Item:
    """One visit of a pair."""

    pair: int
    swapped: bool
    flipped: tuple[int, ...]  # array axes


@dataclass(frozen=True)
class TrainingFiles:
    """Prepared pairs on disk; ``labels`` is empty, or one file a pair."""

    pairs: list[Path]
    labels: list[Path]


def epoch_items(config: TrainConfig, pairs: int, epoch: int, processes: int) -> list[Item]:
    """Every item of an epoch, in order; as many as whole optimiser steps of all processes need."""
    rng = np.random.default_rng((config.seed, epoch))
    ways = (False, True) if config.two_way else (False,)
    per_step = processes * config.batch_size * config.accumulate
    wanted = len(ways) * (config.steps_per_epoch or pairs)
    wanted = -(-wanted // per_step) * per_step
    visits = -(-wanted // len(ways))
    order = np.concatenate([rng.permutation(pairs) for _ in range(-(-visits // pairs))])[:visits]
    # Drawn only if used: the order of pairs must not change with other options.
    flips = rng.integers(0, 2, (visits, 3)) if config.flip else np.zeros((visits, 3), int)
    items = [
        Item(int(pair), swapped, tuple(int(axis) for axis in np.flatnonzero(flip)))
        for pair, flip in zip(order, flips, strict=True)
        for swapped in ways
    ]
    return items[:wanted]


def micro_batches(config: TrainConfig, items: list[Item], process: int, processes: int) -> list[list[Item]]:
    """The batches of one process: together, the processes see the same items per step as one with all of them."""
    mine = items[process::processes]
    return [mine[n : n + config.batch_size] for n in range(0, len(mine), config.batch_size)]


def load_batches(
    files: TrainingFiles, batches: list[list[Item]], workers: int, pinned: bool = False
) -> Iterator[Batch]:
    """Read batches from the cache, ahead of their use if there are ``workers``.

    Args:
        pinned: into memory that a GPU reads by itself.

    Raises:
        InputError: a damaged cache file. DeviceError: too little shared memory for the workers.
    """
    loader = DataLoader(
        _Pairs(files), batch_sampler=batches, num_workers=workers, collate_fn=_collate, pin_memory=pinned
    )
    try:
        yield from loader
    except InputError as error:  # a worker hands over its whole traceback
        if workers == 0:
            raise
        raise InputError(str(error).strip().splitlines()[-1].removeprefix("ofg_deploy.errors.InputError: ")) from None

    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DeviceError("a reading process died: use `loader_workers=0`, or give it more shared memory") from error


class _Pairs(Dataset):
    def __init__(self, files: TrainingFiles) -> None:
        self._files = files

    def __getitem__(self, item: Item) -> list[np.ndarray]:
        pair = load_cached(self._files.pairs[item.pair])
        arrays = [pair.moving, pair.fixed]
        if self._files.labels:
            arrays += load_network_labels(self._files.labels[item.pair])
        if item.swapped:
            arrays = [array for two in zip(arrays[1::2], arrays[::2], strict=True) for array in two]
        return [np.ascontiguousarray(np.flip(array, item.flipped)) for array in arrays]


def _collate(items: list[list[np.ndarray]]) -> Batch:
    moving, fixed, *labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*items, strict=True))
    return Batch(moving[:, None], fixed[:, None], *labels)

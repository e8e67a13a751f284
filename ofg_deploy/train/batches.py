"""Which pairs a process sees in which order: decided by seed, epoch and the number of processes alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ofg_deploy.errors import DeviceError, InputError
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.dataset import load_cached
from ofg_deploy.train.guides import load_guides
from ofg_deploy.train.labels import load_network_labels
from ofg_deploy.train.objective import Batch
from ofg_deploy.train.synthesis.source import Synthesis

Arrays = dict[str, np.ndarray]  # (X, Y, Z) of a pair, named as in ``Batch``


@dataclass(frozen=True)
class Item:
    """One visit of a pair."""

    pair: int
    swapped: bool
    flipped: tuple[int, ...]  # array axes


@dataclass(frozen=True)
class TrainingFiles:
    """What training pairs are made from.

    Attributes:
        pairs: prepared pairs on disk, or the people of a synthesised run.
        labels, guides: empty, or one file a pair.
        synthesis: renders the pairs; None where they are on disk.
    """

    pairs: list[Path]
    labels: list[Path]
    guides: list[Path] = field(default_factory=list)
    synthesis: Synthesis | None = None


def epoch_items(config: TrainConfig, pairs: int, epoch: int, processes: int) -> list[Item]:
    """Every item of an epoch, in order; as many as whole optimiser steps of all processes need.

    Args:
        pairs: how many there are; in a synthesised run no pair comes twice, and they are counted over all epochs.
    """
    rng = np.random.default_rng((config.seed, epoch))
    ways = (False, True) if config.two_way else (False,)
    per_step = processes * config.batch_size * config.accumulate
    wanted = len(ways) * (config.steps_per_epoch or pairs)
    wanted = -(-wanted // per_step) * per_step
    visits = -(-wanted // len(ways))
    if config.synthesise:
        order = epoch * visits + np.arange(visits)
    else:
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
    """Read batches from the cache or render them, ahead of their use if there are ``workers``.

    Args:
        workers: processes, or threads that render.
        pinned: into memory that a GPU reads by itself.

    Raises:
        InputError: a damaged cache file. DeviceError: too little shared memory for the workers.
    """
    if files.synthesis is not None:
        yield from _rendered(files.synthesis, batches, workers, pinned)
        return
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


def _rendered(synthesis: Synthesis, batches: list[list[Item]], workers: int, pinned: bool) -> Iterator[Batch]:
    """Threads, not processes: they share the people that are deformed already, and stay from epoch to epoch."""

    def one(items: list[Item]) -> Batch:
        batch = _collate([_turned(synthesis.pair(item.pair), item) for item in items])
        return batch.pin_memory() if pinned else batch

    if not workers:
        yield from map(one, batches)
        return
    with ThreadPoolExecutor(workers) as pool:
        rest = iter(batches)
        ahead: list[Future[Batch]] = [pool.submit(one, items) for items in islice(rest, 2 * workers)]
        for items in chain(rest, [None] * len(ahead)):
            batch = ahead.pop(0).result()
            if items is not None:
                ahead.append(pool.submit(one, items))
            yield batch


class _Pairs(Dataset):
    def __init__(self, files: TrainingFiles) -> None:
        self._files = files

    def __getitem__(self, item: Item) -> Arrays:
        pair = load_cached(self._files.pairs[item.pair])
        arrays = {"moving": pair.moving, "fixed": pair.fixed}
        if self._files.labels:
            arrays["moving_labels"], arrays["fixed_labels"] = load_network_labels(self._files.labels[item.pair])
        if self._files.guides:
            arrays["moving_guide"], arrays["fixed_guide"] = load_guides(self._files.guides[item.pair])
        return _turned(arrays, item)


def _turned(arrays: Arrays, item: Item) -> Arrays:
    """The same pair as this visit sees it: swapped, mirrored."""
    if item.swapped:
        other = {"moving": "fixed", "fixed": "moving"}
        arrays = {f"{other[(parts := name.partition('_'))[0]]}{parts[1]}{parts[2]}": a for name, a in arrays.items()}
    return {name: np.ascontiguousarray(np.flip(array, item.flipped)) for name, array in arrays.items()}


def _collate(items: list[Arrays]) -> Batch:
    stacked = {name: torch.from_numpy(np.stack([arrays[name] for arrays in items])) for name in items[0]}
    return Batch(**{name: t if name.endswith("_labels") else t[:, None] for name, t in stacked.items()})

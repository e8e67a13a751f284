"""Label maps of training and validation pairs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy import metrics
from ofg_deploy.errors import InputError
from ofg_deploy.field import Field, resample, sample
from ofg_deploy.geometry import Grid, lattice, transform_points
from ofg_deploy.nifti import Volume, load_labels
from ofg_deploy.outputs import staged
from ofg_deploy.preprocess import PreparedPair
from ofg_deploy.train.dataset import cached, file_digest, load_cached
from ofg_deploy.train.pairs import PairFiles

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class LabelledPair:
    """Labels of a validation pair: the fixed ones on the network's grid, the moving ones where they were drawn."""

    fixed_labels: npt.NDArray[Any]
    moving_labels: Volume


def load_label_pair(pair: PairFiles, grid: Grid, evaluated: tuple[int, ...] | None = None) -> LabelledPair | None:
    """Labels of a pair, or None if it has none; numbers outside ``evaluated`` become background.

    Raises:
        InputError: unreadable labels.
    """
    if pair.fixed_labels is None or pair.moving_labels is None:
        return None
    fixed, moving = _evaluated(pair, evaluated)
    return LabelledPair(resample(fixed.data, fixed.grid, grid, np.eye(4), order=0), moving)


def dice_of_field(pair: PreparedPair, labels: LabelledPair, field: Field) -> float:
    """Mean Dice on the network's grid, moving labels fetched once from their own grid (nearest)."""
    points = transform_points(pair.grid.world_from_vox, lattice(pair.grid.shape) + field)
    moving = labels.moving_labels
    index = transform_points(moving.grid.vox_from_world @ pair.moving_from_fixed, points)
    warped = sample(moving.data, index, order=0)
    return metrics.mean(metrics.dice(labels.fixed_labels, warped)) or 0.0


def prepare_labels(
    pairs: tuple[PairFiles, ...], prepared: list[Path], evaluated: tuple[int, ...] | None = None
) -> list[Path]:
    """Both label maps of every pair on the network's grid, cached beside the prepared pairs; the files in order.

    Numbers outside ``evaluated`` become background.

    Raises:
        InputError: a pair has no labels, or unreadable ones.
    """
    return [_prepare(pair, file, evaluated) for pair, file in zip(pairs, prepared, strict=True)]


def load_network_labels(file: Path) -> list[Labels]:
    """Moving and fixed labels (X, Y, Z) as ``prepare_labels`` wrote them."""
    with cached(file) as stored:
        return [stored["moving"], stored["fixed"]]


def _evaluated(pair: PairFiles, numbers: tuple[int, ...] | None) -> list[Volume]:
    both = [_only(load_labels(path), numbers) for path in (pair.fixed_labels, pair.moving_labels)]
    if not any(labels.data.any() for labels in both):
        wanted = "other than 0" if numbers is None else f"among {', '.join(map(str, numbers[:5]))}, ..."
        raise InputError(f"{pair.fixed_labels} and {pair.moving_labels} hold no label {wanted}: another `recipe`?")
    return both


def _only(labels: Volume, numbers: tuple[int, ...] | None) -> Volume:
    if numbers is None:
        return labels
    return replace(labels, data=np.where(np.isin(labels.data, numbers), labels.data, 0).astype(labels.data.dtype))


def _prepare(pair: PairFiles, prepared: Path, evaluated: tuple[int, ...] | None) -> Path:
    if pair.fixed_labels is None or pair.moving_labels is None:
        raise InputError(f"`dice_weight` needs labels for every training pair: {pair.fixed} / {pair.moving} has none")
    files = (pair.fixed_labels, pair.moving_labels)
    digest = hashlib.sha256(json.dumps([*map(file_digest, files), evaluated]).encode())
    file = prepared.with_name(f"{prepared.stem}-labels-{digest.hexdigest()[:16]}.npz")
    if not file.exists():
        on = load_cached(prepared)
        fixed, moving = _evaluated(pair, evaluated)
        with staged([file], overwrite=True) as [partial]:
            np.savez(
                partial,
                fixed=resample(fixed.data, fixed.grid, on.grid, np.eye(4), order=0).astype(np.int32),
                moving=resample(moving.data, moving.grid, on.grid, on.moving_from_fixed, order=0).astype(np.int32),
            )
    return file

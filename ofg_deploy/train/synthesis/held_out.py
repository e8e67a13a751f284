"""Validation pairs of a synthesised run: rendered once, as files, and then prepared as everybody's images are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ofg_deploy.field import resample
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import save_volume
from ofg_deploy.outputs import staged
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.dataset import file_digest
from ofg_deploy.train.pairs import PairFiles
from ofg_deploy.train.synthesis.contrasts import Contrasts
from ofg_deploy.train.synthesis.label_maps import Coded, coded
from ofg_deploy.train.synthesis.rendering import Renderer

VERSION = 1  # of what is rendered; raise it when that changes
SEED = 20  # the same pairs look the same whatever the seed of a run, so that runs can be compared


def with_images(
    pairs: tuple[PairFiles, ...], config: TrainConfig, cache: Path, advance: Callable[[], None] = lambda: None
) -> tuple[PairFiles, ...]:
    """Pairs of label maps with rendered images instead, undeformed and not aligned; others as they are.

    Where the run is not a synthesised one nothing changes. Voxels are half as large as the network's, or as large as
    those of the label map if these are larger.

    Args:
        pairs: whose images are label maps.
        cache: keeps the files.
        advance: called once for each pair.

    Raises:
        InputError: a label map that cannot be read.
    """
    if not config.synthesise:
        return pairs
    cache.mkdir(parents=True, exist_ok=True)
    done = []
    for number, pair in enumerate(pairs):
        rng = np.random.default_rng((SEED, number))
        head = bool(rng.random() < config.skull)
        fixed, moving = (
            _rendered(p, number, side, head, config, cache) for side, p in enumerate((pair.fixed, pair.moving))
        )
        done.append(PairFiles(fixed[0], moving[0], fixed[1], moving[1]))
        advance()
    return tuple(done)


def _rendered(path: Path, pair: int, side: int, head: bool, config: TrainConfig, cache: Path) -> tuple[Path, Path]:
    """Image and label map of one side."""
    assert config.expects is not None
    voxel = min(config.expects.spacing_mm) / 2
    what = [VERSION, SEED, pair, side, head, config.contrasts, voxel, file_digest(path)]
    name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
    image, labels = (cache / f"{name}{end}.nii.gz" for end in ("", "_labels"))
    if image.exists() and labels.exists():
        return image, labels
    one = _on_voxels(coded(path, shell=head), voxel)
    rng = np.random.default_rng((SEED, pair, side))
    renderer = Renderer(one.grid.spacing_mm, 1)
    seen = renderer.scan(one, Contrasts.parse(config.contrasts).draw(rng), head, rng)
    numbers = np.where(one.outer, 0, one.numbers).astype(np.int32)
    with staged([image, labels], overwrite=True) as [first, second]:
        save_volume(first, np.rint(1000 * seen).astype(np.int16), one.grid)
        save_volume(second, numbers[one.codes], one.grid)
    return image, labels


def _on_voxels(one: Coded, voxel_mm: float) -> Coded:
    """The same field of view in voxels of at least this size."""
    spacing = np.maximum(one.grid.spacing_mm, voxel_mm)
    step = spacing / one.grid.spacing_mm
    if np.allclose(step, 1, atol=0.01):
        return one
    x, y, z = (max(2, int(n // s)) for n, s in zip(one.grid.shape, step, strict=True))
    matrix = one.grid.world_from_vox @ np.diag([*step, 1.0])
    matrix[:3, 3] += one.grid.world_from_vox[:3, :3] @ ((step - 1) / 2)
    grid = Grid((x, y, z), matrix)
    return replace(one, codes=resample(one.codes, one.grid, grid, np.eye(4), order=0), grid=grid)

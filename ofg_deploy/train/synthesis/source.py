"""Pairs of two different people, each a function of the seed and of how many pairs were drawn before it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.geometry import Grid, network_grid, transform_points
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import NetworkInput
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.synthesis.contrasts import Contrasts
from ofg_deploy.train.synthesis.deformation import deformed
from ofg_deploy.train.synthesis.label_maps import Coded
from ofg_deploy.train.synthesis.people import Person, load_person
from ofg_deploy.train.synthesis.rendering import Renderer

POOL = 16  # deformed people that pairs are drawn from
RENEWED_EVERY = 4  # pairs after which one of them is replaced: on average each is rendered 8 times, in different pairs
FINEST = 2  # times as fine as the network's grid are codes, where the label maps are


@dataclass(frozen=True, eq=False)
class Deformed:
    """Somebody on the finer grid.

    Attributes:
        coded: the label codes.
        guide: the clean rendering on the network's grid, made once for all pairs; None without guides.
    """

    coded: Coded
    guide: npt.NDArray[np.float32] | None


class Synthesis:
    """Renders the pairs of a run.

    Pair n draws two people from a pool, which deformed people enter and leave in an order that the seed alone decides.
    So pair n is the same whatever was rendered before it, in whichever process. Threads may share one.

    Args:
        files: of ``prepare_people``.
    """

    def __init__(self, files: Sequence[Path], config: TrainConfig) -> None:
        assert config.expects is not None
        self._files, self._config, self._expects = tuple(files), config, config.expects
        people = [load_person(file) for file in files]
        self.grid = common_grid(people, config.expects)
        finest = np.median([min(p.coded.grid.spacing_mm) for p in people])
        self.finer = int(np.clip(round(min(config.expects.spacing_mm) / finest), 1, FINEST))
        self._fine = finer_grid(self.grid, self.finer)
        self._renderer = Renderer(config.expects.spacing_mm, self.finer)
        self._contrasts = Contrasts.parse(config.contrasts)
        self._pool: dict[int, Deformed] = {}
        self._lock = threading.Lock()

    def pair(self, n: int) -> dict[str, npt.NDArray[Any]]:
        """The pair that ``n`` others were drawn before: (X, Y, Z) on the network's grid, by their names in a batch.

        ``moving`` and ``fixed`` as the intensity recipe makes them; with a Dice loss their ``_labels``, in which what
        lies around the brain is 0; with guides the clean renderings, ``moving_guide`` and ``fixed_guide``.

        Raises:
            InputError: a damaged file in the cache.
        """
        rng = np.random.default_rng((self._config.seed, 1, n))
        first = n // RENEWED_EVERY
        there = range(first, first + POOL)
        fixed = int(rng.integers(POOL)) + first
        others = [m for m in there if self._who(m) != self._who(fixed)]
        moving = others[int(rng.integers(len(others)))]
        head = bool(rng.random() < self._config.skull)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, one in {"fixed": self._deformed(fixed, first), "moving": self._deformed(moving, first)}.items():
            arrays[name] = self._image(one, head, rng)
            if self._config.dice_weight:
                arrays[f"{name}_labels"] = self._labels(one)
            if one.guide is not None:
                arrays[f"{name}_guide"] = one.guide
        return arrays

    def _image(self, one: Deformed, head: bool, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        seen = self._renderer.scan(one.coded, self._contrasts.draw(rng), head, rng)
        return self._expects.intensity.apply(Volume(seen, self.grid, self._files[0], in_memory=True))

    def _labels(self, one: Deformed) -> npt.NDArray[np.int32]:
        """Of one of the finer voxels in each voxel, the same one in both images."""
        numbers = np.where(one.coded.outer, 0, one.coded.numbers).astype(np.int32)
        return numbers[one.coded.codes[:: self.finer, :: self.finer, :: self.finer]]

    def _who(self, member: int) -> int:
        """Which label map a member of the pool comes from: everybody once, in random order, then again."""
        people = len(self._files)
        return int(np.random.default_rng((self._config.seed, 2, member // people)).permutation(people)[member % people])

    def _deformed(self, member: int, first: int) -> Deformed:
        with self._lock:
            # Those of a few pairs ago stay: threads that read ahead are not all at the same one.
            for old in [m for m in self._pool if m < first - POOL]:
                del self._pool[old]
            if member not in self._pool:
                person = load_person(self._files[self._who(member)])
                rng = np.random.default_rng((self._config.seed, 3, member))
                coded = Coded(deformed(person, self._fine, rng), person.coded.numbers, self._fine)
                guide = self._renderer.clean(coded) if self._config.guides else None
                self._pool[member] = Deformed(coded, guide)
            return self._pool[member]


def common_grid(people: Sequence[Person], expects: NetworkInput) -> Grid:
    """The network's grid in the common frame, along the axes of the map that is the frame, around where brains are."""
    centres = [transform_points(p.frame_from_own, p.centre_mm) for p in people]
    frame = next((p for p in people if np.array_equal(p.own_from_frame, np.eye(4))), people[0])
    grid = network_grid(frame.coded.grid, expects.shape, expects.spacing_mm, expects.axes)
    matrix = grid.world_from_vox.copy()
    matrix[:3, 3] = np.mean(centres, axis=0) - matrix[:3, :3] @ (np.array(grid.shape) - 1) / 2
    return Grid(grid.shape, matrix)


def finer_grid(grid: Grid, times: int) -> Grid:
    """Each voxel divided into ``times`` along each axis."""
    x, y, z = (n * times for n in grid.shape)
    matrix = grid.world_from_vox @ np.diag([1 / times] * 3 + [1.0])
    matrix[:3, 3] = (grid.world_from_vox @ [*[(1 / times - 1) / 2] * 3, 1.0])[:3]
    return Grid((x, y, z), matrix)

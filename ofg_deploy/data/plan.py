"""Grid, spacing and batch for a set of images and a memory."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ofg_deploy.data.description import Plan
from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Grid, Shape, Spacing, canonical
from ofg_deploy.memory import free_ram
from ofg_deploy.preprocess import check_spacing

DIVISOR = 16  # of the default network; training rounds up for one that needs more
# Of one training step (network, inner optimiser, gradients) for each voxel of the grid. Measured for voxelmorph: 960 at
# 128^3 in float32. The transformers keep more; 2500 leaves 2.6 times that.
BYTES_PER_VOXEL = 2500
FIXED_BYTES = 1024**3  # weights, optimiser state and the libraries themselves
SHARE = 0.6  # of the memory at hand; the rest is for everything else that runs
MAX_BATCH = 8
COARSER = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)


@dataclass(frozen=True)
class Memory:
    """Bytes at hand, and where."""

    size: int
    where: str


def plan_grid(grids: Sequence[Grid], divisor: int, spacing: Spacing | None, axes: str = "RAS") -> tuple[Shape, Spacing]:
    """The given or median spacing, and the smallest multiple of ``divisor`` that holds the largest extent of each axis.

    All in the order of ``axes``, along which the network's grid is laid out.

    Raises:
        UsageError: a spacing that is none.
    """
    if spacing is not None:
        check_spacing(spacing)
    turned = [canonical(g, axes) for g in grids]
    step = np.round(np.median([g.spacing_mm for g in turned], axis=0), 3) if spacing is None else np.array(spacing)
    extent = np.max([np.array(g.shape) * g.spacing_mm for g in turned], axis=0)
    shape = [int(-(-round(e / s, 2) // divisor)) * divisor for e, s in zip(extent, step, strict=True)]
    return (shape[0], shape[1], shape[2]), (float(step[0]), float(step[1]), float(step[2]))


def make_plan(grids: Sequence[Grid], memory: Memory) -> Plan:
    """The finest spacing not below the median at which one pair fits, and how many pairs fit at once.

    One pair takes voxels x 2500 bytes, plus 1 GiB once; 60 % of the memory may be used. Where the median spacing needs
    more, all axes become coarser by one factor out of 1.25, 1.5, 2, 2.5, 3, 4.

    Raises:
        InputError: even four times the median spacing does not fit.
    """
    budget = SHARE * memory.size - FIXED_BYTES
    _, median = plan_grid(grids, DIVISOR, None)
    for factor in COARSER:
        x, y, z = (round(s * factor, 3) for s in median)
        shape, spacing = plan_grid(grids, DIVISOR, (x, y, z))
        pair = int(np.prod(shape)) * BYTES_PER_VOXEL
        if pair <= budget:
            coarser = "" if factor == 1.0 else f"; {factor:g} times coarser than the images, to fit"
            words = f"{memory.where} {memory.size / 1e9:.1f} GB, a pair needs about {pair / 1e9:.2f} GB{coarser}"
            return Plan(shape, spacing, max(1, min(MAX_BATCH, int(budget // pair))), words)
    raise InputError(
        f"{memory.where} of {memory.size / 1e9:.1f} GB holds no pair of these images even at {COARSER[-1]:g} times "
        "their spacing: crop them, or plan on a machine with more memory"
    )


def memory_at_hand() -> Memory:
    """The memory of the largest CUDA device if the driver's tool lists one, else the RAM that is free now."""
    if tool := shutil.which("nvidia-smi"):
        command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        sizes = [int(line) for line in done.stdout.split() if line.isdigit()]
        if done.returncode == 0 and sizes:
            return Memory(max(sizes) * 1024**2, "CUDA memory")
    return Memory(free_ram(), "free RAM")

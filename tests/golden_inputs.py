"""Weights and images that follow from names and numbers, so that a few figures pin a network without any large file."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from scipy.ndimage import gaussian_filter


def golden_state(spec: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights that follow from names, as ../shared/reference/README.md defines them."""
    state = {}
    for name, shape in spec.items():
        z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        value = z / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1 * z + name.endswith("weight")
        if name.endswith("running_var"):
            value = np.abs(0.1 * z) + 1
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state


def golden_pair(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two smooth images (X, Y, Z) in 0..1 that have something in common and no symmetry."""
    random = np.random.RandomState(11)
    common, *own = (gaussian_filter(random.standard_normal(shape), 3.0) for _ in range(3))
    images = [common + 0.5 * each for each in own]
    return tuple(torch.from_numpy(((i - i.min()) / np.ptp(i)).astype(np.float32)) for i in images)  # type: ignore[return-value]


def probes(shape: tuple[int, ...], count: int = 12) -> tuple[np.ndarray, ...]:
    """Indices of ``count`` entries spread over an array."""
    return np.unravel_index(np.random.RandomState(3).choice(int(np.prod(shape)), count, replace=False), shape)

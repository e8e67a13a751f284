"""Seconds of a call on a device, and smooth pairs to call it with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

GIB = 2**30


def seconds(call: Callable[[], Any], device: str, repeats: int, warm: int = 1) -> list[float]:
    """By the clock, each call until the device has finished it; ``warm`` calls before are not counted."""
    taken = []
    for turn in range(warm + repeats):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        if turn >= warm:
            taken.append(time.perf_counter() - start)
    return taken


def median(call: Callable[[], Any], device: str, repeats: int, warm: int = 1) -> float:
    return statistics.median(seconds(call, device, repeats, warm))


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def copy_bandwidth(device: str, count: int) -> float:
    """Bytes per second, read and written, of copying ``count`` bytes within the device's memory."""
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / median(lambda: target.copy_(source), device, 10, warm=3)


def smooth_pair(shape: Sequence[int], device: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Field (1, 3, X, Y, Z) of about 1.5 voxels, moving and fixed (1, 1, X, Y, Z) in 0..1: noise, smoothed.

    Structure everywhere: where there is none, rounding decides in which direction Adam goes.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    widest = (min(shape) - 1) // 2 * 2 + 1
    for channels, width in ((3, min(9, widest)), (1, 3), (1, 3)):
        noise = torch.randn((1, channels, *shape), generator=generator)
        for _ in range(2):
            noise = functional.avg_pool3d(noise, width, 1, width // 2, count_include_pad=False)
        made.append(noise / noise.std())
    images = [(0.5 + 0.2 * image).clamp(0, 1) for image in made[1:]]
    return [t.to(device, dtype) for t in (1.5 * made[0], *images)]

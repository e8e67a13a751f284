"""Compiled work in slabs on the threads of this process.

Not numba's own threads: those of its portable pool end the process when two callers meet, and several pairs may well be
on their way at once. A kernel run here takes ``first, last`` as its last arguments, writes to that range alone and
releases Python's lock, so its result is the same with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from ofg_deploy.kernels.compiled import most_threads

ALONE = 2**16  # voxels below which a thread costs more than it takes over
BLOCK = 2**16  # voxels of a sum of their own: fixed, so that no result depends on the number of threads


def over_slabs(kernel: Callable[..., None], size: int, voxels: int, *arguments: Any) -> None:
    """Call ``kernel(*arguments, first, last)`` for ranges that make up 0..size.

    Args:
        voxels: how much work it is in all.
    """
    workers = min(most_threads(), size) if voxels > ALONE else 1
    if workers <= 1:
        kernel(*arguments, 0, size)
        return
    # More ranges than workers: a core that is shared with other work does not keep the others waiting.
    count = min(4 * workers, size)
    ends = [size * n // count for n in range(count + 1)]
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(kernel, *arguments, a, b) for a, b in pairwise(ends)]:
            done.result()

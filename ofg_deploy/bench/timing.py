"""Runs of several candidates in turn, and what can be said about their ratio on a machine that others use too."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
PAUSE_S = 0.01  # threads of a runtime keep spinning for a moment after its call and would slow whoever comes next


@dataclass(frozen=True)
class Taken:
    """One call: seconds by the clock, and by the processor over all threads of the process."""

    clock_s: float
    processor_s: float


@dataclass(frozen=True)
class Ratio:
    """How much longer than the baseline.

    Attributes:
        median: of the ratios of calls of the same turn, which cancels slow phases of the machine.
        low, high: 95 % interval of that median, by resampling whole turns (percentile bootstrap; Efron and Tibshirani,
            An Introduction to the Bootstrap, 1993).
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """Of one call, and how it compares with the baseline's.

    Attributes:
        p50_s, p95_s: median and 95th percentile by the clock.
        ratio: by the clock.
        processor_s: median by the processor, and
        processor_ratio: the ratio of that. On one thread it leaves out the waiting for a core, on a busy machine
            most of the noise; on several it holds the threads' waiting for each other.
    """

    p50_s: float
    p95_s: float
    ratio: Ratio
    processor_s: float
    processor_ratio: Ratio


def interleaved(
    calls: dict[str, Callable[[], Taken]], repeats: int, advance: Callable[[], None] = lambda: None
) -> dict[str, list[Taken]]:
    """What each call took by name, one value for each turn; within a turn the order is random.

    Args:
        calls: each runs its candidate once.
        advance: called after every turn.
    """
    taken: dict[str, list[Taken]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)  # neither a drift of the machine nor the neighbour before favours one of them
        for name in order:
            time.sleep(PAUSE_S)
            taken[name].append(calls[name]())
        advance()
    return taken


def latency(taken: Sequence[Taken], baseline: Sequence[Taken]) -> Latency:
    """Figures of one candidate; both sequences hold a value for each turn, in the same order."""
    own, other = (np.array([(t.clock_s, t.processor_s) for t in values]) for values in (taken, baseline))
    p50, p95 = np.percentile(own[:, 0], [50, 95])
    clock, processor = (_ratio(own[:, column] / other[:, column]) for column in (0, 1))
    return Latency(float(p50), float(p95), clock, float(np.median(own[:, 1])), processor)


def _ratio(ratios: npt.NDArray[np.float64]) -> Ratio:
    turns = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[turns], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))

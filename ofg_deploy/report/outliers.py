"""Which pairs of a cohort are unlike the others, and by what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofg_deploy.report.measures import CUT, MEASURES

FEWEST = 8  # pairs; a median and a spread of fewer say nothing about one of them


def robust_z(values: Sequence[float], least: float = 0.0) -> list[float]:
    """How many standard deviations each value lies from the median: 0.6745 (x - median) / MAD.

    Where more than half of the values are alike the median absolute deviation is 0, and the mean absolute deviation
    takes its place, scaled alike: (x - median) / (1.2533 mean|x - median|). All 0 where all values are alike.

    Args:
        least: what the standard deviation is taken for where it is smaller. Hardly any voxel folds in most cohorts, and
            the one pair with three of them is no outlier for that.

    Source: Iglewicz and Hoaglin, How to detect and handle outliers, 1993 (modified z-score).
    """
    array = np.array(values, dtype=np.float64)
    away = array - np.median(array)
    scale = float(np.median(np.abs(away))) / 0.6745 or float(np.mean(np.abs(away))) * 1.253314
    scale = max(scale, least)
    return list(map(float, away / scale)) if scale > 0 else [0.0] * len(array)


def scores(rows: Sequence[dict[str, float | None]]) -> list[tuple[float, str] | None]:
    """For each row of numbers the largest robust z towards the bad side of any judged measure, and that measure.

    None for a row without numbers, or where no measure is known of ``FEWEST`` rows. Never below 0: a pair that is
    better than the others by everything is no outlier.
    """
    found: list[tuple[float, str] | None] = [None] * len(rows)
    for measure in MEASURES:
        known = [(at, value) for at, row in enumerate(rows) if (value := row.get(measure.key)) is not None]
        if measure.worse is None or len(known) < FEWEST:
            continue
        sign = 1.0 if measure.worse == "high" else -1.0
        values = [value for _, value in known]
        ignored = max(measure.floor, measure.relative_floor * abs(float(np.median(values))))
        for (at, _), z in zip(known, robust_z(values, max(measure.unit, ignored / CUT)), strict=True):
            before = found[at]
            if before is None or sign * z > before[0]:
                found[at] = (max(0.0, sign * z), measure.key)
    return found

"""Two sets of registrations of the same pairs, compared pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ofg_deploy.errors import InputError
from ofg_deploy.evaluate.pair import Evaluation
from ofg_deploy.evaluate.picture import draw_differences
from ofg_deploy.evaluate.results import MEASURES, table
from ofg_deploy.locations import portable, portable_command
from ofg_deploy.outputs import staged, to_json
from ofg_deploy.version import __version__

SCHEMA = 1
FILES = ("comparison.csv", "comparison.png", "comparison.json")
# What registrations are compared by, and the direction that is better. Times of the evaluation are no result.
BETTER: dict[str, Literal["higher", "lower"]] = {
    "dice": "higher",
    "hd95_mm": "lower",
    "hd95_l2r": "lower",
    "tre_mean_mm": "lower",
    "tre_median_mm": "lower",
    "tre_p95_mm": "lower",
    "tre_max_mm": "lower",
    "folding_percent": "lower",
    "non_diffeomorphic_percent": "lower",
    "min_jacobian": "higher",
    "sdlogj": "lower",
}
COLUMNS = ["pair", "measure", "first", "second", "difference"]
MEANING = (
    "difference is second minus first, pair by pair; low and high its 95 % interval by Student's t; p of Wilcoxon's "
    "signed-rank test, two-sided, of the differences that are not 0; second_better counts the pairs in which the "
    "second set is better"
)


@dataclass(frozen=True)
class Difference:
    """One measure over the pairs that have it in both sets; ``difference`` is second minus first.

    ``low`` and ``high`` are None for a single pair, ``p`` where no two values differ.
    """

    measure: str
    better: Literal["higher", "lower"]
    pairs: int
    first_mean: float
    second_mean: float
    difference: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    second_better: int
    first_better: int


@dataclass(frozen=True)
class Comparison:
    """Two evaluated sets, by the names of their pairs.

    Attributes:
        both: pairs in both sets, in the order of the first.
        only_first, only_second: pairs in one set, which are left out.
    """

    first: Mapping[str, Evaluation]
    second: Mapping[str, Evaluation]
    both: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @classmethod
    def of(cls, first: Sequence[Evaluation], second: Sequence[Evaluation]) -> Comparison:
        """Match the pairs by name. Raises InputError: no pair is in both sets."""
        a, b = ({e.pair.name: e for e in side} for side in (first, second))
        both = tuple(name for name in a if name in b)
        if not both:
            names = " and ".join(repr(next(iter(side), "no pair")) for side in (a, b))
            raise InputError(f"the two sets have no pair in common (pairs are matched by name): the first are {names}")
        return cls(a, b, both, tuple(n for n in a if n not in b), tuple(n for n in b if n not in a))

    def values(self, measure: str) -> tuple[list[str], np.ndarray]:
        """The pairs that have a measure in both sets, and (2, pairs): its values, the first set's first."""
        found = {
            name: (x, y)
            for name in self.both
            if (x := self.first[name].numbers.get(measure)) is not None
            and (y := self.second[name].numbers.get(measure)) is not None
        }
        return list(found), np.array(list(found.values()), dtype=np.float64).reshape(-1, 2).T

    def differences(self) -> list[Difference]:
        """Every measure that some pair has in both sets."""
        return [
            _difference(measure, better, *values)
            for measure, better in BETTER.items()
            if (values := self.values(measure)[1]).size
        ]


def _difference(measure: str, better: Literal["higher", "lower"], first: np.ndarray, second: np.ndarray) -> Difference:
    from scipy.stats import t, wilcoxon

    change = second - first
    n = len(change)
    sd = float(np.std(change, ddof=1)) if n > 1 else None
    half = None if sd is None else float(t.ppf(0.975, n - 1)) * sd / float(np.sqrt(n))
    mean = float(change.mean())
    gain = change if better == "higher" else -change
    return Difference(
        measure,
        better,
        n,
        float(first.mean()),
        float(second.mean()),
        mean,
        sd,
        None if half is None else mean - half,
        None if half is None else mean + half,
        float(wilcoxon(change[change != 0]).pvalue) if np.any(change) else None,
        int(np.sum(gain > 0)),
        int(np.sum(gain < 0)),
    )


def outputs(folder: Path) -> list[Path]:
    """Every file of a comparison; the record comes last and marks the set as complete."""
    return [folder / name for name in FILES]


def write(
    folder: Path,
    names: tuple[str, str],
    sources: tuple[Path, Path],
    found: Comparison,
    overwrite: bool,
    command: list[str],
) -> tuple[list[Path], dict[str, Any]]:
    """Write the table of all pairs, the plot and the record; what was written, and the record.

    Raises:
        InputError: files exist (without ``overwrite``) or cannot be written; then nothing is.
    """
    rows = [
        {"pair": pair, "measure": measure, "first": float(x), "second": float(y), "difference": float(y - x)}
        for measure, (pairs, values) in {measure: found.values(measure) for measure in BETTER}.items()
        for pair, x, y in zip(pairs, *values, strict=True)
    ]
    differences = found.differences()
    record = {
        "schema": SCHEMA,
        "tool": "ofg_deploy",
        "version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": portable_command(command, folder),
        "first": {"name": names[0], "source": portable(sources[0], folder), "left_out": list(found.only_first)},
        "second": {"name": names[1], "source": portable(sources[1], folder), "left_out": list(found.only_second)},
        "pairs": list(found.both),
        "meaning": MEANING,
        "measures": {d.measure: MEASURES[d.measure] for d in differences},
        "differences": [asdict(d) for d in differences],
        "by_pair": rows,
    }
    content: dict[str, Callable[[Path], object]] = {
        "comparison.csv": lambda path: path.write_bytes(table(rows, COLUMNS)),
        "comparison.png": lambda path: draw_differences(path, names, found),
        "comparison.json": lambda path: path.write_text(to_json(record)),
    }
    kept = outputs(folder)
    with staged(kept, overwrite) as paths:
        for path in paths:
            content[path.name](path)
    return kept, record

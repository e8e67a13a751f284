"""Runtimes x precisions of one network: speed, memory and size, and beside them how far the field is from float32's."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ofg_deploy.bench.candidate import Candidate
from ofg_deploy.bench.models import check_same_network, read_files
from ofg_deploy.bench.pairs import BenchPairs, find_bench_pairs
from ofg_deploy.bench.plan import TableOptions, by_kind, candidate_of, filled_in, reference_of
from ofg_deploy.bench.timing import interleaved, latency
from ofg_deploy.bench.worker import Worker
from ofg_deploy.errors import DeviceError, OfgError
from ofg_deploy.field import Field
from ofg_deploy.version import __version__

ACCURACY = (
    "field_mm_mean",
    "field_mm_p99",
    "field_mm_max",
    "dice_difference",
    "folding_difference_percent",
)


def measure_table(
    paths: Sequence[Path], options: TableOptions, advance: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """A row for each runtime and precision; a row that cannot run says why.

    Each row has a process of its own and is timed in turn with the first row that ran, to which its ratio refers.
    Fields are compared with the float32 network's: the eager one if there is a checkpoint, otherwise the float32 model
    in ONNX Runtime; without either there is nothing to compare with, and no figure.

    Args:
        advance: called before each row with its name.

    Raises:
        UsageError: files of different networks, grids or weights, or two of one kind and precision.
        InputError: a file that is missing, damaged or none of ours.
        DeviceError: no row could run here.
    """
    files = read_files(paths)
    check_same_network(files)
    kinds = by_kind(files)
    grid = files[0].contract.on_grid(options.grid).shape
    options = filled_in(options, files)
    with tempfile.TemporaryDirectory() as scratch:
        expects = replace(files[0].contract.expects, shape=grid)
        pairs = find_bench_pairs(options.pairs, options.checkpoint, expects, Path(scratch))
    asked = [(runtime, precision) for runtime in options.runtimes for precision in options.precisions]
    plan = {row: candidate_of(row[0], row[1], kinds, grid, options) for row in asked}
    rows = _Rows(options, pairs, reference_of(kinds, grid, options)).measure(plan, advance)
    if not any(row["why_not"] is None for row in rows):
        raise DeviceError(f"none of the {len(rows)} rows could run here; the first: {rows[0]['why_not']}")
    return {
        "schema": 2,
        "version": __version__,
        "network": files[0].contract.network,
        "grid": list(grid),
        "device": options.device,
        "threads": options.threads,
        "processor": platform.processor() or platform.machine(),
        "repeats": options.repeats,
        "pairs": {"count": len(pairs.pairs), "from": pairs.origin},
        "rows": rows,
    }


class _Rows:
    """The measuring itself: the first row that opens stays open, every other one is timed against it."""

    def __init__(self, options: TableOptions, pairs: BenchPairs, reference: Candidate | None) -> None:
        self._options, self._pairs = options, pairs
        self._image = pairs.pairs[0]
        self._reference: list[Field] | None = None
        if reference:
            with self._open(reference) as worker:
                self._reference = [worker.predict(pair.moving, pair.fixed) for pair in pairs.pairs]

    def measure(
        self, plan: dict[tuple[str, str], Candidate | str], advance: Callable[[str], None]
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        baseline: Worker | None = None
        with ExitStack() as kept:
            for (runtime, precision), candidate in plan.items():
                advance(f"{runtime} {precision}")
                row = {"runtime": runtime, "precision": precision, "why_not": None}
                rows.append(row)
                if isinstance(candidate, str):
                    row["why_not"] = candidate
                    continue
                try:
                    with ExitStack() as own:
                        worker = own.enter_context(self._open(candidate))
                        row |= self._figures(candidate, worker, baseline or worker)
                        if baseline is None:
                            baseline = worker
                            kept.push(own.pop_all())
                except OfgError as error:
                    row["why_not"] = str(error)
        return rows

    def _open(self, candidate: Candidate) -> Worker:
        return Worker(candidate, self._image.moving, self._image.fixed)

    def _figures(self, candidate: Candidate, worker: Worker, baseline: Worker) -> dict[str, Any]:
        calls = {"row": worker.run, **({} if baseline is worker else {"baseline": baseline.run})}
        taken = interleaved(calls, self._options.repeats)
        return {
            "ran_on": worker.ready.runtime,
            "file": str(candidate.source),
            "file_bytes": candidate.source.stat().st_size,
            "peak_bytes": worker.ready.peak_bytes,
            **asdict(latency(taken["row"], taken.get("baseline", taken["row"]))),
            "difference": self._difference(worker),
        }

    def _difference(self, worker: Worker) -> dict[str, Any] | None:
        """From float32, over all pairs; None without a reference."""
        from ofg_deploy.export.parity import compare

        if self._reference is None:
            return None
        known = {id(pair.moving): field for pair, field in zip(self._pairs.pairs, self._reference, strict=True)}
        found = asdict(
            compare(lambda moving, _: known[id(moving)], worker.predict, self._pairs.pairs, self._pairs.dice)
        )
        return {name: found[name] for name in ACCURACY}

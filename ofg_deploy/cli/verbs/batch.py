"""``ofg register`` for many pairs, on a terminal: progress, what failed, the next step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ofg_deploy.batch.here import Executor, Here
from ofg_deploy.batch.pairs import Pair, Part, shared
from ofg_deploy.batch.record import Record
from ofg_deploy.batch.work import Means, Outcome
from ofg_deploy.batch_record import Status
from ofg_deploy.cli.spelling import spelled
from ofg_deploy.cli.terminal import both, is_quiet, is_verbose, shows_progress
from ofg_deploy.cli.verbs.register import method
from ofg_deploy.errors import BatchError, InputError, Interrupted, OfgError, UsageError, check_count
from ofg_deploy.nifti import load_grid
from ofg_deploy.outputs import check_writable
from ofg_deploy.serve.no_network import NoNetwork, Promise, plan_grid
from ofg_deploy.serve.registration import begin_with
from ofg_deploy.serve.runtimes import choose

SAID: dict[Status, str] = {"skipped": "done before", "failed": "failed", "pending": "not begun or not finished"}
PLAIN_EVERY_S = 60.0  # a line of progress where there is no terminal


@dataclass(frozen=True)
class Running:
    """How a batch is run.

    Attributes:
        workers: pairs under way at once, with Ray for each engine; 0 for one more than there are cores, at most 9.
        batch_size: pairs in one run of the network.
        resume: skip what is done.
        part: which share of the pairs.
        executor: this process, or actors of a Ray cluster.
        address: of the cluster; None for the one that Ray finds.

    Raises:
        UsageError: values out of range, or an address without Ray.
    """

    workers: int = 0
    batch_size: int = 1
    resume: bool = False
    part: Part = field(default_factory=Part)
    executor: Literal["here", "ray"] = "here"
    address: str | None = None

    def __post_init__(self) -> None:
        check_count("--workers", self.workers, zero="what suits the machine")
        if self.address and self.executor != "ray":
            raise UsageError("--address is a Ray cluster's: add --executor ray")

    def workers_here(self) -> int:
        """Pairs under way at once."""
        return self.workers or max(min(cores(), 8), self.batch_size) + 1


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def register(
    pairs: list[Pair],
    out: Path,
    means: Means,
    running: Running,
    command: list[str],
    answer: Callable[[Any], None] = lambda record: None,
) -> Record:
    """Register the pairs of this part into ``out``; ``answer`` gets the content of ``batch.json``.

    Raises:
        BatchError: some pairs failed; the others are done, and ``failures.csv`` says why.
        Interrupted: Ctrl-C; ``--resume`` goes on.
        InputError: results of these pairs are there already, or cannot be written.
        DeviceError, UsageError: as ``serve.engine.open_engine``.
    """
    console, stderr = both()
    mine = running.part.of(pairs)
    record = Record(out.absolute(), mine, running.part, command)
    check_writable([record.path], overwrite=True)
    if means.model is None and running.executor == "here":
        means = replace(means, workers=_workers_that_fit(mine, means.workers, given=running.workers > 0))
    elif means.model and means.runtime == "auto" and running.executor == "here":
        choice = choose(means.model, means.device)
        means = replace(means, runtime=choice.runtime)
        if choice.reason:
            console.print(f"runtime {choice.runtime}: {choice.reason}", soft_wrap=True)
    means = replace(means, out=record.out, resume=running.resume, shared=shared(mine))
    with record.alone(), _executor(running, means) as executor:
        facts = executor.facts
        _check(mine, facts.contract, running.resume)
        where = f"{facts.engines} x {facts.provider}" if facts.engines > 1 else facts.provider
        network = f"network {facts.contract.network} on {where} ({facts.runtime})" if means.model else None
        for line in method(mine[0].job, network) if mine else ():
            console.print(line, soft_wrap=True)
        if running.batch_size > 1:
            change = f"by up to {facts.batch_change_vox:.2g} voxel" if facts.batch_change_vox else "in no bit"
            console.print(f"{running.batch_size} pairs in one run change a field {change}", soft_wrap=True)
        if running.batch_size > means.workers:  # no error: with less memory it may be what gives an earlier run's bits
            stderr.print(
                f"ofg: warning: --batch-size {running.batch_size} with --workers {means.workers}: every run repeats "
                f"pairs to be full; give --workers {running.batch_size + 1}, or a smaller batch size",
                soft_wrap=True,
            )
        console.print(f"{len(mine)} pairs, {means.workers} at once, into {out}", soft_wrap=True)
        record.facts = facts
        record.begin()
        try:
            with _progress(stderr, record) as advance:
                executor.run(mine, advance)
        except KeyboardInterrupt:
            record.write()
            raise Interrupted(f"{_so_far(record)}; the same command with --resume goes on") from None
        except OfgError as error:
            with suppress(OfgError):  # perhaps the disk is full
                record.write()
            error.args = (f"{error.marked}: the batch stopped, {_so_far(record)}; --resume goes on",)
            raise
    record.write()
    answer(record.content().to_record())
    _finish(console, record)
    return record


def _executor(running: Running, means: Means) -> Executor:
    if running.executor == "here":
        return Here(means)
    from ofg_deploy.batch.on_ray import OnRay

    return OnRay(means, running.address)


def _workers_that_fit(pairs: list[Pair], workers: int, given: bool) -> int:
    """Pairs at once, as many as fit into the free memory on the grids that their images ask for.

    Fewer memory for each would make grids coarser, and a pair's result depend on how many are under way.

    Args:
        given: the user's number; it is not changed in silence.

    Raises:
        UsageError: the user's number does not fit.
    """
    free, need = NoNetwork.here().memory_bytes, 0
    for pair in pairs:
        with suppress(OfgError):  # what is wrong with it is told when its turn comes
            fixed, moving = load_grid(pair.job.fixed), load_grid(pair.job.moving)
            need = max(need, plan_grid(fixed, moving, free).need_bytes)
    fit = max(1, free // max(need, 1))
    if workers <= fit:
        return workers
    if given:
        raise UsageError(
            f"--workers {workers}: the largest pair needs {need / 1e9:.2g} GB and {free / 1e9:.2g} GB may be used: "
            f"give at most {fit}"
        )
    return fit


def _check(pairs: list[Pair], contract: Promise, resume: bool) -> None:
    """What would go wrong with each pair in turn is said before the first."""
    for pair in pairs:
        job = pair.job
        init = begin_with(job, contract, job.masked)
        if not resume:
            try:
                check_writable(list(job.outputs(init).values()), job.overwrite)
            except InputError as error:
                raise InputError(f"{error.marked}, or --resume to go on with a batch") from error


@contextmanager
def _progress(stderr: Console, record: Record) -> Iterator[Callable[[Outcome], None]]:
    columns = [
        TextColumn("registering"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    told = time.monotonic()
    with Progress(*columns, console=stderr, transient=True, disable=not shows_progress(stderr)) as progress:
        task = progress.add_task("", total=len(record.pairs), said="")

        def advance(outcome: Outcome) -> None:
            nonlocal told
            record.add(outcome)
            progress.update(task, advance=1, said=_rate(record))
            if outcome.status == "failed":
                name = " ".join(outcome.name.split())
                progress.console.print(f"ofg: warning: {name} failed: {spelled(str(outcome.error))}", soft_wrap=True)
            if is_verbose() and outcome.status == "done":
                progress.console.print(f"done: {outcome.name} ({outcome.seconds:.1f} s)", soft_wrap=True)
            if not (stderr.is_terminal or is_quiet()) and time.monotonic() - told > PLAIN_EVERY_S:
                told = time.monotonic()
                stderr.print(f"ofg: {_so_far(record)}, {_rate(record)}{_left(record)}", soft_wrap=True)

        yield advance


def _finish(console: Console, record: Record) -> None:
    console.print(f"{_so_far(record)} in {record.seconds:.1f} s, {_rate(record)}", soft_wrap=True)
    warned = sum(bool(outcome.warnings) for outcome in record.outcomes.values())
    if warned:
        console.print(f"{warned} pairs have warnings: {record.path.name} and the sidecars say which", soft_wrap=True)
    console.print(str(record.path), soft_wrap=True)
    if failed := record.failed:
        raise BatchError(
            f"{len(failed)} of {len(record.pairs)} pairs failed, the first ({failed[0].name}): {failed[0].error}; "
            f"all are in {record.failures_path}, --resume tries them again"
        )


def _so_far(record: Record) -> str:
    counts = record.counts()
    more = [f"{counts[status]} {word}" for status, word in SAID.items() if counts[status]]
    return ", ".join([f"{counts['done']} of {len(record.pairs)} pairs done", *more])


def _rate(record: Record) -> str:
    return f"{60 * record.counts()['done'] / max(record.seconds, 1e-3):.3g} pairs a minute"


def _left(record: Record) -> str:
    counts = record.counts()
    if not counts["done"]:
        return ""
    return f", about {counts['pending'] * record.seconds / counts['done'] / 60:.0f} minutes left"

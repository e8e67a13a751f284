"""``ofg eval`` on a terminal: progress, a table, the files; bad pairs do not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ofg_deploy.cli.terminal import both, is_verbose, plain_table, shows_progress, warn
from ofg_deploy.errors import BatchError, InputError, OfgError, UsageError
from ofg_deploy.evaluate import compare
from ofg_deploy.evaluate.pair import Evaluation, Names, evaluate
from ofg_deploy.evaluate.pairs import find_pairs
from ofg_deploy.evaluate.results import TITLES, Failure, outputs, summary, write
from ofg_deploy.extras import need
from ofg_deploy.options.words import PointsFrame
from ofg_deploy.outputs import check_writable, read_csv, read_json
from ofg_deploy.records import read_as

# First what people look for; --verbose shows the rest.
FIRST = (
    *("dice_before", "dice_start", "dice", "hd95_mm", "tre_before_mean_mm", "tre_mean_mm", "folding_percent"),
    *("min_jacobian", "sdlogj"),
)


@dataclass(frozen=True)
class How:
    """What the options of ``ofg eval`` ask for, whichever set is evaluated."""

    labels: Path | None
    label_names: Path | None
    frame: PointsFrame | None
    max_voxels: int
    overwrite: bool
    command: tuple[str, ...]


def run(source: Path, out: Path, how: How, answer: Callable[[Any], None] = lambda record: None) -> None:
    """Evaluate every pair of ``source`` and write the results into ``out``.

    Args:
        answer: gets the content of ``results.json``.

    Raises:
        BatchError: some pairs failed; the results of the others and ``failures.csv`` are written.
        InputError, UsageError: nothing was evaluated or written.
    """
    console, stderr = both()
    check_writable(outputs(out), how.overwrite)
    done, failures = _evaluated(source, how, stderr)
    written = write(out, source, done, failures, how.frame, how.overwrite, list(how.command))
    answer(read_json(written[-1]))
    warn(stderr, (line for evaluation in done for line in evaluation.warnings))
    _show(console, done, how.frame)
    for path in written:
        console.print(str(path), soft_wrap=True)
    if failures:
        raise _failed(failures, len(done) + len(failures), f"all are in {out / 'failures.csv'}")


def run_comparison(
    first: Path, second: Path, out: Path, how: How, answer: Callable[[Any], None] = lambda record: None
) -> None:
    """Evaluate two sets and compare them pair by pair; the results are written into ``out``.

    Args:
        answer: gets the content of ``comparison.json``.

    Raises:
        BatchError: some pairs failed in a set; the comparison of the others is written.
        InputError, UsageError: nothing was evaluated or written, or no pair is in both sets.
    """
    console, stderr = both()
    check_writable(compare.outputs(out), how.overwrite)
    if first.resolve() == second.resolve():
        raise UsageError(f"SOURCE and OTHER are both {first}: give two sets to compare")
    need("matplotlib")  # for the plot
    sides = [_evaluated(source, how, stderr) for source in (first, second)]
    for done, _ in sides:
        warn(stderr, (line for evaluation in done for line in evaluation.warnings))
    failures = [failure for _, failed in sides for failure in failed]
    if failures and not all(done for done, _ in sides):
        raise _failed(failures, sum(len(done) + len(failed) for done, failed in sides), "nothing can be compared")
    found = compare.Comparison.of(sides[0][0], sides[1][0])
    for name, missing in ((second, found.only_first), (first, found.only_second)):
        if missing:
            warn(stderr, [f"{len(missing)} pairs are not in {name} and are left out, the first: {missing[0]}"])
    names = _two_names(first, second)
    written, record = compare.write(out, names, (first, second), found, how.overwrite, list(how.command))
    answer(record)
    _show_comparison(console, names, found)
    for path in written:
        console.print(str(path), soft_wrap=True)
    if failures:
        raise _failed(failures, sum(len(done) + len(failed) for done, failed in sides), "they are left out")


def _evaluated(source: Path, how: How, stderr: Console) -> tuple[list[Evaluation], list[Failure]]:
    pairs = find_pairs(source, how.labels)
    names = load_names(how.label_names) if how.label_names else None
    if any(pair.fixed_labels for pair in pairs):
        need("matplotlib")  # for the box plot
    done: list[Evaluation] = []
    failures: list[Failure] = []
    with Progress(console=stderr, transient=True, disable=not shows_progress(stderr)) as progress:
        task = progress.add_task("evaluating", total=len(pairs))
        for pair in pairs:
            try:
                done.append(evaluate(pair, names, how.frame, how.max_voxels))
            except OfgError as error:
                failures.append(Failure(pair.name, " ".join(error.marked.split())))
            progress.advance(task)
    return done, failures


def _failed(failures: list[Failure], pairs: int, where: str) -> BatchError:
    first = failures[0]
    return BatchError(f"{len(failures)} of {pairs} pairs failed, the first ({first.pair}): {first.error}; {where}")


def _two_names(first: Path, second: Path) -> tuple[str, str]:
    """What the two sets are called: the last parts of their paths in which they differ."""
    a, b = first.absolute(), second.absolute()
    while a.name == b.name and a != a.parent and b != b.parent:
        a, b = a.parent, b.parent
    return a.name or str(first), b.name or str(second)


def load_names(path: Path) -> Names:
    """Labels and their names from a CSV with columns label, name, or a JSON object {"label": "name"}.

    Raises:
        InputError: another form, a label that is no whole number or is 0, the background, or one listed twice.
    """
    needed = "a CSV with columns label, name or a JSON object is needed"
    if path.suffix.lower() == ".json":
        given = read_as(path, dict[int, Any], "does not name labels", needed)
        found = [(label, str(name)) for label, name in given.items()]
    else:
        header, rows = read_csv(path)
        try:
            label, name = header.index("label"), header.index("name")
            found = [(int(row[label]), row[name].strip()) for row in rows]
        except ValueError as error:
            raise InputError(f"{path}: {needed} ({error})") from error
    names = dict(found)
    if not names or len(names) < len(found) or 0 in names:
        raise InputError(f"{path} must name at least one label, each once and none of them 0, the background")
    return names


def _show(console: Console, done: list[Evaluation], frame: PointsFrame | None) -> None:
    figures = summary(done)
    shown = list(figures) if is_verbose() else [measure for measure in FIRST if measure in figures]
    table = plain_table("measure", "mean", "sd", "pairs")
    for measure in shown:
        found = figures[measure]
        table.add_row(TITLES[measure], f"{found['mean']:.4g}", f"{found['sd']:.2g}", str(found["pairs"]))
    console.print(table)
    if is_verbose():
        _show_pairs(console, done)
    if any("landmarks" in evaluation.numbers for evaluation in done):
        where = (frame or "ras").upper()
        console.print(
            f"points in CSV files were read as {where} mm (--points-frame), those of 3D Slicer in their own frame",
            soft_wrap=True,
        )


def _show_pairs(console: Console, done: list[Evaluation]) -> None:
    """A row for each pair, with as many figures as 80 columns hold."""
    wanted = [m for m in ("dice", "hd95_mm", "tre_mean_mm", "folding_percent") if any(m in e.numbers for e in done)]
    table = plain_table(*(TITLES[measure] for measure in wanted), "pair")
    table.columns[-1].justify = "left"
    table.columns[0].justify = "right"
    for evaluation in done:
        values = [evaluation.numbers.get(measure) for measure in wanted]
        table.add_row(*("-" if value is None else f"{value:.4g}" for value in values), evaluation.pair.name)
    console.print(table)


def _show_comparison(console: Console, names: tuple[str, str], found: compare.Comparison) -> None:
    pairs = f"{len(found.both)} pair{'s' * (len(found.both) != 1)}"
    console.print(f"first: {names[0]}\nsecond: {names[1]}\n{pairs} in both", soft_wrap=True)
    table: Table = plain_table("measure", "first", "second", "diff", "95 % interval", "better", "p")
    for one in found.differences():
        span = "-" if one.low is None or one.high is None else f"{one.low:+.2g} {one.high:+.2g}"
        p = "-" if one.p is None else f"{one.p:.2g}"
        figures = (f"{one.first_mean:.4g}", f"{one.second_mean:.4g}", f"{one.difference:+.2g}", span)
        table.add_row(TITLES[one.measure], *figures, f"{one.second_better}/{one.pairs}", p)
    console.print(table)
    console.print(
        "diff: mean of second minus first; better: pairs in which the second set is better; p: Wilcoxon", soft_wrap=True
    )

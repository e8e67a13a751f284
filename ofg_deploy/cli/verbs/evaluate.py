"""``ofg eval`` on a terminal: progress, a table, the files; bad pairs do not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ofg_deploy.cli.terminal import both, warn
from ofg_deploy.errors import BatchError, InputError, OfgError
from ofg_deploy.evaluate.pair import Evaluation, Names, evaluate
from ofg_deploy.evaluate.pairs import find_pairs
from ofg_deploy.evaluate.results import Failure, outputs, summary, write
from ofg_deploy.extras import need
from ofg_deploy.options.words import PointsFrame
from ofg_deploy.outputs import check_writable, read_csv, read_json
from ofg_deploy.records import read_as


def run(
    source: Path,
    out: Path,
    labels: Path | None,
    label_names: Path | None,
    space: PointsFrame | None,
    max_voxels: int,
    overwrite: bool,
    command: list[str],
    answer: Callable[[Any], None] = lambda record: None,
) -> None:
    """Evaluate every pair of ``source`` and write the results into ``out``.

    Args:
        answer: gets the content of ``results.json``.

    Raises:
        BatchError: some pairs failed; the results of the others and ``failures.csv`` are written.
        InputError, UsageError: nothing was evaluated or written.
    """
    console, stderr = both()
    check_writable(outputs(out), overwrite)
    pairs = find_pairs(source, labels)
    names = load_names(label_names) if label_names else None
    if any(pair.fixed_labels for pair in pairs):
        need("matplotlib")  # for the box plot
    done: list[Evaluation] = []
    failures: list[Failure] = []
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task("evaluating", total=len(pairs))
        for pair in pairs:
            try:
                done.append(evaluate(pair, names, space, max_voxels))
            except OfgError as error:
                failures.append(Failure(pair.name, " ".join(error.marked.split())))
            progress.advance(task)
    written = write(out, source, done, failures, space, overwrite, command)
    answer(read_json(written[-1]))
    warn(stderr, (line for evaluation in done for line in evaluation.warnings))
    _show(console, done, space)
    for path in written:
        console.print(str(path), soft_wrap=True)
    if failures:
        raise BatchError(
            f"{len(failures)} of {len(pairs)} pairs failed, the first ({failures[0].pair}): {failures[0].error}; "
            f"all are in {out / 'failures.csv'}"
        )


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


def _show(console: Console, done: list[Evaluation], space: PointsFrame | None) -> None:
    table = Table("measure", "mean", "sd", "pairs")
    for measure, figures in summary(done).items():
        table.add_row(measure, f"{figures['mean']:.4g}", f"{figures['sd']:.2g}", str(figures["pairs"]))
    console.print(table)
    if any("landmarks" in evaluation.numbers for evaluation in done):
        frame = (space or "ras").upper()
        console.print(f"landmark tables read as {frame} mm (--points-frame), those of 3D Slicer in their own frame")

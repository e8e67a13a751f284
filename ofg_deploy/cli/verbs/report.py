"""``ofg report`` on a terminal: progress, how many pairs pass, the worst ones and why, the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ofg_deploy.cli.terminal import both, shows_progress
from ofg_deploy.errors import BatchError, QualityError
from ofg_deploy.outputs import check_writable
from ofg_deploy.report.folder import entries
from ofg_deploy.report.limits import Limits
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.rows import STATUSES, Failure, Row, judge, worst_first
from ofg_deploy.report.write import Report, write

SHOWN = 10  # pairs that the terminal names


def report(
    folder: Path, order: Report, qc_fail: bool, answer: Callable[[Sequence[Row]], None] = lambda rows: None
) -> None:
    """Report on a folder of ``ofg register``. Raises as ``publish``; InputError where there is no pair in it."""
    publish(order, entries(folder), qc_fail, answer)


def publish(
    order: Report,
    found: Sequence[Registration | Failure],
    qc_fail: bool,
    answer: Callable[[Sequence[Row]], None] = lambda rows: None,
) -> None:
    """Write the report, print, and say by an error what is not well.

    Args:
        answer: gets the rows, worst first.

    Raises:
        InputError: the files exist (without ``overwrite``) or cannot be written.
        QualityError: with ``qc_fail``: a pair fails, or could not be registered. The report is written.
        BatchError: what belongs to a pair cannot be read. The report is written and says which.
    """
    console, stderr = both()
    check_writable(order.outputs, order.replaces)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not shows_progress(stderr)) as bars:
        task = bars.add_task("drawing", total=len(found))
        rows = write(order, found, lambda: bars.advance(task))
    answer(rows)
    counts = Counter(row.status for row in rows)
    verdict = ", ".join(f"{counts[status]} {status}" for status in reversed(STATUSES) if counts[status])
    console.print(f"{len(rows)} pair{'s' * (len(rows) != 1)}: {verdict}", soft_wrap=True)
    bad = [row for row in rows if row.status != "pass"]
    for row in bad[:SHOWN]:
        console.print(f"{row.name}: {'; '.join(row.why)}", soft_wrap=True)
    if len(bad) > SHOWN:
        console.print(f"and {len(bad) - SHOWN} more, in the report", soft_wrap=True)
    for path in order.outputs:
        console.print(str(path), soft_wrap=True)
    conclude(rows, qc_fail, order.html)


@dataclass(frozen=True)
class QualityControl:
    """What ``ofg register`` is to say about the quality of what it registers.

    Attributes:
        page: write a report.
        qc_fail: an error where a pair fails.
        limits: by which pairs are judged.
    """

    page: bool = False
    qc_fail: bool = False
    limits: Limits = field(default_factory=Limits)

    @contextmanager
    def of_pair(self, sidecar: Path, overwrite: bool) -> Iterator[None]:
        """Judge the pair that is registered inside; the page is ``NAME_report.html``. Raises as ``publish``."""
        html = sidecar.with_name(f"{sidecar.stem}_report.html")
        with self._after(Report(html, None, sidecar.stem), lambda: [Registration(sidecar)], overwrite):
            yield
            if overwrite and not self.page:
                html.unlink(missing_ok=True)  # of an older registration

    @contextmanager
    def of_folder(self, folder: Path, overwrite: bool) -> Iterator[None]:
        """Judge what is in a folder after a batch, also where some of it failed. Raises as ``publish``."""
        with self._after(report_of(folder), lambda: entries(folder), overwrite):
            yield

    @contextmanager
    def _after(
        self, order: Report, find: Callable[[], Sequence[Registration | Failure]], overwrite: bool
    ) -> Iterator[None]:
        if self.page:
            check_writable(order.outputs, replace(order, overwrite=overwrite).replaces)
        failed = None
        try:
            yield
        except BatchError as error:
            failed = error
        if self.page:
            publish(replace(order, limits=self.limits, overwrite=overwrite), find(), self.qc_fail)
        elif self.qc_fail:
            conclude(worst_first(judge(find(), self.limits)), self.qc_fail)
        if failed:
            raise failed


def report_of(folder: Path, html: Path | None = None) -> Report:
    """The report on a folder: there, or where ``html`` says, and the table beside it."""
    html = html or folder / "report.html"
    return Report(html, html.with_name("qc.tsv"), f"Registrations in {folder.absolute().name}")


def conclude(rows: Sequence[Row], qc_fail: bool, where: Path | None = None) -> None:
    """Raises as ``publish`` for rows, worst first, that are written there already."""
    see = f"; see {where}" if where else ""
    failed = [row for row in rows if row.status in ("fail", "not registered")]
    unreadable = [row for row in rows if row.problem]
    if qc_fail and failed:
        raise QualityError(
            f"{len(failed)} of {len(rows)} pairs fail, the worst ({failed[0].name}): {failed[0].why[0]}{see}"
        )
    if unreadable:
        raise BatchError(
            f"{len(unreadable)} of {len(rows)} pairs cannot be read in full, the first ({unreadable[0].name}): "
            f"{unreadable[0].problem}{see}"
        )

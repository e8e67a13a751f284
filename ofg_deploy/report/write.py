"""Rows -> the page and the table on disk: pair after pair, a few at a time, memory for those alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path

from ofg_deploy.errors import OfgError
from ofg_deploy.outputs import staged
from ofg_deploy.report import page
from ofg_deploy.report.limits import Limits
from ofg_deploy.report.page import Drawn
from ofg_deploy.report.panels import panels, thumbnail
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.rows import Failure, Row, judge, table, worst_first

PICTURES = 20  # pairs with a figure; some 0.5 MB each for whole brains
THUMBNAIL = 64  # pixels of a side
WORKERS = 4


@dataclass(frozen=True)
class Report:
    """What to write and where.

    Attributes:
        html: the page.
        tsv: the table; None for none. It lies beside the page.
        title, intro: headline and paragraphs, plain text.
        limits: by which pairs are judged.
        pictures: how many pairs, worst first, have a figure; None for all.
        overwrite: replace files that are no earlier report; an earlier report is always replaced.
        radiological: the patient's right is on the left of axial and coronal pictures.
    """

    html: Path
    tsv: Path | None = None
    title: str = "Registrations"
    intro: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    pictures: int | None = PICTURES
    overwrite: bool = False
    radiological: bool = False

    @property
    def outputs(self) -> list[Path]:
        """Every file; the page comes last."""
        return [*([self.tsv] if self.tsv else []), self.html]

    @property
    def replaces(self) -> bool:
        """Whether files of these names may be replaced: on request, or where the page is one of this program."""
        return self.overwrite or page.is_ours(self.html)


def write(
    report: Report, entries: Sequence[Registration | Failure], advance: Callable[[], None] = lambda: None
) -> list[Row]:
    """Judge every pair, draw, write; the rows, worst first.

    What cannot be read of a pair is said in its row, and the others are not disturbed. The same files make the same
    bytes.

    Args:
        advance: called after each pair.

    Raises:
        InputError: the files exist (without ``overwrite``) or cannot be written.
    """
    rows = worst_first(judge(entries, report.limits))
    figures = len(rows) if report.pictures is None else report.pictures
    with staged(report.outputs, report.replaces) as paths:
        sections = paths[-1].with_name("sections")  # goes with the folder of unfinished files
        found: dict[Row, Drawn] = {}
        with sections.open("wb") as stream, ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
            anchors = [f"pair-{number}" if number < figures else "" for number in range(len(rows))]
            for row, drawn, section in pool.map(_draw, rows, anchors, repeat(report)):
                stream.write(_encoded(section))
                found[row] = drawn
                advance()
        rows = worst_first(list(found))  # what could not be read of a picture counts, too
        with paths[-1].open("wb") as stream:
            for part in _before_figures(report, rows, [found[row] for row in rows]):
                stream.write(_encoded(part))
            with sections.open("rb") as body:
                shutil.copyfileobj(body, stream)
            stream.write(_encoded(page.foot()))
        if report.tsv:
            paths[0].write_bytes(_encoded(table(rows)))
    return rows


def _draw(row: Row, anchor: str, report: Report) -> tuple[Row, Drawn, str]:
    """The row with what could not be read of its images, its thumbnail, and its figure where it has an anchor."""
    picture, shown = None, []
    if isinstance(row.entry, Registration) and not row.problem:
        try:
            picture = thumbnail(row.entry, THUMBNAIL, report.radiological)
            shown = panels(row.entry, radiological=report.radiological) if anchor else []
        except OfgError as error:
            row = replace(row, problem=" ".join(str(error).split()))
    return row, Drawn(picture, anchor), page.section(anchor, row, shown, report.limits) if anchor else ""


def _before_figures(report: Report, rows: Sequence[Row], drawn: Sequence[Drawn]) -> Iterator[str]:
    yield page.head(report.title)
    yield page.summary(rows, report.intro, report.limits)
    yield page.methods(rows)
    if len(rows) > 1:
        yield from page.cohort(rows, drawn, report.limits)
        yield page.distributions(rows, report.limits)
    if count := sum(bool(picture.anchor) for picture in drawn):
        yield page.pictures(count, len(rows), report.radiological)


def _encoded(text: str) -> bytes:
    """UTF-8; bytes of a file name that are none are shown as such."""
    return text.encode("utf-8", "backslashreplace")

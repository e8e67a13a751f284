"""A training on a terminal: bars where there is one, a line an epoch and a minute where there is none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ofg_deploy.cli.spelling import spelled
from ofg_deploy.cli.terminal import shows_progress, terminal
from ofg_deploy.train.observer import Observer, Progress

if TYPE_CHECKING:
    from ofg_deploy.train.run import EpochRecord

PLAIN_EVERY_S = 60.0  # a line of progress where there is no terminal


def is_first() -> bool:
    """Whether this is the process that prints, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


class Terminal(Observer):
    """Prints notes, warns on standard error, draws bars."""

    def __init__(self) -> None:
        self.console = terminal()

    def note(self, line: str) -> None:
        """As ``Observer``."""
        self.console.print(spelled(line), soft_wrap=True)

    def warn(self, line: str) -> None:
        """As ``Observer``."""
        print(f"ofg: warning: {spelled(line)}", file=sys.stderr)

    @contextmanager
    def preparing(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """As ``Observer``."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=self.console, transient=True, disable=not shows_progress(self.console)) as bars:
            task = bars.add_task(what, total=total)
            plain = _NowAndThen(self.console)
            done = 0

            def advance() -> None:
                nonlocal done
                done += 1
                bars.advance(task)
                plain.tell(
                    lambda left: f"preparing pairs: {done} of {total} steps done, about {left} left", done, total
                )

            yield advance

    @contextmanager
    def training(self, begun: Progress) -> Iterator[Callable[[Progress], None]]:
        """As ``Observer``."""
        text = "epoch {task.fields[epoch]}/{task.fields[epochs]} {task.fields[loss]} {task.fields[val]}"
        columns = (TextColumn(text), BarColumn(bar_width=10), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=self.console, transient=True, disable=not shows_progress(self.console)) as bars:
            shown: dict[str, Any] = {"epoch": begun.epoch, "epochs": begun.epochs, "loss": "", "val": ""}
            task = bars.add_task("", total=begun.total, completed=begun.done, **shown)
            plain = _NowAndThen(self.console, begun.done)

            def tell(progress: Progress) -> None:
                bars.update(task, completed=progress.done, epoch=progress.epoch, loss=f"loss {progress.loss:.4f}")
                epoch = f"epoch {progress.epoch}/{progress.epochs}"
                if row := progress.row:
                    bars.update(task, val=_scores(row))
                    if not self.console.is_terminal:
                        self.note(f"{epoch} loss {row.loss:.5f} {_scores(row)}")
                    return
                share = 100 * progress.done / progress.total
                plain.tell(lambda left: f"{epoch} {share:.0f} % done, about {left} left", progress.done, progress.total)

            yield tell


class _NowAndThen:
    """Lines of progress for a log file, a minute apart."""

    def __init__(self, console: Console, done: int = 0) -> None:
        self._console, self._first = console, done
        self._began = self._told = time.monotonic()

    def tell(self, line: Callable[[timedelta], str], done: int, total: int) -> None:
        """Print ``line`` of the time that is left, where it is due."""
        now = time.monotonic()
        if self._console.is_terminal or now - self._told <= PLAIN_EVERY_S:
            return
        self._told = now
        left = timedelta(seconds=round((now - self._began) / (done - self._first) * (total - done)))
        self._console.print(line(left), soft_wrap=True)


def _scores(row: EpochRecord) -> str:
    if row.val_ncc is None or row.val_folding_percent is None:
        return ""
    dice = "" if row.val_dice is None else f"Dice {row.val_dice:.4f}  "
    return f"{dice}NCC {row.val_ncc:.4f}  folding {row.val_folding_percent:.3f} %"

"""The terminal: where lines go, how many, how warnings look.

Everything is printed as it is: paths may hold what rich takes for markup or emoji. Where nobody looks at a terminal, no
line is cut or wrapped.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ofg_deploy.cli.spelling import spelled

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NO_LIMIT = 100_000  # columns, where no terminal limits them


@dataclass
class _Talk:
    quiet: bool = False
    verbose: bool = False


_talk = _Talk()


@contextmanager
def talking(quiet: bool, verbose: bool) -> Iterator[None]:
    """What ``--quiet`` and ``--verbose`` of the verb that runs inside ask for."""
    before = _talk.quiet, _talk.verbose
    _talk.quiet, _talk.verbose = quiet, verbose
    try:
        yield
    finally:
        _talk.quiet, _talk.verbose = before


def is_quiet() -> bool:
    """Whether only warnings and errors are wanted."""
    return _talk.quiet


def is_verbose() -> bool:
    """Whether details are wanted."""
    return _talk.verbose


def colours() -> bool:
    """Whether standard output takes colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal(stderr: bool = False) -> Console:
    """A console on standard output, silent with ``--quiet``, or on standard error, which warnings always reach."""
    from rich.console import Console

    quiet = _talk.quiet and not stderr
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = NO_LIMIT
    return console


def both() -> tuple[Console, Console]:
    """Standard output and standard error."""
    return terminal(), terminal(stderr=True)


def shows_progress(console: Console) -> bool:
    """Whether bars are drawn on it: it is a terminal, and they are wanted."""
    return console.is_terminal and not _talk.quiet


class _Warnings(logging.Handler):
    """Warnings of the library, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """As ``logging.Handler``."""
        print(f"ofg: warning: {spelled(record.getMessage())}", file=sys.stderr)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """What the library warns of inside, by its logger, is shown as all warnings are."""
    logger, handler = logging.getLogger("ofg_deploy"), _Warnings(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def warn(stderr: Console, lines: Iterable[str]) -> None:
    """One line each, parameters as the command line spells them."""
    for line in lines:
        stderr.print(f"ofg: warning: {spelled(line)}", soft_wrap=True)


def plain_table(first: str, *others: str) -> Table:
    """A table without lines: names on the left, figures in columns flush right. Nothing in it is cut."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table

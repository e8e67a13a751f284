"""The terminal: where lines go, how warnings look. Everything is printed as it is: paths may hold what rich takes for
markup or emoji."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from ofg_deploy.cli.spelling import spelled


def terminal(stderr: bool = False, quiet: bool = False) -> Console:
    """A console on standard output or standard error."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, quiet=quiet)


def both() -> tuple[Console, Console]:
    """Standard output and standard error."""
    return terminal(), terminal(stderr=True)


def warn(stderr: Console, lines: Iterable[str]) -> None:
    """One line each, parameters as the command line spells them."""
    for line in lines:
        stderr.print(f"ofg: warning: {spelled(line)}", soft_wrap=True)

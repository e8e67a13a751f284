"""The ``ofg`` command: one module per verb, short bodies, heavy imports inside."""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import sys
from contextlib import suppress
from typing import NoReturn

# Threads that wait by spinning take the cores from those that work: torch and the compiled kernels each keep a pool,
# and two trainings side by side became three times slower. The OpenMP libraries read this when they are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Python processes that libraries start import nothing from the current folder (see child.py).
os.environ.setdefault("PYTHONSAFEPATH", "1")

# Each verb adds itself to the app; cli/help.py has the order in which --help lists them.
from ofg_deploy.cli import (  # noqa: F401
    apply,
    bench,
    check,
    data,
    evaluate,
    export,
    info,
    models,
    register,
    report,
    serve,
    train,
    view,
)
from ofg_deploy.cli.app import app
from ofg_deploy.cli.safe_output import safe_output
from ofg_deploy.cli.spelling import spelled
from ofg_deploy.cli.terminal import warnings_shown
from ofg_deploy.errors import InputError, Interrupted, OfgError, without_addresses
from ofg_deploy.extras import explained

STDOUT_FULL = {errno.ENOSPC, errno.EPIPE, errno.EDQUOT, errno.EFBIG, errno.EIO}


def main() -> None:
    """Entry point: every expected error is one line and its own exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr: names may hold bytes that are no text, and letters that the terminal's alphabet lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    # The interpreter's last look for cycles would go through all that numba keeps, a quarter of a second, and free
    # nothing that does not go with the process.
    atexit.register(gc.freeze)
    with safe_output(), warnings_shown():
        _run()


def _run() -> NoReturn:
    try:
        code = app(prog_name="ofg", standalone_mode=False)
    except OfgError as error:
        _fail(spelled(error.marked), error.exit_code)
    except MemoryError:
        _fail("out of memory: use a smaller grid or a machine with more", 1)
    except Exception as error:
        if isinstance(error, ImportError) and (missing := explained(error)):
            _fail(str(missing), missing.exit_code)
        if isinstance(error, OSError) and error.filename is None and error.errno in STDOUT_FULL:
            _fail_to_print(error)
        # Typer's own complaints about the command line; where their class lives differs between its versions.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            _fail(f"{error.format_message()} (see ofg --help)", error.exit_code)
        if os.environ.get("OFG_DEBUG"):
            raise
        _fail(f"internal error, {type(error).__name__}: {error} (set OFG_DEBUG=1 for the traceback)", 1)
    if code == Interrupted.exit_code:
        _fail("interrupted", code)
    try:
        sys.stdout.flush()
    except OSError as error:
        _fail_to_print(error)
    sys.exit(code if isinstance(code, int) else 0)


def _fail_to_print(error: OSError) -> NoReturn:
    """What is printed has no place: a full disk behind >, or nobody at the other end of a pipe, who is not told."""
    if error.errno == errno.EPIPE:
        _give_up_stdout()
        sys.exit(1)
    _fail(f"standard output cannot be written: {error.strerror}", InputError.exit_code)


def _give_up_stdout() -> None:
    """What waits there would be tried once more as the interpreter ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _fail(message: str, code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:
        _give_up_stdout()
    print(f"ofg: error: {without_addresses(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)

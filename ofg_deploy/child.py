"""Work in a process of its own: native code that crashes there, or is killed, is one line here.

Python looks for modules in the current folder first when it is started with ``-c`` or ``-m``, as all who start
processes do. Whoever stands in a folder of somebody else's would run what lies there: processes are started ``apart``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from ofg_deploy.errors import DeviceError, OfgError

GRACE_S = 10.0
SAFE_PATHS = sys.version_info >= (3, 11)  # the interpreter knows PYTHONSAFEPATH
GONE = (EOFError, ConnectionError)  # the other end of the pipe


class Child:
    """A new process that runs ``work(connection, *arguments)``; both ends send and receive what can be pickled.

    A context manager: the process ends with it, at once if the body failed (Ctrl-C is one way to). ``work`` may let
    ``GONE`` pass, which says that nobody listens any more.

    Args:
        what: says in errors what the process is for.
    """

    def __init__(self, what: str, work: Callable[..., None], *arguments: Any) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would share the parent's memory and its thread pools
        self._what = what
        self._here, there = spawn.Pipe()
        self._process = spawn.Process(target=_run, args=(there, work, arguments), daemon=True)
        with apart():
            self._process.start()
        there.close()

    def send(self, message: Any) -> None:
        """Give it something. DeviceError: it died."""
        try:
            self._here.send(message)
        except GONE as error:
            raise self._died() from error

    def receive(self) -> Any:
        """Wait for what it sends next.

        Raises:
            OfgError: what ``work`` raised; DeviceError for what is none of ours, or if the process died.
        """
        try:
            answer = self._here.recv()
        except GONE as error:
            raise self._died() from error
        if isinstance(answer, OfgError):
            raise answer
        return answer

    def stop(self) -> None:
        """End it now, from any thread: whoever waits for an answer gets DeviceError."""
        self._process.terminate()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        self._here.close()  # work that waits for more ends there
        self._process.join(0 if failure else GRACE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _died(self) -> DeviceError:
        self._process.join(GRACE_S)
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            why = "killed, for lack of memory?"
        elif code is not None and code < 0:
            why = f"crashed, {signal.Signals(-code).name}"
        else:
            why = f"exit code {code}"
        return DeviceError(f"the process {self._what} died ({why})")


_STARTING = threading.RLock()


@contextmanager
def apart() -> Iterator[None]:
    """Processes that ``multiprocessing`` starts inside import nothing from the current folder.

    They find modules where this process does. They hold Ctrl-C back from their first moment, until they say what to do
    with it. Making a pool belongs inside, too: its locks start a process that looks after them.
    """
    with _STARTING, _safe_path(), _without_interrupts():
        yield


def command(module: str, *arguments: str) -> list[str]:
    """Command line that runs a module as ``python -m`` would, with this process's ``sys.path`` and nothing else's."""
    paths = [path for path in sys.path if path]
    boot = f"import sys; sys.path[:] = {paths!a}; import runpy; runpy.run_module({module!r}, None, '__main__', True)"
    return [sys.executable, "-I", f"-Xutf8={sys.flags.utf8_mode}", "-c", boot, *arguments]


@contextmanager
def _safe_path() -> Iterator[None]:
    from multiprocessing import util

    before, flags = os.environ.get("PYTHONSAFEPATH"), util._args_from_interpreter_flags  # type: ignore[attr-defined]
    if SAFE_PATHS:
        os.environ["PYTHONSAFEPATH"] = "1"
    else:  # isolated it is at its start; then it is given this process's path
        util._args_from_interpreter_flags = lambda: ["-I", *flags()]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        util._args_from_interpreter_flags = flags  # type: ignore[attr-defined]
        if before is None:
            os.environ.pop("PYTHONSAFEPATH", None)
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextmanager
def _without_interrupts() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(connection: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """The other process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    with suppress(*GONE):
        try:
            work(connection, *arguments)
        except GONE:
            raise
        except OfgError as error:
            connection.send(error)
        except Exception as error:  # whatever a native library raises is a reason, told in its first line
            lines = str(error).strip().splitlines()
            connection.send(DeviceError(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"))

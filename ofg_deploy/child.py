"""Work in a process of its own: native code that crashes there, or is killed, is one line here."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from ofg_deploy.errors import DeviceError, OfgError

GRACE_S = 10.0
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
        with without_interrupts():
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


@contextmanager
def without_interrupts() -> Iterator[None]:
    """A process that is started inside holds Ctrl-C back from its first moment, until it says what to do with it."""
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

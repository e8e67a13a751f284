"""Work in processes of their own: native code that crashes there, or is killed, is one line here.

They are plain processes with a pipe each way. ``multiprocessing`` would start them from the state of this whole
process: its environment, its list of children, its main module. And Python looks for modules in the current folder
first when it is started with ``-c`` or ``-m``: whoever stands in a folder of somebody else's would run what lies there.
"""

from __future__ import annotations

import io
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from ofg_deploy.errors import DeviceError, OfgError

GRACE_S = 10.0
SAFE_PATHS = sys.version_info >= (3, 11)  # the interpreter knows -P and PYTHONSAFEPATH
LENGTH = 8  # bytes before each message that say how long it is
GONE = (EOFError, ConnectionError)  # the other end of the pipe


class Died(DeviceError):
    """A process that ended before it answered: it crashed, or was killed."""


class Caller:
    """What ``work`` in a child is given: the process that started it. The child ends when that one has gone."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # whatever libraries print is none of it
        self._messages: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        # Without a buffer, whose lock the thread would still hold when the interpreter ends.
        messages = os.fdopen(os.dup(0), "rb", buffering=0)
        threading.Thread(target=self._listen, args=(messages,), daemon=True).start()

    def recv(self) -> Any:
        """What ``Child.send`` was given next."""
        return pickle.loads(self._messages.get())

    def send(self, answer: Any) -> None:
        """For ``Child.receive``. One of ``GONE``: nobody listens any more."""
        _write(self._answers, answer)

    def _listen(self, stream: io.FileIO) -> None:
        with suppress(*GONE):
            while True:
                self._messages.put(_read(stream))
        os._exit(0)  # nobody would tell this process to stop


class Child:
    """A new process that runs ``work(caller, *arguments)``; both ends send and receive what can be pickled.

    A context manager: the process ends with it, at once if the body failed (Ctrl-C is one way to). ``work`` may let
    ``GONE`` pass, which says that nobody listens any more. It is imported there, and so cannot be of ``__main__``.

    Args:
        what: says in errors what the process is for.
    """

    def __init__(self, what: str, work: Callable[..., None], *arguments: Any) -> None:
        self._what = what
        line = _python("from ofg_deploy.child import serve; serve()")
        safe = os.environ | {"PYTHONSAFEPATH": "1"}  # for what is started there
        with _without_interrupts():
            self._process = subprocess.Popen(line, env=safe, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._there = cast(io.BufferedWriter, self._process.stdin)
        self._here = cast(io.BufferedReader, self._process.stdout)
        try:
            self.send((work, arguments))
        except BaseException as failure:
            self.__exit__(failure)
            raise

    def send(self, message: Any) -> None:
        """Give it something. Raises Died."""
        try:
            _write(self._there, message)
        except GONE as error:
            raise self._died() from error

    def receive(self) -> Any:
        """Wait for what it sends next.

        Raises:
            OfgError: what ``work`` raised; DeviceError for what is none of ours; Died.
        """
        try:
            answer = pickle.loads(_read(self._here))
        except GONE as error:
            raise self._died() from error
        if isinstance(answer, OfgError):
            raise answer
        return answer

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it now, from any thread: whoever waits for an answer gets Died."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        with suppress(*GONE):  # what a dead process was not given
            self._there.close()  # it ends there
        try:
            self._process.wait(0 if failure else GRACE_S)
        except subprocess.TimeoutExpired:
            self.stop()
        self._here.close()

    def _died(self) -> Died:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        code = self._process.returncode
        if code == -signal.SIGKILL:
            why = "killed, for lack of memory?"
        elif code is not None and code < 0:
            why = f"crashed, {signal.Signals(-code).name}"
        else:
            why = f"exit code {code}"
        return Died(f"the process {self._what} died ({why})")


class Children:
    """At most ``count`` processes that do calls for threads of this one: each call waits for a process of its own.

    Args:
        what: as of ``Child``.
    """

    def __init__(self, what: str, count: int) -> None:
        self._what, self._count = what, count
        self._turns = threading.Semaphore(count)
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._closed = False

    def call(self, function: Callable[..., Any], *arguments: Any, alone: bool = False) -> Any:
        """What ``function(*arguments)`` returns or raises; it is imported there.

        Args:
            alone: while no other process of these does anything.

        Raises:
            Died: the process did. CancelledError: ``close`` was called.
        """
        with self._all_turns() if alone else self._turns:
            child = self._take()
            try:
                child.send((function, arguments))
                answer, error = child.receive()
            except BaseException as failure:
                self._drop(child, failure)
                if self._closed:
                    raise CancelledError from None
                raise
            self._put_back(child)
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """End the processes at once, from any thread."""
        with self._lock:
            self._closed = True
            idle, busy = self._idle, list(self._busy)
            self._idle = []
        for child in busy:
            child.stop()  # whoever waits for it does the rest
        for child in idle:
            child.stop()
            child.__exit__(None)

    def _take(self) -> Child:
        with self._lock:
            if self._closed:
                raise CancelledError
            while self._idle and not self._idle[-1].is_alive():  # the system may have ended it, for want of memory
                self._idle.pop().__exit__(None)
            child = self._idle.pop() if self._idle else Child(self._what, _answer)
            self._busy.add(child)
            return child

    def _put_back(self, child: Child) -> None:
        with self._lock:
            if not self._closed:
                self._busy.discard(child)
                self._idle.append(child)
                return
        self._drop(child)

    def _drop(self, child: Child, failure: object = None) -> None:
        with self._lock:
            self._busy.discard(child)
        child.__exit__(failure)

    @contextmanager
    def _all_turns(self) -> Iterator[None]:
        with self._alone:  # one at a time: two would each wait for the turns of the other
            for _ in range(self._count):
                self._turns.acquire()
            try:
                yield
            finally:
                self._turns.release(self._count)


def command(module: str, *arguments: str) -> list[str]:
    """Command line that runs a module as ``python -m`` would, with this process's ``sys.path`` and nothing else's."""
    return [*_python(f"import runpy; runpy.run_module({module!r}, None, '__main__', True)"), *arguments]


def serve() -> None:
    """The other process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    caller = Caller()
    with suppress(*GONE):
        try:
            work, arguments = caller.recv()
            work(caller, *arguments)
        except GONE:
            raise
        except OfgError as error:
            caller.send(error)
        except Exception as error:  # whatever a native library raises is a reason, told in its first line
            lines = str(error).strip().splitlines()
            caller.send(DeviceError(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"))


def _answer(caller: Caller) -> None:
    while True:
        function, arguments = caller.recv()
        answer, failure = None, None
        try:
            answer = function(*arguments)
        except Exception as error:  # is raised where it was called
            failure = error
        caller.send((answer, failure))


def _python(code: str) -> list[str]:
    paths = [path for path in sys.path if path]
    alone = "-P" if SAFE_PATHS else "-I"
    boot = f"import sys; sys.path[:] = {paths!a}; {code}"
    return [sys.executable, alone, f"-Xutf8={sys.flags.utf8_mode}", "-c", boot]


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """What this thread starts holds Ctrl-C back from its first moment, until it says what to do with it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _write(stream: IO[bytes], message: Any) -> None:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    stream.write(len(content).to_bytes(LENGTH, "little"))
    stream.write(content)
    stream.flush()


def _read(stream: io.BufferedReader | io.FileIO) -> bytearray:
    return _exactly(int.from_bytes(_exactly(LENGTH, stream), "little"), stream)


def _exactly(count: int, stream: io.BufferedReader | io.FileIO) -> bytearray:
    content = bytearray(count)
    rest = memoryview(content)
    while rest:
        got = stream.readinto(rest)
        if not got:
            raise EOFError
        rest = rest[got:]
    return content

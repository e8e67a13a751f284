"""A candidate in a process of its own: nothing else is in its memory, and its threads sleep while others are timed."""

from __future__ import annotations

import multiprocessing
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ofg_deploy.bench.candidate import Candidate, Image
from ofg_deploy.bench.timing import Taken
from ofg_deploy.errors import DeviceError, OfgError
from ofg_deploy.field import Field

GRACE_S = 10.0
GONE = (EOFError, ConnectionError)  # the other end of the pipe


@dataclass(frozen=True)
class Ready:
    """An opened candidate.

    Attributes:
        runtime: name, version and provider of what runs it.
        peak_bytes: peak resident memory of opening it and two runs, above the process with its libraries loaded and
            the images read; None where the system does not say (it is Linux's ``VmHWM``, reset through
            ``/proc/self/clear_refs``) and for a GPU, whose memory that does not see.
    """

    runtime: str
    peak_bytes: int | None


class Worker:
    """Opens a candidate in a new process and runs it there on call. A context manager: the process ends with it.

    Raises:
        OfgError: what opening or running it raised there; DeviceError if the process died.
    """

    def __init__(self, candidate: Candidate, moving: Image, fixed: Image) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would share the parent's memory and its thread pools
        self._candidate = candidate
        self._here, there = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(there, candidate), daemon=True)
        self._process.start()
        there.close()
        try:
            self.ready: Ready = self._ask((moving, fixed))
        except BaseException:
            self.__exit__()
            raise

    def run(self) -> Taken:
        """Run it once on the pair it was opened with."""
        taken: Taken = self._ask("run")
        return taken

    def predict(self, moving: Image, fixed: Image) -> Field:
        """Its field of another pair of the same size."""
        field: Field = self._ask((moving, fixed))
        return field

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()  # its loop ends there
        self._process.join(GRACE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, message: Any) -> Any:
        try:
            self._here.send(message)
            answer = self._here.recv()
        except GONE as error:
            self._process.join(GRACE_S)
            code = self._process.exitcode
            why = "killed, for lack of memory?" if code == -signal.SIGKILL else f"exit code {code}"
            raise DeviceError(f"the process of {self._candidate.runtime} died ({why})") from error
        if isinstance(answer, OfgError):
            raise answer
        return answer


def _serve(connection: Connection, candidate: Candidate) -> None:
    """The other process: open, then answer until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    with suppress(*GONE):
        try:
            candidate.import_runtime()
            moving, fixed = connection.recv()
            before = _reset_peak_bytes()
            predict, runtime = candidate.open()
            for _ in range(2):
                predict(moving, fixed)
            peak = None if before is None or candidate.device == "cuda" else _peak_bytes() - before
            connection.send(Ready(runtime, peak))
            while True:
                message = connection.recv()
                if message == "run":
                    start, busy = time.perf_counter(), time.process_time()
                    predict(moving, fixed)
                    connection.send(Taken(time.perf_counter() - start, time.process_time() - busy))
                else:
                    connection.send(predict(*message))
        except GONE:
            raise
        except OfgError as error:
            connection.send(error)
        except Exception as error:  # whatever a runtime raises is the reason that its row gives
            lines = str(error).strip().splitlines()
            connection.send(DeviceError(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"))


def _reset_peak_bytes() -> int | None:
    """Resident memory from here on; None where it cannot be had."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5 sets the peak to what is resident now: proc(5)
        return _peak_bytes()
    except OSError:
        return None


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kilobytes) * 1024

"""A candidate in a process of its own: nothing else is in its memory, and its threads sleep while others are timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofg_deploy.bench.candidate import Candidate
from ofg_deploy.bench.timing import Taken
from ofg_deploy.child import Caller, Child
from ofg_deploy.field import Field
from ofg_deploy.passes import Image


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
        self._child = Child(f"of {candidate.runtime}", _serve, candidate)
        try:
            self.ready: Ready = self._ask((moving, fixed))
        except BaseException as error:
            self.__exit__(error)
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

    def __exit__(self, failure: object, *_: object) -> None:
        self._child.__exit__(failure)

    def _ask(self, message: Any) -> Any:
        self._child.send(message)
        return self._child.receive()


def _serve(caller: Caller, candidate: Candidate) -> None:
    """The other process: open, then answer until the pipe is closed."""
    candidate.import_runtime()
    moving, fixed = caller.recv()
    before = _reset_peak_bytes()
    predict, runtime = candidate.open()
    for _ in range(2):
        predict(moving, fixed)
    peak = None if before is None or candidate.device == "cuda" else _peak_bytes() - before
    caller.send(Ready(runtime, peak))
    while True:
        message = caller.recv()
        if message == "run":
            start, busy = time.perf_counter(), time.process_time()
            predict(moving, fixed)
            caller.send(Taken(time.perf_counter() - start, time.process_time() - busy))
        else:
            caller.send(predict(*message))


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

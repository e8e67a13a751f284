"""Processes that find affine starts: it is many small calls, for each of which the engine would wait."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from ofg_deploy.affine import Alignment
from ofg_deploy.child import Child, apart
from ofg_deploy.errors import DeviceError, InputError
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import IMAGE_BASED, Start

Align = Callable[[Start, Volume, Volume], Alignment]


class Aligners:
    """Does what ``Start.align`` does; where that looks at voxels, in another process, with the same result.

    Args:
        count: processes; the first are started when the first start is asked for.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()
        self._one_alone = threading.Lock()
        self._child: Child | None = None  # one start that is tried alone
        self._closed = False

    def align(self, start: Start, fixed: Volume, moving: Volume) -> Alignment:
        """The start of a pair.

        Raises:
            AlignerDied: this start ends the process that looks for it. CancelledError: ``close`` was called. Otherwise
                as ``Start.align``.
        """
        if start.matrix is not None or start.init not in IMAGE_BASED:
            return start.align(fixed, moving)
        pool, asked = self._submit(start, fixed, moving)
        try:
            return asked.result()
        except BrokenProcessPool:
            # One of the starts under way ended its process, or memory ran out; all of them failed with it. Which one it
            # was shows when each is tried alone.
            self._forget(pool)
            return self._alone(start, fixed, moving)

    def close(self) -> None:
        """End the processes, at once: they write nothing."""
        with self._lock:
            self._closed = True
            pool, child = self._pool, self._child
        if child:
            child.stop()
        if pool:
            # Its own processes and nobody else's; there is no public way to them before Python 3.14.
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, start: Start, fixed: Volume, moving: Volume) -> tuple[ProcessPoolExecutor, Future[Alignment]]:
        with self._lock, apart():
            self._go_on()
            if self._pool is None:
                # Not forked: the threads of this process would be missing there, and whatever they had locked.
                self._pool = ProcessPoolExecutor(self._count, multiprocessing.get_context("spawn"), _begin)
            try:
                return self._pool, self._pool.submit(_align, start, fixed, moving)
            except BrokenProcessPool as error:  # it was found broken before anybody asked
                broken: Future[Alignment] = Future()
                broken.set_exception(error)
                return self._pool, broken

    def _forget(self, pool: ProcessPoolExecutor) -> None:
        """The next start gets a new pool."""
        with self._lock:
            self._go_on()
            if self._pool is pool:
                self._pool = None
                pool.shutdown(wait=False)

    def _alone(self, start: Start, fixed: Volume, moving: Volume) -> Alignment:
        with self._one_alone:
            self._go_on()
            try:
                what = "that looked for the affine start"
                with Child(what, _align_alone, _align, start, fixed, moving) as self._child:
                    answer = self._child.receive()
            except DeviceError as error:
                self._go_on()
                raise AlignerDied(
                    f"{error}, for {moving.path} on {fixed.path}: align them first and use `init=none`, or use fewer "
                    "`workers` if memory is short"
                ) from error
        if isinstance(answer, Exception):
            raise answer
        alignment: Alignment = answer
        return alignment

    def _go_on(self) -> None:
        if self._closed:
            raise CancelledError


class AlignerDied(InputError):
    """A start that ends its process also when it is the only one."""


def _align(start: Start, fixed: Volume, moving: Volume) -> Alignment:
    return start.align(fixed, moving)


def _align_alone(connection: Connection, work: Align, start: Start, fixed: Volume, moving: Volume) -> None:
    try:
        connection.send(work(start, fixed, moving))
    except Exception as error:  # as a pool hands over whatever is raised
        connection.send(error)


def _begin() -> None:
    """Ctrl-C is for the batch; and when that is killed, nobody would tell this process to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

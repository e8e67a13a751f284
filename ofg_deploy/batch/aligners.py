"""Processes that find affine starts: it is many small calls, for each of which the engine would wait."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from ofg_deploy.affine import Alignment
from ofg_deploy.child import without_interrupts
from ofg_deploy.errors import DeviceError
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import IMAGE_BASED, Start


class Aligners:
    """Does what ``Start.align`` does; where that looks at voxels, in another process, with the same result.

    Args:
        count: processes; the first are started when the first start is asked for.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()
        self._closed = False

    def align(self, start: Start, fixed: Volume, moving: Volume) -> Alignment:
        """The start of a pair.

        Raises:
            AlignerDied: a process died. CancelledError: ``close`` was called. Otherwise as ``Start.align``.
        """
        if start.matrix is not None or start.init not in IMAGE_BASED:
            return start.align(fixed, moving)
        try:
            return self._submit(start, fixed, moving).result()
        except BrokenProcessPool as error:
            if self._closed:
                raise CancelledError from error
            raise AlignerDied(
                "a process that looks for the affine start died, perhaps for want of memory: use fewer --workers"
            ) from error

    def close(self) -> None:
        """End the processes, at once: they write nothing."""
        with self._lock:
            self._closed = True
        if self._pool:
            for process in multiprocessing.active_children():  # this process has no others
                process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, start: Start, fixed: Volume, moving: Volume) -> Future[Alignment]:
        with self._lock:
            if self._closed:
                raise CancelledError
            if self._pool is None:
                # Not forked: the threads of this process would be missing there, and whatever they had locked.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self._count, context, _begin)
            with without_interrupts():
                return self._pool.submit(_align, start, fixed, moving)


class AlignerDied(DeviceError):
    """No later pair of the batch could find its start either."""


def _align(start: Start, fixed: Volume, moving: Volume) -> Alignment:
    return start.align(fixed, moving)


def _begin() -> None:
    """Ctrl-C is for the batch; and when that is killed, nobody would tell this process to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

"""Processes that find affine starts: SimpleITK holds the interpreter while it optimises, and the engine would wait."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from ofg_deploy.errors import OfgError
from ofg_deploy.geometry import Matrix
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import IMAGE_BASED, Start


class Aligners:
    """Does what ``Start.moving_from_fixed`` does; where that looks at voxels, in another process, with the same result.

    Args:
        count: processes; the first are started when the first start is asked for.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def align(self, start: Start, fixed: Volume, moving: Volume) -> Matrix:
        """(4, 4) moving_from_fixed. Raises as ``Start.moving_from_fixed``; OfgError where the process died."""
        if start.matrix is not None or start.init not in IMAGE_BASED:
            return start.moving_from_fixed(fixed, moving)
        with self._lock:
            if self._pool is None:
                # Not forked: the threads of this process would be missing there, and whatever they had locked.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self._count, context, _begin)
            future = self._pool.submit(_align, start, fixed, moving)
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise AlignerDied(
                "a process that looks for the affine start died, perhaps for want of memory: use fewer --workers"
            ) from error

    def close(self) -> None:
        """End the processes."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)


class AlignerDied(OfgError):
    """No later pair of the batch could find its start either."""


def _align(start: Start, fixed: Volume, moving: Volume) -> Matrix:
    return start.moving_from_fixed(fixed, moving)


def _begin() -> None:
    """Ctrl-C is for the batch; and when that is killed, nobody would tell this process to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

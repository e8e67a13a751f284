"""Native code that runs for long hears of Ctrl-C: Python itself would wait until it comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
GRACE_S = 5.0  # for it to stop; what does not goes with the process


def interruptible(work: Callable[[], T], stop: Callable[[], object]) -> T:
    """What ``work`` returns or raises; where Ctrl-C comes first, ``stop`` is called and KeyboardInterrupt raised.

    Only the main thread hears of Ctrl-C; any other one just works.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        return done.result()
    except KeyboardInterrupt:
        stop()
        thread.join(GRACE_S)
        raise

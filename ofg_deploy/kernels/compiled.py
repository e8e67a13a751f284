"""How kernels are compiled: once per machine, kept on disk where that is possible."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar, cast

import numba
import numba.np.linalg

from ofg_deploy.errors import UsageError

# To know whether there is a BLAS numba imports scipy.linalg, which takes nearly as long as the rest of its start.
# Whoever has this package has scipy. A numba that looks otherwise is left to it.
if _look := getattr(numba.np.linalg, "ensure_blas", None):
    numba.np.linalg.ensure_blas = lambda: None
    import_module("numba.np.arraymath")
    numba.np.linalg.ensure_blas = _look

F = TypeVar("F", bound=Callable[..., Any])

PLANES = 16
"""Planes of a slab. Running sums start anew in each one, so the result is the same with any number of threads."""


_one_at_a_time = threading.Lock()


def compiled(parallel: bool = False) -> Callable[[F], F]:
    """Decorator: machine code, IEEE division, multiply-add allowed, nothing reordered.

    A compiled function calls only compiled functions of its own file: numba looks for changes in that file alone, and
    would run yesterday's code of another one. Those in parallel are called from Python alone, from any thread.
    """
    options: dict[str, Any] = {"parallel": parallel, "error_model": "numpy", "fastmath": {"contract"}, "nogil": True}

    def decorate(function: F) -> F:
        try:
            kernel: F = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to keep the code in
            warnings.warn(
                f"{function.__name__}: no writable folder for compiled code, so each start compiles it anew; "
                "name one in NUMBA_CACHE_DIR",
                RuntimeWarning,
                stacklevel=2,
            )
            kernel = numba.njit(**options)(function)
        return _in_turn(kernel) if parallel else kernel

    return decorate


def _in_turn(kernel: F) -> F:
    """One call at a time where numba has only its portable pool of threads, which ends the process when two meet."""

    @wraps(kernel)
    def call(*arguments: Any) -> Any:
        if _may_meet():
            return kernel(*arguments)
        with _one_at_a_time:
            return kernel(*arguments)

    return cast(F, call)


def _may_meet() -> bool:
    try:
        return bool(numba.threading_layer() != "workqueue")
    except ValueError:  # nothing ran in parallel yet: which pool it will be is not known
        return False


def most_threads() -> int:
    """How many threads numba was started with: NUMBA_NUM_THREADS, or the cores this process may use."""
    return int(numba.config.NUMBA_NUM_THREADS)


@contextmanager
def threads(count: int) -> Iterator[int]:
    """Run the kernels inside on ``count`` threads, and yield their number.

    0 leaves them as they are: all that numba was started with, or the share that a batch gives its workers.

    Raises:
        UsageError: more threads than numba was started with.
    """
    before, most = numba.get_num_threads(), most_threads()
    if not 0 <= count <= most:
        raise UsageError(f"{count} threads for the compiled kernels: at most {most} are at hand (NUMBA_NUM_THREADS)")
    numba.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        numba.set_num_threads(before)

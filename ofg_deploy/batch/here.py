"""A batch on this machine: so many pairs under way at once, each in a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from types import TracebackType
from typing import Protocol

from ofg_deploy.batch.pairs import Pair
from ofg_deploy.batch.work import Facts, Means, Outcome, Worker


class Executor(Protocol):
    """Where pairs are worked on; a context.

    Attributes:
        facts: of the engines, known once the context is entered.
    """

    facts: Facts

    def run(self, pairs: Sequence[Pair], done: Callable[[Outcome], None]) -> None:
        """Register the pairs; ``done`` is called in this thread with each outcome, in the order in which they come.

        On Ctrl-C, or when the batch cannot go on, pairs under way stop before their next stage; one that is being
        written is finished.

        Raises:
            OfgError: the batch cannot go on. KeyboardInterrupt: as it came.
        """
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Here:
    """See ``Executor``. As many pairs are in memory as are under way."""

    def __init__(self, means: Means) -> None:
        self._worker = Worker(means)
        self.facts = self._worker.facts()

    def __enter__(self) -> Here:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.close()

    def run(self, pairs: Sequence[Pair], done: Callable[[Outcome], None]) -> None:
        """See ``Executor.run``."""
        pool = ThreadPoolExecutor(self._worker.means.workers, "pair")
        waiting: set[Future[Outcome]] = {pool.submit(self._worker.run, pair) for pair in pairs}
        try:
            for future in as_completed(set(waiting)):
                waiting.discard(future)
                with suppress(CancelledError):  # by another pair's failure, which comes too
                    done(future.result())
        except BaseException:
            self._worker.close()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for future in waiting:
                if not future.cancelled():
                    with suppress(BaseException):  # why it stopped is told already
                        done(future.result())

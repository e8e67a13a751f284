"""Who watches a training: nobody, a log and a callback, or a terminal (``cli/verbs/train.py``)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ofg_deploy.errors import plain

if TYPE_CHECKING:
    from ofg_deploy.train.run import EpochRecord

LOG = logging.getLogger("ofg_deploy")


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        stage: pairs are prepared, or the network is trained.
        done, total: steps of preparation, or visits of training pairs by all processes in all epochs.
        epoch, epochs: the epoch that runs, from 1, and how many there are; 0 while pairs are prepared.
        loss: of the last batch or, with ``row``, of the whole epoch; NaN before the first one.
        row: what came of an epoch, where one has just been finished.
    """

    stage: Literal["preparing", "training"]
    done: int
    total: int
    epoch: int = 0
    epochs: int = 0
    loss: float = math.nan
    row: EpochRecord | None = None


class Observer:
    """Watches and does nothing; in lines that it is given, parameters are marked (``errors.py``)."""

    def note(self, line: str) -> None:
        """Something worth knowing."""

    def warn(self, line: str) -> None:
        """Something that may be wrong."""

    def preparing(self, what: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """While pairs are prepared, in ``total`` steps; yields what is called after each."""
        return nullcontext(lambda: None)

    def training(self, begun: Progress) -> AbstractContextManager[Callable[[Progress], None]]:
        """While the network is trained; yields what is called after each batch and each epoch."""
        return nullcontext(lambda progress: None)


class Logged(Observer):
    """Lines go to the logger ``ofg_deploy``, progress to a function if there is one."""

    def __init__(self, progress: Callable[[Progress], None] | None = None) -> None:
        self._progress = progress or (lambda progress: None)

    def note(self, line: str) -> None:
        """As ``Observer``."""
        LOG.info("%s", plain(line))

    def warn(self, line: str) -> None:
        """As ``Observer``."""
        LOG.warning("%s", plain(line))

    @contextmanager
    def preparing(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """As ``Observer``."""
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            self._progress(Progress("preparing", done, total))

        yield advance

    @contextmanager
    def training(self, begun: Progress) -> Iterator[Callable[[Progress], None]]:
        """As ``Observer``."""
        yield self._progress

"""Who watches an export: nobody, a log, or a terminal (``cli/verbs/export.py``)."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

from ofg_deploy.errors import plain

LOG = logging.getLogger("ofg_deploy")


class Observer:
    """Lines go to the logger ``ofg_deploy``; how far the work is, nobody sees. Also an ``export.tensorrt.Progress``."""

    def note(self, line: str) -> None:
        """Something worth knowing; parameters in it are marked (``errors.py``)."""
        LOG.info("%s", plain(line))

    def working(self, what: str) -> AbstractContextManager[object]:
        """While something takes long that has no steps to count."""
        return nullcontext()

    def waiting(self) -> None:
        """Another process is building the same engine."""
        self.note("another process is building this engine: waiting for it")

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """As ``export.tensorrt.Progress``."""

    def step(self, phase: str, done: int) -> None:
        """As ``export.tensorrt.Progress``."""

    def finish(self, phase: str) -> None:
        """As ``export.tensorrt.Progress``."""

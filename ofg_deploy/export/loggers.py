"""Loggers of other packages, quieter for as long as they would only say what a user cannot act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def errors_only(name: str | None = None) -> Iterator[None]:
    """The logger of this name (None: the root) says nothing below an error inside, and is as before afterwards."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

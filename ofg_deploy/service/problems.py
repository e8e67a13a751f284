"""What went wrong, as a client hears it: problem+json (RFC 9457) with the sentence of the command line."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ofg_deploy.errors import DeviceError, FormatError, InputError, OfgError, SizeError, UsageError

MEDIA_TYPE = "application/problem+json"
OUT_OF_MEMORY = "out of memory: use a smaller grid or a machine with more"

# The first that fits. What is not among them is an internal error.
STATUS: tuple[tuple[type[OfgError], int], ...] = (
    (SizeError, 413),
    (FormatError, 415),
    (UsageError, 422),
    (InputError, 422),
    (DeviceError, 503),
)


@dataclass
class Problem(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        detail: one sentence: what was given, what was expected, what to do.
        headers: of the answer.
    """

    status: int
    detail: str
    headers: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The body, as JSON has it."""
        return {"type": "about:blank", "title": title(self.status), "status": self.status, "detail": self.detail}

    def body(self) -> bytes:
        """The same in bytes."""
        return json.dumps(self.record()).encode()


def title(status: int) -> str:
    """What HTTP calls a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def problem_of(error: BaseException, folder: Path) -> Problem:
    """What a client hears of an error: never where files lie, nor what an error of other packages quotes.

    Args:
        folder: of the service's files; what lies in it is named by its file name.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, OfgError):
        status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
        return Problem(status, without_paths(str(error), folder))
    if isinstance(error, MemoryError):
        return Problem(503, OUT_OF_MEMORY)
    if isinstance(error, OSError | sqlite3.Error):
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Problem(503, f"the service cannot use its files: {reason}")
    return Problem(500, f"internal error, {type(error).__name__}; the log of the service says where")


def without_paths(text: str, folder: Path) -> str:
    """A sentence in which files below ``folder`` are called by their name alone."""
    before, *others = text.split(f"{folder}/")
    kept = [before]
    for other in others:
        path, blank, rest = other.partition(" ")
        kept.append(path.rpartition("/")[2] + blank + rest)
    return "".join(kept).replace(str(folder), "the service's folder")

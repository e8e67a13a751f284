"""One thing found in a file, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something a user should know about a file.

    Attributes:
        severity: ``error``: cannot be registered as it is; ``warning``: may go wrong; ``note``: good to know.
        about: what part of the file, one word.
        found: what is there, with numbers.
        fix: what to do; empty where nothing needs doing.
        mended: ``fix`` writes a copy without it.
        command: a whole command line that helps; empty where there is none.
    """

    severity: Severity
    about: str
    found: str
    fix: str = ""
    mended: bool = False
    command: str = ""

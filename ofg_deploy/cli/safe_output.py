"""What is printed may hold names and texts of files: control sequences in them do not reach the terminal.

A file name can hold what sets a window's title, writes to the clipboard or answers in the user's stead.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What progress bars and tables are drawn with: colours, moving and clearing, hiding the cursor.
DRAWING = r"\x1b\[[0-9;?]*[mABCDGHJKhl]"
CONTROL = re.compile(rf"({DRAWING})|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
NO_TERMINAL = re.compile(r"()[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class SafeStream:
    """A text stream that shows control characters as escapes; all else is the stream it stands before."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._pattern = CONTROL if stream.isatty() else NO_TERMINAL

    def write(self, text: str) -> int:
        """Write it, control characters as ``\\x1b`` and the like."""
        return int(self._stream.write(self._pattern.sub(_shown, text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def safe_output() -> Iterator[None]:
    """Standard output and error are safe inside."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(SafeStream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _shown(found: re.Match[str]) -> str:
    return found[1] or "".join(f"\\x{ord(character):02x}" for character in found[0])

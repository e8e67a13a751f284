"""How records name files: relative to the record's own folder, so that both can be moved together.

An absolute path says where a machine keeps its data and who works there, and is wrong on every other machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def as_paths(record: object, names: Sequence[str]) -> None:
    """Fields of a frozen dataclass that name files, or several, as paths: whoever calls a library may give texts."""
    for name in names:
        value = getattr(record, name)
        if isinstance(value, str):
            object.__setattr__(record, name, Path(value))
        elif isinstance(value, list | tuple):
            object.__setattr__(record, name, tuple(map(Path, value)))


def user_folder() -> Path:
    """Where the platform keeps what applications keep for a user, ``ofg-deploy`` in it; it need not exist."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME", "")
        if not Path(base).is_absolute():  # the standard has relative ones ignored
            base = str(Path.home() / ".local" / "share")
    return Path(base) / "ofg-deploy"


def portable(path: Path, folder: Path) -> str:
    """The path as a record in ``folder`` names it: relative to it, with ``/``.

    Files that have nothing but the root (or not even a drive) in common with the folder keep their absolute path: they
    are not moved together with it.
    """
    absolute, base = (Path(os.path.abspath(each)) for each in (path, folder))  # noqa: PTH100  # links stay as they are
    try:
        shared = Path(os.path.commonpath([absolute, base]))
    except ValueError:  # another drive
        return str(absolute)
    if shared == Path(shared.anchor):
        return str(absolute)
    return Path(os.path.relpath(absolute, base)).as_posix()


def located(text: str, folder: Path) -> Path:
    """The absolute path of what ``portable`` wrote into a record in ``folder``; earlier versions wrote that itself."""
    return Path(os.path.abspath(folder / text))  # noqa: PTH100


def portable_command(command: Sequence[str], folder: Path) -> list[str]:
    """A command line for a record in ``folder``: the program by name, absolute paths in it as ``portable``."""
    first, *rest = command or [""]
    return [Path(first).name, *(portable(Path(text), folder) if os.path.isabs(text) else text for text in rest)]  # noqa: PTH117

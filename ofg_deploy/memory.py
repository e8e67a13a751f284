"""How much memory this process may still take, as the system or its container says."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_ram() -> int:
    """Bytes that can be had without swapping; within the limit of a container, if there is one."""
    free = _available() or _physical()
    limit = _within_container()
    return free if limit is None else max(0, min(free, limit))


def _available() -> int | None:
    """What Linux would give; free pages alone leave out the file cache."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _physical() -> int:
    """All there is, or what is free where the system tells."""
    names = getattr(os, "sysconf_names", {})
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        if pages in names:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return 2**34  # Windows does not tell without another package


def _within_container() -> int | None:
    """What is left of a cgroup's limit; None without one. Cached files do not count: they give way."""
    try:
        most = (CGROUP / "memory.max").read_text().strip()
        if most == "max":
            return None
        used = int((CGROUP / "memory.current").read_text())
        lines = dict(line.split(" ", 1) for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(most) - used + int(lines.get("inactive_file", 0))
    except (OSError, ValueError):
        return None

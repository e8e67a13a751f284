"""The built page: where its files lie, and the headers that every answer of a server carries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ofg_deploy.errors import DeviceError

STATIC = Path(__file__).with_name("static")
NOT_BUILT = "the page is not built: run make web in a checkout of OFG Deploy (it needs npm), or install the wheel"

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

# The viewer keeps its fonts and colour tables as data: URLs. Styles that scripts set do not count as inline ones.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page and its media type."""

    content: bytes
    type: str


def is_built() -> bool:
    """Whether there is a page to show."""
    return (STATIC / "view.html").is_file()


def check_built() -> None:
    """Raises DeviceError, which says how to build the page, where it is not there."""
    if not is_built():
        raise DeviceError(NOT_BUILT)


def asset(name: str) -> Asset | None:
    """A file of the built page by its name with slashes, as ``assets/view.js``; None for anything else.

    The name is looked up among the files that are there and never made a path.
    """
    known = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}
    path = known.get(name)
    if path is None or path.suffix not in TYPES:
        return None
    return Asset(path.read_bytes(), TYPES[path.suffix])

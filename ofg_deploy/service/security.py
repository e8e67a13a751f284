"""What every request passes before it is looked at, and what every answer carries.

Who may ask: on this machine everybody, from elsewhere who has the token. A page of another site that a browser here has
open is nobody: it cannot reach the service under another name (Host, DNS rebinding) nor send it anything (Origin).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ofg_deploy.errors import UsageError
from ofg_deploy.outputs import read_text
from ofg_deploy.service.metrics import Metrics
from ofg_deploy.service.problems import MEDIA_TYPE, Problem
from ofg_deploy.service.worker import log_internal
from ofg_deploy.web.assets import POLICY

logger = logging.getLogger("ofg_deploy.service")
VARIABLE = "OFG_TOKEN"
FEWEST = 16  # characters of a token
SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("/", "/healthz", "/readyz", "/openapi.json")  # without a token: they tell nothing of anybody's images
ASSETS = "/assets/"

# A report has a policy of its own, which allows its own style and script; it never acts in the name of the page.
REPORT_POLICY = "sandbox allow-scripts; frame-ancestors 'self'"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Token:
    """What a client from elsewhere has to show. Only its digest is kept."""

    digest: bytes

    @classmethod
    def of(cls, text: str, source: str) -> Token:
        """Raises UsageError for one that could be guessed or that no header can carry."""
        if len(text) < FEWEST or not text.isascii() or not text.isprintable() or " " in text:
            raise UsageError(
                f"the token of {source} cannot be used: give {FEWEST} or more ASCII characters without blanks, as "
                "openssl rand -hex 32 makes them"
            )
        return cls(hashlib.sha256(text.encode()).digest())

    def fits(self, authorization: str) -> bool:
        """Whether a header shows it, in the same time whatever it holds."""
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(hashlib.sha256(given.strip().encode("utf-8", "replace")).digest(), self.digest)
        return same and scheme.lower() == "bearer"


def read_token(file: Path | None) -> Token | None:
    """The token of a file, or else of the environment; None without one. Raises UsageError, InputError."""
    if file is not None:
        return Token.of(read_text(file).strip(), str(file))
    text = os.environ.get(VARIABLE)
    return Token.of(text.strip(), VARIABLE) if text is not None else None


def is_loopback(address: str) -> bool:
    """Whether an IP address is this machine's own."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def check_exposed(host: str, address: str, token: Token | None) -> None:
    """Raises UsageError where others could come in without a token."""
    if token is None and not is_loopback(address):
        raise UsageError(
            f"`host` {host} can be reached from other machines, which needs a token: give `token_file` or {VARIABLE}, "
            "or leave `host` at 127.0.0.1"
        )


class Guard:
    """Wraps the application; see above. Also counts and logs each request, without anything of the client's.

    Args:
        app: what is guarded.
        hosts: names under which the service may be reached, besides localhost and IP addresses.
        token: None lets everybody in who reaches it.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: Token | None, metrics: Metrics) -> None:
        self._app, self._token, self._metrics = app, token, metrics
        self._hosts = {"localhost", *(host.lower().rstrip(".") for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, answer)
        except Problem as problem:
            await respond(problem, answer)
        except ClientDisconnect:
            pass
        except Exception as error:
            log_internal(error)
            if not status:
                await respond(Problem(500, "internal error; the log of the service says where"), answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in (*SAFE, "POST", "DELETE") else "other"
            self._metrics.answered(method, route, status)
            logger.info("%s %s: %s in %.3f s", method, route, status or "cut off", time.monotonic() - began)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            raise Problem(421, "the service does not go by this name: start it with --allow-host NAME")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != hosts[0].lower()
        if foreign or (site in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate"):
            raise Problem(403, "a page of another site may not use the service")
        if self._token is None or scope["path"] in OPEN or scope["path"].startswith(ASSETS):
            return
        if not self._token.fits(headers.get("authorization", "")):
            raise Problem(
                401, "a token is needed: send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
            if name in self._hosts:
                return True
            ipaddress.ip_address(name.partition("%")[0])  # an address cannot be made to mean another one
        except ValueError:
            return False
        return True


async def respond(problem: Problem, send: Send) -> None:
    """A problem as an answer of its own."""
    body = problem.body()
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **problem.headers}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})

"""The server of ``ofg view``: one registration, read only, on the loopback interface, behind a random token.

Another page in the same browser can send requests here but cannot know the token; a name that somebody's DNS lets point
to this machine is refused by the Host header. Nothing that a client sends becomes a path.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ofg_deploy.errors import DeviceError, OfgError, plain
from ofg_deploy.version import __version__
from ofg_deploy.web.assets import HEADERS, asset
from ofg_deploy.web.described import described, files
from ofg_deploy.web.scene import Scene

LOOPBACK = "127.0.0.1"
CHUNK = 2**20
IDLE_S = 30.0  # a connection that says nothing is closed


class ViewServer(ThreadingHTTPServer):
    """Shows one registration at ``address`` until ``close``.

    Attributes:
        scene: what is shown.
        token: first part of every path.
    """

    daemon_threads = True

    def __init__(self, scene: Scene, port: int = 0) -> None:
        """Listen on a port of the loopback interface; 0 for one that is free. Raises DeviceError where that fails."""
        self.scene = scene
        self.token = secrets.token_urlsafe(24)
        self._open: set[socket.socket] = set()
        try:
            super().__init__((LOOPBACK, port), _Answer)
        except OSError as error:
            raise DeviceError(f"port {port} of {LOOPBACK} cannot be used: {error.strerror or error}") from error

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    def start(self) -> None:
        """Answer requests on another thread."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def close(self) -> None:
        """Stop, after ``start``, free the port and end every connection."""
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """On a thread of its own."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection has ended."""
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection is no event of ours."""


class _Answer(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version = f"ofg/{__version__}"
    sys_version = ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        try:
            self._route()
        except OfgError as error:
            self._say(HTTPStatus.UNPROCESSABLE_ENTITY, plain(error.marked))

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _route(self) -> None:
        port, scene = self.server.server_port, self.server.scene
        token, _, name = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        kind, _, role = name.partition("/")
        if self.headers.get("Host", "") not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            self._say(HTTPStatus.FORBIDDEN, "This address serves only the machine that it runs on.")
        elif not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._say(HTTPStatus.NOT_FOUND, "There is nothing here: use the address that ofg view printed.")
        elif name == "registration.json":
            self._answer(HTTPStatus.OK, json.dumps(described(scene)).encode(), "application/json")
        elif kind == "volumes" and role in scene.roles:
            self._answer(HTTPStatus.OK, scene.volume(role), "application/octet-stream")
        elif kind == "files" and (path := files(scene.registration).get(role)):
            self._download(path)
        elif found := asset(name or "view.html"):
            self._answer(HTTPStatus.OK, found.content, found.type)
        else:
            self._say(HTTPStatus.NOT_FOUND, "There is no such file in this registration.")

    def _answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self._head(status, len(content), {"Content-Type": kind})
        if self.command != "HEAD":
            self.wfile.write(content)

    def _download(self, path: Path) -> None:
        named = f"attachment; filename*=UTF-8''{quote(path.name, safe='')}"
        with path.open("rb") as stream:
            left = path.stat().st_size
            head = {"Content-Type": "application/octet-stream", "Content-Disposition": named}
            self._head(HTTPStatus.OK, left, head)
            while self.command != "HEAD" and left and (chunk := stream.read(min(CHUNK, left))):
                self.wfile.write(chunk)
                left -= len(chunk)
        self.close_connection = self.close_connection or bool(
            left
        )  # the file became shorter: the client sees that something is missing

    def _say(self, status: HTTPStatus, sentence: str) -> None:
        self._answer(status, f"{sentence}\n".encode(errors="backslashreplace"), "text/plain; charset=utf-8")

    def _head(self, status: HTTPStatus, size: int, more: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **more, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What ``http.server`` finds wrong with a request, in the form of our other answers."""
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:  # it looks for a method called do_POST and the like
            self._say(HTTPStatus.METHOD_NOT_ALLOWED, "A registration can only be looked at: use GET.")
        else:
            self._say(HTTPStatus(code), f"{message or HTTPStatus(code).phrase}.")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: standard output is the user's."""

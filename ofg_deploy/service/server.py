"""The process: a socket that listens, signals that end it, and nothing of a client's in its log."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from ofg_deploy.errors import UsageError
from ofg_deploy.service.app import create_app
from ofg_deploy.service.security import Guard, Token, check_exposed
from ofg_deploy.service.state import Service

REQUESTS_S = 20  # for requests under way to be answered as the service ends
CONNECTIONS = 512
BACKLOG = 128


def listen(host: str, port: int, token: Token | None) -> socket.socket:
    """A socket at this address. Raises UsageError: no such address, one that needs a token, or a port that is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"`host` {host} is no address of this machine: {error}") from error
    check_exposed(host, str(address[0]), token)
    found = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two listen at one address
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise UsageError(f"`port` {port} of {host} cannot be used: {error.strerror}; give another one") from error
    return found


def address_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(
    service: Service, listening: socket.socket, hosts: Collection[str], token: Token | None, static: Path | None = None
) -> None:
    """Serve until SIGTERM or Ctrl-C. Requests under way are answered, jobs under way wait for the next start."""
    log_to_stderr()
    server_of(service, hosts, token, static).run(sockets=[listening])
    if service.workers.at_work:  # native code that does not end: its job is registered again after the next start
        sys.stderr.flush()
        os._exit(0)


def server_of(
    service: Service, hosts: Collection[str], token: Token | None, static: Path | None = None
) -> uvicorn.Server:
    """What ``run`` runs."""
    app = Guard(create_app(service, static), hosts, token, service.metrics)
    config = uvicorn.Config(
        app, http="h11", ws="none", loop="asyncio", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=REQUESTS_S,
    )  # fmt: skip
    return _Server(config)


def log_to_stderr() -> None:
    """One line for each request and job, with its time. uvicorn's own lines name clients and are left out."""
    ours, theirs = logging.getLogger("ofg_deploy.service"), logging.getLogger("uvicorn")
    ours.handlers[:] = [handler := logging.StreamHandler()]
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours.setLevel(logging.INFO)
    ours.propagate = theirs.propagate = False
    theirs.handlers[:] = [logging.NullHandler()]


class _Server(uvicorn.Server):
    """Ends well after a signal: uvicorn would raise it once more, and the exit code would be that of a crash."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

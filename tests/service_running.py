"""A service that runs in this process or in one of its own, and what the tests send to it."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from ofg_deploy.serve.model import load_model
from ofg_deploy.service.limits import Limits
from ofg_deploy.service.security import Token
from ofg_deploy.service.server import address_of, listen, server_of
from ofg_deploy.service.state import Service

ROOT = Path(__file__).parents[1]
ENDED = ("done", "failed", "expired")


class Slow:
    """Stands where a model stands: a registration that waits in the stage ``refine`` until it may go on."""

    network, runtime, provider, contract = "slow", "none", "CPU", None

    def __init__(self) -> None:
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def sharing(self, count: int) -> Slow:
        return self

    def register(self, *images: Path, progress: Callable[[str], None], **options: Any) -> Any:
        progress("refine")
        self.begun.set()
        assert self.may_go_on.wait(20)
        progress("warp")
        model = load_model("none")
        return model.register(options["fixed"], options["moving"], refine=0, init="header", progress=progress)


@contextmanager
def serving(
    folder: Path,
    models: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    token: Token | None = None,
    workers: int = 1,
    static: Path | None = None,
) -> Iterator[tuple[str, Service]]:
    """The address of a service in this process, and what its routes work with."""
    service = Service.open(folder, models or {"none": load_model("none")}, limits or Limits(), workers)
    listening = listen("127.0.0.1", 0, token)
    server = server_of(service, ["127.0.0.1"], token, static)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_until(lambda: server.started, 20)
        yield address_of(listening), service
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def command(folder: Path, *options: object, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    """``ofg serve`` in a process of its own: address, process, and the file its log goes to."""
    line = [sys.executable, "-m", "ofg_deploy", "serve", "--port", "0", "--data", folder, *options]
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    log = folder.parent / f"{folder.name}.log"
    with log.open("a") as to:
        process = subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, stderr=to, text=True, env=given)
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        address = next(found[0] for text in lines if (found := re.search(r"http://[^ ;]+", text)))
        yield address, process, log
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def send(address: str, fixed: Path, moving: Path, also: Any = (), **options: Any) -> requests.Response:
    """POST a pair; ``also``: more parts."""
    parts = [("fixed", ("a.nii.gz", fixed.read_bytes())), ("moving", ("b.nii.gz", moving.read_bytes())), *also]
    if options:
        parts.append(("options", (None, json.dumps(options), "application/json")))
    return requests.post(f"{address}/v1/registrations", files=parts, timeout=30)


def ended(address: str, id: str, seconds: float = 60) -> dict[str, Any]:
    """The job, once it is over."""
    found: dict[str, Any] = {}

    def over() -> bool:
        found.update(requests.get(f"{address}/v1/registrations/{id}", timeout=30).json())
        return found["state"] in ENDED

    wait_until(over, seconds, 0.1)
    return found


def download(address: str, job: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Every file of a job, by its role, under the name that the service gives it."""
    folder.mkdir()
    found = {}
    for role, file in job["files"].items():
        answer = requests.get(f"{address}{file['href']}", timeout=30)
        assert answer.status_code == 200, answer.text
        assert len(answer.content) == file["bytes"]
        name = re.search(r'filename="([^"]+)"', answer.headers["content-disposition"])
        found[role] = folder / (name[1] if name else f"{role}.html")
        found[role].write_bytes(answer.content)
    return found


def unpacked(path: Path) -> bytes:
    """Content, without gzip."""
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def wait_until(condition: Callable[[], bool], seconds: float, pause_s: float = 0.02) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(pause_s)

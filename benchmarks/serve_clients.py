"""Clients of a service under load: honest ones that check every byte, and hostile ones and what they must hear."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import requests

CHECKED = ("warped", "transform")
PATIENCE_S = 600.0  # without any answer
BOMB_BYTES = 256 * 2**20  # of zeros behind the voxels that a header promises
SLOW_S = 6.0
GONE = (requests.ConnectionError, requests.Timeout, http.client.HTTPException, OSError)


@dataclass(frozen=True)
class Task:
    """A pair on the disk, its options, and the digests of the files that ``Model.register`` makes of it."""

    fixed: Path
    moving: Path
    options: dict[str, Any]
    expected: dict[str, str] = field(default_factory=dict)


@dataclass
class Tally:
    """What happened, counted by all clients."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    done: int = 0
    hostile: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def complain(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)

    def finished(self) -> None:
        with self.lock:
            self.done += 1


class Client:
    """Sends tasks one after another, each until its results are here; answers that fail to come are asked for again."""

    def __init__(self, address: str, tally: Tally, rng: random.Random) -> None:
        self.address, self.tally, self.rng = address, tally, rng
        self._session = requests.Session()

    def honest(self, task: Task) -> None:
        """One registration, whatever happens to the service meanwhile."""
        id = self._send(task)
        with self.tally.lock:
            self.tally.accepted.add(id)
        job = self._ended(id)
        if job is None or job["state"] != "done":
            self.tally.complain(f"job {id[:8]} was accepted and is {job and (job['state'], job.get('problem'))}")
        else:
            self._check(task, job)
        self.tally.finished()

    def hostile(self, task: Task) -> None:
        """One of the ways to misuse the service, and whether it answers as it should."""
        ways: list[Callable[[Task], None]] = [
            self.cut, self.wrong_type, self.not_multipart, self.huge_header, self.bomb, self.slow, self.not_numbers,
            self.unknown, self.deleted,
        ]  # fmt: skip
        with self.tally.lock:
            way = ways[self.tally.hostile % len(ways)]
            self.tally.hostile += 1
        self.tally.count(f"hostile {way.__name__}")
        try:
            way(task)
        except GONE:
            self.tally.count("hostile, cut by the kill")

    def cut(self, task: Task) -> None:
        """The connection breaks in the middle of a file."""
        body, kind = _body(task)
        with self._socket() as connection:
            connection.sendall(_head(len(body), kind) + body[: len(body) * 2 // 3])

    def slow(self, task: Task) -> None:
        """A few bytes at a time, and then nothing more."""
        body, kind = _body(task)
        with self._socket() as connection:
            connection.sendall(_head(len(body), kind))
            for at in range(20):
                connection.sendall(body[at * 16 : (at + 1) * 16])
                time.sleep(SLOW_S / 20)

    def wrong_type(self, task: Task) -> None:
        self._refused(415, files={"fixed": b"no voxels, only words " * 50, "moving": task.moving.read_bytes()})

    def not_multipart(self, _: Task) -> None:
        answer = requests.post(f"{self.address}/v1/registrations", json={"fixed": "/etc/passwd"}, timeout=PATIENCE_S)
        self._expect(answer, 415)

    def huge_header(self, task: Task) -> None:
        """A header that promises 729 thousand million voxels."""
        raw = bytearray(_unpacked(task.moving))
        raw[42:48] = np.array([9000, 9000, 9000], "<i2").tobytes()
        self._refused(413, files={"fixed": task.fixed.read_bytes(), "moving": gzip.compress(bytes(raw))})

    def bomb(self, task: Task) -> None:
        """A gzip file that goes on for 256 MiB after its voxels: accepted by its header, refused when it is read."""
        packed = gzip.compress(_unpacked(task.moving)) + _zeros()
        self._fails(422, {"fixed": task.fixed.read_bytes(), "moving": packed})

    def not_numbers(self, task: Task) -> None:
        """NaN among the voxels."""
        image = nib.load(task.moving)
        data = image.get_fdata(dtype=np.float32)
        data[3, 4, 5] = np.nan
        packed = gzip.compress(nib.Nifti1Image(data, image.affine).to_bytes())
        self._fails(422, {"fixed": task.fixed.read_bytes(), "moving": packed})

    def unknown(self, task: Task) -> None:
        """An option that does not exist."""
        both = {"fixed": task.fixed.read_bytes(), "moving": task.moving.read_bytes()}
        self._refused(422, files=both, data={"options": json.dumps({"shell": "rm"})})

    def deleted(self, task: Task) -> None:
        """Accepted, and deleted at once."""
        id = self._send(task)
        answer = requests.delete(f"{self.address}/v1/registrations/{id}", timeout=PATIENCE_S)
        self._expect(answer, 204)
        self._expect(requests.get(f"{self.address}/v1/registrations/{id}", timeout=PATIENCE_S), 404)

    def _refused(self, status: int, **given: Any) -> None:
        while True:
            answer = requests.post(f"{self.address}/v1/registrations", timeout=PATIENCE_S, **given)
            if answer.status_code != 429:
                self._expect(answer, status)
                return
            self._wait(answer)

    def _fails(self, status: int, files: dict[str, bytes]) -> None:
        while True:
            answer = requests.post(f"{self.address}/v1/registrations", files=files, timeout=PATIENCE_S)
            if answer.status_code != 429:
                break
            self._wait(answer)
        if answer.status_code == 202:
            job = self._ended(answer.json()["id"])
            if job is None or job["state"] != "failed" or job["problem"]["status"] != status:
                self.tally.complain(f"hostile job: {job and (job['state'], job.get('problem'))}, expected {status}")
        else:
            self._expect(answer, status)

    def _expect(self, answer: requests.Response, status: int) -> None:
        if answer.status_code != status:
            heard = f"{answer.status_code} {answer.text[:200]}"
            self.tally.complain(f"{answer.request.method} was answered {heard}, and not {status}")

    def _send(self, task: Task) -> str:
        body, kind = _body(task)
        while True:
            try:
                answer = self._session.post(
                    f"{self.address}/v1/registrations", data=body, headers={"Content-Type": kind}, timeout=PATIENCE_S
                )
            except GONE:
                self.tally.count("sent again")
                time.sleep(0.5)
                continue
            if answer.status_code == 202:
                return str(answer.json()["id"])
            if answer.status_code not in (429, 503):
                raise AssertionError(f"an honest pair is refused: {answer.status_code} {answer.text[:300]}")
            self._wait(answer)

    def _wait(self, answer: requests.Response) -> None:
        self.tally.count(str(answer.status_code))
        time.sleep(float(answer.headers.get("Retry-After", 1)) * self.rng.uniform(0.5, 1.0))

    def _get(self, path: str) -> requests.Response:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._session.get(f"{self.address}{path}", timeout=PATIENCE_S)
            except GONE:  # noqa: PERF203 - the service is killed and comes back
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    def _ended(self, id: str) -> dict[str, Any] | None:
        """None: the service does not know it."""
        while True:
            self.tally.count("asked how it goes")
            answer = self._get(f"/v1/registrations/{id}?wait=20")
            if answer.status_code != 200:
                return None
            job: dict[str, Any] = answer.json()
            if job["state"] in ("done", "failed", "expired"):
                return job

    def _check(self, task: Task, job: dict[str, Any]) -> None:
        for role in CHECKED:
            answer = self._get(job["files"][role]["href"])
            if hashlib.sha256(answer.content).hexdigest() != task.expected[role]:
                self.tally.complain(f"job {job['id'][:8]}: {role} is not that of Model.register ({task.options})")

    def _socket(self) -> socket.socket:
        url = urlsplit(self.address)
        return socket.create_connection((url.hostname, url.port), timeout=30)


def _body(task: Task) -> tuple[bytes, str]:
    parts = [("fixed", ("a", task.fixed.read_bytes())), ("moving", ("b", task.moving.read_bytes()))]
    parts.append(("options", (None, json.dumps(task.options))))
    made = requests.Request("POST", "http://any", files=parts).prepare()
    assert isinstance(made.body, bytes)
    return made.body, made.headers["Content-Type"]


def _head(length: int, kind: str) -> bytes:
    lines = ["POST /v1/registrations HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


_packed: list[bytes] = []
_packing = threading.Lock()


def _zeros() -> bytes:
    with _packing:
        if not _packed:
            _packed.append(gzip.compress(bytes(BOMB_BYTES), 9))
    return _packed[0]

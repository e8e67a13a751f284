"""Jobs and their states in SQLite, so that whatever was accepted is known after a ``kill -9``.

::

    queued -> running -> done   -> expired -> forgotten
       ^         |    -> failed -> expired
       +---------+  the service ended meanwhile

Every change is on the disk (WAL, synchronous) before it is answered. The file is locked while a service uses it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.service.limits import ATTEMPTS
from ofg_deploy.service.problems import Problem

State = Literal["queued", "running", "done", "failed", "expired"]
FILE = "jobs.sqlite"
SCHEMA = 1  # in user_version
TABLE = """
CREATE TABLE IF NOT EXISTS job (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, state TEXT NOT NULL, model TEXT NOT NULL,
    options TEXT NOT NULL, files TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL,
    attempts INTEGER NOT NULL DEFAULT 0, result TEXT, problem TEXT
)
"""
COLUMNS = "number, id, state, model, options, files, created, started, finished, attempts, result, problem"
RECENT = 20  # jobs by whose time the next ones are estimated
USUAL_S = 10.0  # before there are any


@dataclass(frozen=True)
class Job:
    """One registration. Times are seconds since 1970.

    Attributes:
        number: in the order of acceptance.
        id: random; who knows it may read the job.
        model: by the name under which the service offers it.
        options: as ``service.options.Options``.
        files: names of the inputs by field.
        attempts: how often it was begun.
        result: measures, warnings, files; None unless done.
        problem: as ``Problem.record``; None unless failed.
    """

    number: int
    id: str
    state: State
    model: str
    options: dict[str, Any]
    files: dict[str, list[str]]
    created: float
    started: float | None
    finished: float | None
    attempts: int
    result: dict[str, Any] | None
    problem: dict[str, Any] | None


class Store:
    """All jobs; safe to use from several threads.

    Raises:
        UsageError: another service uses the folder. InputError: a file that is damaged, of another version, or cannot
            be written.
    """

    def __init__(self, folder: Path) -> None:
        self.ends = 0  # how often a job has ended or been deleted: who waits for one looks again when this changes
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        path = folder / FILE
        try:
            self._base = sqlite3.connect(path, timeout=0.2, isolation_level=None, check_same_thread=False)
            self._base.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            version = self._base.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA):
                raise InputError(f"{path} was written by another version of ofg serve: give another folder")
            self._base.execute("BEGIN EXCLUSIVE")
            self._base.execute(TABLE)
            self._base.execute(f"PRAGMA user_version={SCHEMA}")
            self._base.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise UsageError(f"another ofg serve uses {folder}: give another folder (`data`)") from error
            raise InputError(f"{path} cannot be used: {error}; move it away") from error

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._base.close()

    def add(self, id: str, model: str, options: dict[str, Any], files: dict[str, list[str]]) -> Job:
        """Accept a job."""
        with self._write() as write:
            write(
                "INSERT INTO job (id, state, model, options, files, created) VALUES (?, 'queued', ?, ?, ?, ?)",
                (id, model, json.dumps(options), json.dumps(files), time.time()),
            )
            self._changed.notify_all()
        found = self.get(id)
        assert found is not None
        return found

    def take(self, patience_s: float) -> Job | None:
        """The next job, which is running from now on; None where none comes in time."""
        with self._lock:
            if not self._one("state = 'queued'"):
                self._changed.wait(patience_s)
            found = self._one("state = 'queued' ORDER BY number LIMIT 1")
            if found is None:
                return None
            with self._write() as write:
                write(
                    "UPDATE job SET state = 'running', started = ?, attempts = attempts + 1 WHERE id = ?",
                    (time.time(), found.id),
                )
            return self.get(found.id)

    def finish(self, id: str, result: dict[str, Any]) -> bool:
        """A running job is done. False: it was deleted meanwhile."""
        return self._end(id, "done", result, None)

    def fail(self, id: str, problem: Problem) -> bool:
        """A running job cannot be done. False: it was deleted meanwhile."""
        return self._end(id, "failed", None, problem.record())

    def put_back(self, id: str) -> None:
        """A running job waits again, as if it had not been begun."""
        with self._write() as write:
            write("UPDATE job SET state = 'queued', started = NULL, attempts = attempts - 1 WHERE id = ?", (id,))

    def get(self, id: str) -> Job | None:
        """None: there is none of this id."""
        return self._one("id = ?", (id,))

    def delete(self, id: str) -> Job | None:
        """Forget a job, whatever its state; what it was."""
        with self._lock:
            found = self.get(id)
            with self._write() as write:
                write("DELETE FROM job WHERE id = ?", (id,))
            self.ends += 1
            return found

    def position(self, job: Job) -> int:
        """How many jobs are before it in the queue."""
        return self._count("state = 'queued' AND number < ?", (job.number,))

    def count(self, state: State) -> int:
        """Jobs in this state."""
        return self._count("state = ?", (state,))

    def seconds_each(self) -> float:
        """How long a job has taken lately."""
        query = (
            "SELECT avg(taken) FROM (SELECT finished - started AS taken FROM job WHERE started IS NOT NULL AND "
            f"finished IS NOT NULL ORDER BY number DESC LIMIT {RECENT})"
        )
        with self._lock:
            return float(self._base.execute(query).fetchone()[0] or USUAL_S)

    def expire(self, keep_s: float) -> list[str]:
        """Mark jobs that ended longer ago; forget those that expired as long ago. The former's ids."""
        now = time.time()
        with self._write() as write:
            gone = [row[0] for row in write("SELECT id FROM job WHERE state IN ('done', 'failed') AND finished <= ?",
                                            (now - keep_s,))]  # fmt: skip
            for id in gone:
                write("UPDATE job SET state = 'expired', result = NULL, problem = NULL WHERE id = ?", (id,))
            write("DELETE FROM job WHERE state = 'expired' AND finished <= ?", (now - 2 * keep_s,))
        return gone

    def recover(self) -> None:
        """After a start: what was running waits again, unless it has brought the service down too often."""
        gone = Problem(500, f"the service ended {ATTEMPTS} times while this pair was being registered")
        with self._write() as write:
            write(
                "UPDATE job SET state = 'failed', finished = ?, problem = ? WHERE state = 'running' AND attempts >= ?",
                (time.time(), json.dumps(gone.record()), ATTEMPTS),
            )
            write("UPDATE job SET state = 'queued', started = NULL WHERE state = 'running'")

    def ids(self) -> set[str]:
        """Of all jobs whose files are wanted."""
        with self._lock:
            return {row[0] for row in self._base.execute("SELECT id FROM job WHERE state != 'expired'")}

    def wake(self) -> None:
        """Those who wait for a job look up."""
        with self._lock:
            self._changed.notify_all()

    def _end(self, id: str, state: State, result: dict[str, Any] | None, problem: dict[str, Any] | None) -> bool:
        values = [None if each is None else json.dumps(each, allow_nan=False) for each in (result, problem)]
        with self._write() as write:
            changed = write(
                "UPDATE job SET state = ?, finished = ?, result = ?, problem = ? WHERE id = ? AND state = 'running'",
                (state, time.time(), *values, id),
            )
        with self._lock:
            self.ends += 1
        return bool(changed.rowcount)

    def _one(self, where: str, values: tuple[Any, ...] = ()) -> Job | None:
        with self._lock:
            row = self._base.execute(f"SELECT {COLUMNS} FROM job WHERE {where}", values).fetchone()
        if row is None:
            return None
        found = dict(zip(COLUMNS.split(", "), row, strict=True))
        for name in ("options", "files", "result", "problem"):
            found[name] = None if found[name] is None else json.loads(found[name])
        return Job(**found)

    def _count(self, where: str, values: tuple[Any, ...] = ()) -> int:
        with self._lock:
            return int(self._base.execute(f"SELECT count(*) FROM job WHERE {where}", values).fetchone()[0])

    @contextmanager
    def _write(self) -> Iterator[Any]:
        """All of it or nothing."""
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base.execute
                self._base.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._base.execute("ROLLBACK")
                raise

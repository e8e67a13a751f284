"""What a batch leaves beside its results: ``batch.json``, all pairs and what became of them, and ``failures.csv``."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from msgspec import UNSET

from ofg_deploy import batch_record
from ofg_deploy.batch.pairs import Pair, Part
from ofg_deploy.batch.work import Facts, Outcome, sidecar_of
from ofg_deploy.batch_record import BatchRecord, Model, Row, Runtime, Status
from ofg_deploy.claims import held
from ofg_deploy.errors import InputError, plain
from ofg_deploy.locations import portable, portable_command
from ofg_deploy.outputs import cell, sweep, to_json, write_bytes
from ofg_deploy.version import __version__

EVERY_S = 10.0  # a record of a thousand pairs is not written anew after each of them


@dataclass
class Record:
    """The state of a batch, or of this part of it; written when it begins, now and then, and when it ends.

    Attributes:
        out: folder of the batch.
        pairs: those of this part.
        part: which part.
        command: as typed.
        facts: of the engines, once they are open.
    """

    out: Path
    pairs: list[Pair]
    part: Part
    command: list[str]
    facts: Facts | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _start: float = field(default_factory=time.monotonic)
    _written: float = 0.0

    @property
    def path(self) -> Path:
        """``batch.json``, with its number where it is a part."""
        return self.part.file(self.out, "batch.json")

    @property
    def failures_path(self) -> Path:
        """There where a pair failed: its name, the error in one line, the exit code of its kind."""
        return self.part.file(self.out, "failures.csv")

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._start

    @property
    def failed(self) -> list[Outcome]:
        """In the order of the pairs."""
        found = (self.outcomes.get(pair.name) for pair in self.pairs)
        return [outcome for outcome in found if outcome and outcome.status == "failed"]

    def counts(self) -> dict[Status, int]:
        """Pairs by status."""
        found = Counter(outcome.status for outcome in self.outcomes.values())
        of: dict[Status, int] = {status: found[status] for status in ("done", "skipped", "failed")}
        return {**of, "pending": len(self.pairs) - sum(of.values())}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For one process at a time. Raises InputError if another one does these pairs, or there is no writing here."""
        made = not self.out.exists()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write into {self.out}: {error.strerror or error}") from error
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            with held(lock, 0.0, f"another process is at work on the batch in {self.out}: wait for it"):
                yield
        finally:
            if made:
                with suppress(OSError):  # where something was written
                    self.out.rmdir()

    def begin(self) -> None:
        """Clear away what a killed run left of these files; write the first record."""
        for path in (self.path, self.failures_path):
            sweep(path)
        self.write()

    def add(self, outcome: Outcome) -> None:
        """Note what became of a pair."""
        self.outcomes[outcome.name] = outcome
        if time.monotonic() - self._written > EVERY_S:
            self.write()

    def write(self) -> None:
        """Both files as things stand. Raises InputError where they cannot be written."""
        if self.failed:
            table = io.StringIO()
            rows = csv.writer(table, lineterminator="\n")
            rows.writerow(("pair", "error", "exit_code"))
            rows.writerows((cell(o.name), cell(plain(str(o.error))), o.exit_code) for o in self.failed)
            # Bytes of a file name that are no text are shown as such.
            write_bytes(self.failures_path, table.getvalue().encode("utf-8", "backslashreplace"))
        else:
            self.failures_path.unlink(missing_ok=True)
        write_bytes(self.path, to_json(self.content().to_record()).encode())
        self._written = time.monotonic()

    def content(self) -> BatchRecord:
        """Of ``batch.json``."""
        facts = self.facts
        return BatchRecord(
            version=__version__,
            written=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=portable_command(self.command, self.out),
            part=batch_record.Part(self.part.index, self.part.count),
            model=Model(facts.model_sha256, facts.contract.network) if facts else UNSET,
            runtime=Runtime(facts.runtime, facts.provider, facts.engines) if facts else UNSET,
            counts=self.counts(),
            seconds=round(self.seconds, 3),
            pairs=[self._row(pair) for pair in self.pairs],
        )

    def _row(self, pair: Pair) -> Row:
        row = Row(
            name=pair.name,
            fixed=portable(pair.job.fixed, self.out),
            moving=portable(pair.job.moving, self.out),
            sidecar=sidecar_of(pair.job).relative_to(self.out).as_posix(),
            status="pending",
        )
        if outcome := self.outcomes.get(pair.name):
            row.status, row.seconds, row.warnings = outcome.status, outcome.seconds, list(outcome.warnings)
            if outcome.status == "failed":
                row.error, row.exit_code = plain(str(outcome.error)), outcome.exit_code
        return row

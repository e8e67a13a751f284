"""The record of a batch, ``batch.json`` beside its results: what it holds, how it is written and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from ofg_deploy.records import read_as
from ofg_deploy.sidecar import TOOL

SCHEMA = 1

Status = Literal["pending", "done", "skipped", "failed"]


class Part(msgspec.Struct):
    """Which share of a batch: number ``id`` of so many, from 0."""

    id: int
    of: int


class Model(msgspec.Struct):
    """The network's name, and the digest of its file; null without one."""

    sha256: str | None
    network: str


class Runtime(msgspec.Struct):
    """What ran the network, and in how many places at once."""

    name: str
    provider: str
    engines: int


class Row(msgspec.Struct):
    """A pair; what it has no value for yet is left out.

    Attributes:
        fixed, moving, sidecar: paths relative to the batch's folder (``locations.located``).
        status: ``skipped``: its results were there already.
        seconds: from its first stage to its last, waiting included.
        warnings: one line each.
        error, exit_code: of a failed pair.
    """

    name: str
    fixed: str
    moving: str
    sidecar: str
    status: Status
    seconds: float | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    error: str | UnsetType = UNSET
    exit_code: int | UnsetType = UNSET


class BatchRecord(msgspec.Struct, kw_only=True):
    """A batch, or a part of one.

    It is a note: what became of a pair is in its sidecar. Of an earlier or a damaged record only ``written`` must be
    there.

    Attributes:
        schema, tool, kind: of this record.
        version: of ofg_deploy.
        written: UTC, ISO 8601, to the second.
        command: as typed, with paths relative to the folder.
        counts: pairs by status.
        seconds: since the batch began.
    """

    schema: int = SCHEMA
    tool: str = TOOL
    kind: str = "batch"
    version: str = ""
    written: str
    command: list[str] = []
    part: Part = msgspec.field(default_factory=lambda: Part(0, 1))
    model: Model | UnsetType = UNSET
    runtime: Runtime | UnsetType = UNSET
    counts: dict[Status, int] = {}
    seconds: float = 0.0
    pairs: list[Row] = []

    @classmethod
    def read(cls, path: Path) -> BatchRecord:
        """Raises InputError: no such file, not JSON, or an entry that does not fit."""
        return read_as(path, cls, "is a damaged record of a batch")

    def to_record(self) -> dict[str, Any]:
        """As JSON has it."""
        every: dict[str, Any] = msgspec.to_builtins(self)
        return every

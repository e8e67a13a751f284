"""What the service answers with."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from ofg_deploy.service.jobs import State


class ProblemBody(BaseModel):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(description="What HTTP calls the status.")
    status: int
    detail: str = Field(description="One sentence: what was given, what was expected, what to do.")


class File(BaseModel):
    """A file of a registration."""

    href: str
    bytes: int


class Progress(BaseModel):
    """What is being done for a job."""

    stage: str = Field(description="queued, read, prepare, network, refine, transform, warp, invert, write, report.")
    step: int = Field(description="Its number among all stages, some of which may be left out.")
    steps: int
    ahead: int = Field(description="Jobs that come first, while this one waits.")


class Registration(BaseModel):
    """A job."""

    id: str
    state: State
    model: str
    options: dict[str, Any]
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    expires: datetime | None = Field(default=None, description="When its files are deleted.")
    progress: Progress | None = Field(default=None, description="Unless it has ended.")
    network: str | None = Field(default=None, description="What registered the pair; none: steps on the pair alone.")
    reason: str | None = Field(default=None, description="Why that was chosen, where it was.")
    measures: dict[str, Any] = Field(default={}, description="As in the sidecar: similarity, folding, Dice.")
    warnings: list[str] = []
    seconds: dict[str, float] = Field(default={}, description="By stage.")
    files: dict[str, File] = Field(default={}, description="By role.")
    problem: ProblemBody | None = Field(default=None, description="Why it failed.")


class Model(BaseModel):
    """A model that may be asked for."""

    name: str
    network: str
    runtime: str
    provider: str
    grid: list[int] | None = Field(default=None, description="Voxels of its network grid.")
    spacing_mm: list[float] | None = None
    precision: str | None = None
    init: str | None = Field(default=None, description="The initial alignment it was trained with.")


class Models(BaseModel):
    """All of them; the first is the default."""

    models: list[Model]
    qualities: list[str]
    upload_bytes: int = Field(description="Most bytes of a request.")
    max_voxels: int = Field(description="Most voxels of an image.")


class Health(BaseModel):
    """Of the service."""

    status: str
    version: str

"""The routes of the service, and what each of them does."""

from __future__ import annotations

import secrets
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import anyio
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi import Query as InQuery
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ofg_deploy.errors import OfgError
from ofg_deploy.service import resources, uploads
from ofg_deploy.service.description import PROBLEMS, describe, form
from ofg_deploy.service.jobs import Job
from ofg_deploy.service.limits import Limits
from ofg_deploy.service.metrics import MEDIA_TYPE as METRICS_TYPE
from ofg_deploy.service.page import add_page
from ofg_deploy.service.problems import MEDIA_TYPE, Problem, problem_of
from ofg_deploy.service.security import REPORT_POLICY
from ofg_deploy.service.state import Service
from ofg_deploy.service.views import add_views
from ofg_deploy.service.worker import INPUTS, RESULTS
from ofg_deploy.version import __version__

BLOCK = 2**20  # bytes of a file sent at once
DRAIN_S = 10.0  # for the rest of a request that is refused
LONGEST_WAIT_S = 600
LONGEST_LOOK_S = 60.0
PAUSE_S = 0.02
GRACE_S = 20.0  # for jobs under way to stop
TYPES = {".json": "application/json", ".html": "text/html; charset=utf-8", ".csv": "text/csv"}
Id = Annotated[str, InPath(pattern="^[0-9a-f]{32}$", description="As it was answered with.")]
Wait = Annotated[
    float,
    InQuery(ge=0, le=LONGEST_LOOK_S, description="Seconds to wait for the end of the job before it is answered."),
]
Role = Annotated[str, InPath(pattern="^[a-z0-9_-]{1,40}$", description="warped, transform, sidecar, report, ...")]


def create_app(service: Service, static: Path | None = None) -> FastAPI:
    """The application; ``security.Guard`` goes around it.

    Args:
        static: where the page is; None for its place in the package.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.workers.start()
        yield
        await run_sync(service.close)

    app = FastAPI(
        title="OFG Deploy", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
        lifespan=lifespan,
        description="Registers pairs of medical images: the engine of `ofg register`, with the same results.",
    )  # fmt: skip
    add_handlers(app, service)
    add_routes(app, service)
    add_views(app, service)
    add_page(app, static)
    describe(app)
    return app


def add_routes(app: FastAPI, service: Service) -> None:
    """Those of the API."""

    def found(id: str) -> Job:
        job = service.store.get(id)
        if job is None:
            raise Problem(404, "there is no such registration; it may have been deleted")
        return job

    refusals = PROBLEMS(400, 408, 413, 415, 422, 429, 503)

    @app.post("/v1/registrations", status_code=202, openapi_extra=form(service.models), responses=refusals)
    async def register(request: Request, response: Response) -> resources.Registration:
        """Send a pair, of which the moving image is brought to the fixed one; answers at once with a job."""
        job = await _accept(request, service)
        response.headers["Location"] = f"/v1/registrations/{job.id}"
        return await run_sync(service.describe, job)

    @app.get("/v1/registrations/{id}", responses=PROBLEMS(404, 422))
    async def look(id: Id, wait: Wait = 0) -> resources.Registration:
        """State, progress and measures of a job, and its files; with ``wait`` once it has ended, or time is over."""
        job = await run_sync(found, id)
        until = anyio.current_time() + wait
        while job.state in ("queued", "running") and service.workers.alive and anyio.current_time() < until:
            seen = service.store.ends
            while service.store.ends == seen and service.workers.alive and anyio.current_time() < until:
                await anyio.sleep(PAUSE_S)
            job = await run_sync(found, id)
        return await run_sync(service.describe, job)

    @app.delete("/v1/registrations/{id}", status_code=204, responses=PROBLEMS(404))
    def delete(id: Id) -> None:
        """Delete a job and its files; one that is running stops before its next stage."""
        if not service.workers.delete(id):
            found(id)

    @app.get(
        "/v1/registrations/{id}/files/{role}", response_class=StreamingResponse,
        responses={200: {"content": {"application/octet-stream": {}}}, **PROBLEMS(404, 409, 410)},
    )  # fmt: skip
    def file(id: Id, role: Role) -> StreamingResponse:
        """A file: warped, transform, affine, sidecar, report, warped_labels, or a transform in the format asked for."""
        job = found(id)
        if job.state == "expired":
            raise Problem(410, "the files of this registration have been deleted, their time is over")
        if job.result is None:
            raise Problem(409, f"the registration is {job.state}: there are files once it is done")
        name = job.result["files"].get(role)
        if name is None:
            raise Problem(404, f"there is no file {role}: use {', '.join(job.result['files'])}")
        return _sent(service.workers.home(id) / RESULTS / name)

    @app.get("/v1/models")
    def models() -> resources.Models:
        """What may be asked for."""
        return service.describe_models()

    @app.get("/healthz")
    def health() -> resources.Health:
        """Whether the process answers."""
        return resources.Health(status="ok", version=__version__)

    @app.get("/readyz", responses=PROBLEMS(429, 503))
    def ready() -> resources.Health:
        """Whether a pair that is sent now would be accepted and registered."""
        if not service.workers.alive:
            raise Problem(503, "the service is ending or one of its threads has ended")
        service.check_room()
        return resources.Health(status="ready", version=__version__)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {METRICS_TYPE: {}}}})
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), headers={"content-type": METRICS_TYPE})


def add_handlers(app: FastAPI, service: Service) -> None:
    """Every error is a problem."""

    async def answer(_: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            problem = Problem(error.status_code, f"{error.detail}: see /openapi.json", dict(error.headers or {}))
        elif isinstance(error, RequestValidationError):
            if any(one["loc"][:2] == ("query", "wait") for one in error.errors()):
                problem = Problem(422, f"`wait` is a number of seconds from 0 to {LONGEST_LOOK_S:g}")
            else:
                problem = Problem(404, "there is no such registration or file: ids have 32 digits of 0-9 and a-f")
        elif isinstance(error, ClientDisconnect):
            problem = Problem(400, "the connection was cut off before the request was complete: send it again")
        else:
            problem = problem_of(error, service.folder)
        return Response(problem.body(), problem.status, problem.headers, MEDIA_TYPE)

    kinds = (Problem, OfgError, HTTPException, RequestValidationError, ClientDisconnect, OSError, MemoryError)
    for kind in (*kinds, sqlite3.Error):
        app.add_exception_handler(kind, answer)


async def _accept(request: Request, service: Service) -> Job:
    """Read a request to the disk and write its job down. Raises OfgError, Problem; nothing of it is left then."""
    try:
        boundary = _check_head(request, service)
    except Problem:
        await _drain(request, service.limits)
        raise
    id = secrets.token_hex(16)
    home = service.workers.home(id)
    service.uploading += 1
    try:
        await run_sync(lambda: (home / INPUTS).mkdir(mode=0o700, parents=True))
        received = await uploads.receive(aiter(request.stream()), boundary, home / INPUTS, service.limits)
        model, options, files = await run_sync(service.settle, received, home / INPUTS)
        job = await run_sync(service.store.add, id, model, options.model_dump(mode="json"), files)
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            await run_sync(lambda: shutil.rmtree(home, ignore_errors=True))
            if isinstance(error, OfgError | Problem):
                await _drain(request, service.limits)
        raise
    finally:
        service.uploading -= 1
    service.metrics.accepted(received.bytes)
    return job


def _check_head(request: Request, service: Service) -> bytes:
    """What can be known before the body is read: the boundary of its parts. Raises Problem."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "the request is compressed as a whole: send it as it is (images may be .nii.gz)")
    boundary = uploads.boundary_of(request.headers.get("content-type", ""))
    length = request.headers.get("content-length", "0")
    uploads.check_size(int(length) if length.isdecimal() else 0, service.limits)
    service.check_room()
    return boundary


async def _drain(request: Request, limits: Limits) -> None:
    """Let a client finish that sends before it listens: it would hear of a broken connection in place of the answer."""
    if "expect" in request.headers:
        return
    rest = limits.upload_bytes
    try:
        with anyio.move_on_after(DRAIN_S):
            async for chunk in request.stream():
                rest -= len(chunk)
                if rest < 0:
                    return
    except (ClientDisconnect, RuntimeError):  # gone, or read already
        return


def _sent(path: Path) -> StreamingResponse:
    try:
        opened = path.open("rb")
    except FileNotFoundError as error:
        raise Problem(410, "the files of this registration have been deleted") from error

    def blocks() -> Iterator[bytes]:
        with opened:
            while block := opened.read(BLOCK):
                yield block

    headers = {
        "Content-Length": str(path.stat().st_size),
        "Content-Disposition": f'attachment; filename="{path.name}"',
        "Content-Type": TYPES.get(path.suffix, "application/octet-stream"),
    }
    if path.suffix == ".html":
        headers |= {"Content-Disposition": "inline", "Content-Security-Policy": REPORT_POLICY}
    return StreamingResponse(blocks(), headers=headers)

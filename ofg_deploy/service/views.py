"""What the page shows: a registration as a scene (``ofg_deploy.web``), and the example. The page alone asks for it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Response
from fastapi import Path as InPath

from ofg_deploy.report.registration import Registration
from ofg_deploy.service.problems import Problem, without_paths
from ofg_deploy.service.state import Service
from ofg_deploy.service.worker import RESULTS
from ofg_deploy.web.described import described
from ofg_deploy.web.example import ROLES, example
from ofg_deploy.web.scene import Scene

KEPT = 16  # scenes, whose voxels are not among what is kept
Id = Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]


def add_views(app: FastAPI, service: Service) -> None:
    """``/v1/registrations/ID/view`` and ``/volumes/ROLE``, ``/v1/example/ROLE``."""
    scene_of = lru_cache(maxsize=KEPT)(lambda sidecar: Scene(Registration(sidecar)))

    def opened(id: str) -> Scene:
        job = service.store.get(id)
        if job is None:
            raise Problem(404, "there is no such registration; it may have been deleted")
        if job.state == "expired":
            raise Problem(410, "the files of this registration have been deleted, their time is over")
        if job.result is None:
            raise Problem(409, f"the registration is {job.state}: there are images once it is done")
        sidecar: Path = service.workers.home(id) / RESULTS / job.result["files"]["sidecar"]
        return scene_of(sidecar)

    @app.get("/v1/registrations/{id}/view", include_in_schema=False)
    def view(id: Id) -> dict[str, Any]:
        scene = opened(id)
        found = described(scene)
        for lines in ("notes", "reasons"):
            found[lines] = [without_paths(line, service.folder) for line in found[lines]]
        report = scene.registration.sidecar.with_name(f"{scene.registration.sidecar.stem}_report.html")
        if report.is_file():
            page = {"role": "report", "name": report.name, "bytes": report.stat().st_size, "address": "files/report"}
            found["files"].append(page)
        return found

    @app.get("/v1/registrations/{id}/volumes/{role}", include_in_schema=False)
    def volume(id: Id, role: str) -> Response:
        scene = opened(id)
        if role not in scene.roles:
            raise Problem(404, f"there is no image {role[:40]!r}: use {', '.join(scene.roles)}")
        return Response(scene.volume(role), media_type="application/octet-stream")

    @app.get("/v1/example/{role}", include_in_schema=False)
    def made(role: str) -> Response:
        if role not in ROLES:
            raise Problem(404, f"there is no such image in the example: use {' or '.join(ROLES)}")
        return Response(example(role), media_type="application/octet-stream")

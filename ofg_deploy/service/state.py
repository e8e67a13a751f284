"""What the routes of the service work with: jobs, threads, models and limits."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

from ofg_deploy.errors import UsageError
from ofg_deploy.options.words import Quality
from ofg_deploy.serve.model import Model
from ofg_deploy.serve.no_network import NONE
from ofg_deploy.service import resources, scans, uploads
from ofg_deploy.service.jobs import Job, Store
from ofg_deploy.service.limits import FREE_BYTES, Limits
from ofg_deploy.service.metrics import Metrics
from ofg_deploy.service.options import Options, parse
from ofg_deploy.service.problems import Problem
from ofg_deploy.service.worker import RESULTS, STAGES, Workers

LONGEST_WAIT_S = 600
GRACE_S = 20.0  # for jobs under way to stop


@dataclass
class Service:
    """What the routes work with.

    Attributes:
        folder: of the files of jobs, one folder for each.
        models: by the name under which they are offered, the default first.
        uploading: requests that are being read; each has a place in the queue.
    """

    store: Store
    workers: Workers
    folder: Path
    models: Mapping[str, Model]
    limits: Limits
    metrics: Metrics
    uploading: int = 0

    @classmethod
    def open(cls, folder: Path, models: Mapping[str, Model], limits: Limits, workers: int) -> Service:
        """In a folder that is made if needed, for this user alone. Raises as ``Store``; OSError."""
        folder, files = folder.absolute(), folder.absolute() / "jobs"
        for each in (folder, files):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        store, metrics = Store(folder), Metrics()
        at_work = Workers(store, files, models, workers, limits, metrics)
        metrics.watch(lambda: store.count("queued"), lambda: store.count("running"))
        return cls(store, at_work, files, models, limits, metrics)

    def close(self) -> bool:
        """End. False: a job under way does not stop; it is registered again after the next start."""
        stopped = self.workers.stop(GRACE_S)
        if stopped:
            self.store.close()
        return stopped

    def check_room(self) -> None:
        """Raises Problem: the queue is full (429), or the disk is (503)."""
        waiting = self.store.count("queued") + self.uploading
        if waiting >= self.limits.queue:
            seconds = self.store.seconds_each() * waiting / max(1, self.workers.count)
            after = {"Retry-After": str(min(LONGEST_WAIT_S, int(seconds) + 1))}
            raise Problem(429, f"{waiting} registrations wait already: try again in {after['Retry-After']} s", after)
        if shutil.disk_usage(self.folder).free < FREE_BYTES + self.limits.upload_bytes:
            raise Problem(503, "the disk of the service is nearly full: try again later", {"Retry-After": "600"})

    def settle(self, received: uploads.Received, inputs: Path) -> tuple[str, Options, dict[str, list[str]]]:
        """Model, options and files of a request that is complete. Raises OfgError, Problem."""
        options = parse(received.options)
        name = options.model or next(iter(self.models))
        if name not in self.models:
            raise UsageError(f"the model {name!r} is not served here: use {', '.join(self.models)}")
        if options.similarity != "auto" and not options.takes_steps and self.models[name].contract:
            raise UsageError(
                "`similarity` is followed by the steps on the pair, and none are taken: add `quality` or `refine`"
            )
        if options.passes is not None and self.models[name].network == NONE:
            raise UsageError("`passes` is of a network, and this model is none: leave it out, or name another `model`")
        scans.check((inputs / file for files in received.files.values() for file in files), self.limits.max_voxels)
        if options.format == "l2r":
            received = uploads.for_learn2reg(received, inputs)
        return name, options, received.files

    def describe(self, job: Job) -> resources.Registration:
        """A job as a client sees it."""
        ended, result = job.finished is not None, job.result or {}
        results = self.workers.home(job.id) / RESULTS
        files = {role: results / name for role, name in result.get("files", {}).items()}
        stage = self.workers.stage(job.id) or "queued"
        progress = resources.Progress(
            stage=stage,
            step=STAGES.index(stage) + 1 if stage in STAGES else 0,
            steps=len(STAGES),
            ahead=self.store.position(job) if job.state == "queued" else 0,
        )
        return resources.Registration(
            id=job.id,
            state=job.state,
            model=job.model,
            options=job.options,
            created=_time(job.created),
            started=_time(job.started) if job.started else None,
            finished=_time(job.finished) if job.finished else None,
            expires=_time(job.finished + self.limits.keep_s) if job.finished else None,
            progress=None if ended else progress,
            network=result.get("network"),
            reason=result.get("reason"),
            measures=result.get("measures", {}),
            warnings=result.get("warnings", []),
            seconds=result.get("seconds", {}),
            files={
                role: resources.File(href=f"/v1/registrations/{job.id}/files/{role}", bytes=path.stat().st_size)
                for role, path in files.items()
                if path.is_file()
            },
            problem=resources.ProblemBody(**job.problem) if job.problem else None,
        )

    def describe_models(self) -> resources.Models:
        """What may be asked for."""
        return resources.Models(
            models=[_model(name, model) for name, model in self.models.items()],
            qualities=list(get_args(Quality)),
            upload_bytes=self.limits.upload_bytes,
            max_voxels=self.limits.max_voxels,
        )


def _model(name: str, model: Model) -> resources.Model:
    known = resources.Model(name=name, network=model.network, runtime=model.runtime, provider=model.provider)
    if contract := model.contract:
        expects: Any = contract.expects
        known.grid, known.spacing_mm = list(expects.shape), list(expects.spacing_mm)
        known.precision, known.init = contract.precision, contract.init
    return known


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)

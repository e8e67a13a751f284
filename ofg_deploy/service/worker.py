"""Threads that register jobs, one after another, with models that were loaded once."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ofg_deploy.errors import OfgError
from ofg_deploy.outputs import read_json
from ofg_deploy.report.registration import Registration as Reported
from ofg_deploy.report.write import Report, write
from ofg_deploy.serve.model import Model
from ofg_deploy.service.jobs import Job, Store
from ofg_deploy.service.limits import Limits
from ofg_deploy.service.metrics import Metrics
from ofg_deploy.service.options import Options
from ofg_deploy.service.problems import Problem, problem_of, without_paths

logger = logging.getLogger("ofg_deploy.service")
STAGES = ("read", "prepare", "network", "refine", "transform", "warp", "invert", "write", "measure", "report")
INPUTS, RESULTS = "inputs", "results"
POLL_S = 1.0
SWEEP_S = 60.0


class Stop(Exception):
    """A registration is not wanted any more: its job was deleted, or the service ends."""


class Workers:
    """Registers what is in the store. Threads begin with ``start`` and end with ``stop``.

    Args:
        store: the jobs; folder: of their files.
        models: by the name under which they are offered.
        count: jobs at once; they share memory and processors.
        limits: what images may be, and how long results are kept.
    """

    def __init__(
        self, store: Store, folder: Path, models: Mapping[str, Model], count: int, limits: Limits, metrics: Metrics
    ) -> None:
        self._store, self._folder, self._limits, self._metrics = store, folder, limits, metrics
        self._models = {name: model.sharing(count) for name, model in models.items()}
        self._stages: dict[str, str] = {}
        self._unwanted: set[str] = set()
        self._lock = threading.Lock()  # of these two
        self._ending = threading.Event()
        self.count = count
        self._threads = [
            *(threading.Thread(target=self._work, name=f"register-{n}", daemon=True) for n in range(count)),
            threading.Thread(target=self._sweep, name="expire", daemon=True),
        ]

    def start(self) -> None:
        """Take up what an earlier process left, and begin."""
        self._store.recover()
        self._remove_strays()
        for thread in self._threads:
            thread.start()

    def stop(self, grace_s: float) -> bool:
        """End: jobs under way stop before their next stage and wait for the next start. False: one does not stop."""
        self._ending.set()
        self._store.wake()
        until = time.monotonic() + grace_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))
        return not self.at_work

    @property
    def at_work(self) -> bool:
        """Whether a thread has not ended."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def alive(self) -> bool:
        """Whether every thread is at work."""
        return not self._ending.is_set() and all(thread.is_alive() for thread in self._threads)

    def stage(self, id: str) -> str | None:
        """What is being done for a job; None unless it is running."""
        return self._stages.get(id)

    def home(self, id: str) -> Path:
        """The folder of a job's files."""
        return self._folder / id

    def delete(self, id: str) -> bool:
        """Forget a job and its files; one that is running stops before its next stage. False: there is none."""
        found = self._store.delete(id)
        if found is None:
            return False
        with self._lock:
            running = id in self._stages
            if running:  # whoever registers it removes its files
                self._unwanted.add(id)
        if not running:
            self._remove(id)
        return True

    def _work(self) -> None:
        while not self._ending.is_set():
            try:
                job = self._store.take(POLL_S)
                if job and self._ending.is_set():
                    self._store.put_back(job.id)
                elif job:
                    self._one(job)
            except Exception as error:  # noqa: PERF203 - of the store: the disk is full or gone, and may be back
                log_internal(error)
                self._ending.wait(POLL_S)

    def _one(self, job: Job) -> None:
        began = time.monotonic()
        self._stages[job.id] = STAGES[0]
        try:
            result = self._register(job)
            ended = "done" if self._store.finish(job.id, result) else "deleted"
            if ended == "done" and not job.options.get("keep_images"):
                shutil.rmtree(self.home(job.id) / INPUTS, ignore_errors=True)
        except Stop:
            ended = "stopped" if self._ending.is_set() else "deleted"
            if ended == "stopped":
                self._store.put_back(job.id)
        except Exception as error:
            if not isinstance(error, OfgError | Problem):
                log_internal(error)
            ended = "failed" if self._store.fail(job.id, problem_of(error, self._folder)) else "deleted"
            if ended == "failed":
                self._remove(job.id)
        finally:
            with self._lock:
                self._stages.pop(job.id, None)
                unwanted = job.id in self._unwanted
                self._unwanted.discard(job.id)
        if unwanted or ended == "deleted":
            self._remove(job.id)
        self._metrics.ended(ended, time.monotonic() - began)
        logger.info("job %s: %s in %.2f s", job.id[:8], ended, time.monotonic() - began)

    def _register(self, job: Job) -> dict[str, Any]:
        """Raises Stop, Problem, and as ``Model.register`` and ``Registration.save``."""
        from ofg_deploy.kernels.compiled import most_threads, threads

        def tell(stage: str) -> None:
            if self._ending.is_set() or job.id in self._unwanted:
                raise Stop
            self._stages[job.id] = stage

        if job.model not in self._models:
            raise Problem(503, f"the model {job.model!r} is not served any more: send the pair again with another one")
        options = Options.model_validate(job.options, strict=False)
        home = self.home(job.id)
        paths = {role: [home / INPUTS / name for name in names] for role, names in job.files.items()}
        labels = paths.pop("labels", [])
        single: dict[str, Any] = {role: path for role, [path] in paths.items()}
        results = home / RESULTS
        shutil.rmtree(results, ignore_errors=True)  # of an attempt that was interrupted
        with threads(max(1, most_threads() // self.count)):
            found = self._models[job.model].register(
                **single,
                moving_labels=labels,
                max_voxels=self._limits.max_voxels,
                progress=tell,
                **options.to_register,
            )
            files = {role: path.name for role, path in found.save(results, options.format).items()}
        sidecar = results / files["sidecar"]
        if options.report:
            tell("report")
            page = sidecar.with_name(f"{sidecar.stem}_report.html")
            write(Report(page, None, sidecar.stem), [Reported(sidecar)])
            files["report"] = page.name
        record = read_json(sidecar)
        return {
            "measures": record["metrics"],
            "warnings": [without_paths(line, self._folder) for line in record["warnings"]],
            "seconds": record["seconds"],
            "network": record["model"]["network"],
            "reason": record["model"].get("reason"),
            "files": files,
        }

    def _sweep(self) -> None:
        while not self._ending.wait(min(SWEEP_S, self._limits.keep_s / 4)):
            try:
                for id in self._store.expire(self._limits.keep_s):
                    self._remove(id)
            except Exception as error:  # noqa: PERF203 - as above
                log_internal(error)

    def _remove(self, id: str) -> None:
        shutil.rmtree(self.home(id), ignore_errors=True)

    def _remove_strays(self) -> None:
        """Files of uploads that were cut off, and of jobs that were deleted as the service ended."""
        wanted = self._store.ids()
        for path in self._folder.iterdir():
            if path.name not in wanted:
                with suppress(OSError):
                    shutil.rmtree(path)


def log_internal(error: BaseException) -> None:
    """Where it happened; what it says may quote a client, and is left out."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("internal error, %s\n%s", type(error).__name__, where)

"""Counters for Prometheus; labels hold nothing of a client's."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Metrics:
    """Of one service."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter("ofg_http_requests", "Requests answered.", ["method", "route", "status"], registry=own)
        self._jobs = Counter("ofg_jobs", "Jobs that ended, by how.", ["state"], registry=own)
        self._seconds = Histogram("ofg_job_seconds", "Time of jobs that are done.", buckets=SECONDS, registry=own)
        self._uploaded = Counter("ofg_upload_bytes", "Bytes of requests that became jobs.", registry=own)
        self._queued = Gauge("ofg_jobs_queued", "Jobs that wait.", registry=own)
        self._running = Gauge("ofg_jobs_running", "Jobs under way.", registry=own)

    def watch(self, queued: Callable[[], float], running: Callable[[], float]) -> None:
        """Ask these whenever metrics are read."""
        self._queued.set_function(queued)
        self._running.set_function(running)

    def answered(self, method: str, route: str, status: int) -> None:
        """A request has its answer; the route is a template."""
        self._requests.labels(method, route, str(status)).inc()

    def accepted(self, count: int) -> None:
        """So many bytes became a job."""
        self._uploaded.inc(count)

    def ended(self, state: str, seconds: float) -> None:
        """A job ended: done, failed, deleted or stopped."""
        self._jobs.labels(state).inc()
        if state == "done":
            self._seconds.observe(seconds)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)

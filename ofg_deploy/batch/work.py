"""One pair of a batch, top to bottom, and what became of it."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ofg_deploy.batch.aligners import Aligners
from ofg_deploy.batch.done import is_done
from ofg_deploy.batch.engines import Engines, Image, open_engines
from ofg_deploy.batch.pairs import Pair
from ofg_deploy.batch_record import Status
from ofg_deploy.errors import DeviceError, InputError, OfgError, without_addresses
from ofg_deploy.field import Field
from ofg_deploy.kernels.compiled import most_threads, threads
from ofg_deploy.options.words import Device, Runtime
from ofg_deploy.outputs import sweep
from ofg_deploy.passes import in_passes
from ofg_deploy.serve.engine import Engine
from ofg_deploy.serve.images import Images
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.no_network import NoNetwork, Promise, WithoutNetwork
from ofg_deploy.serve.register import finish, prepare
from ofg_deploy.serve.registration import Prepared, checked

if TYPE_CHECKING:
    from ofg_deploy.serve.tensorrt import Rebuild

# The next pair would fare no better: no space, quota used up, read-only, no permission, broken disk.
STOPS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@dataclass(frozen=True)
class Outcome:
    """What became of a pair.

    Attributes:
        name: the pair's.
        status: ``skipped``: its results were there already.
        sidecar: relative to the batch's folder.
        seconds: from its first stage to its last, waiting included.
        error, exit_code: of a failed pair, as the command for that pair alone would have had them; parameters are
            marked (see ``errors``).
        warnings: of a pair that was done.
    """

    name: str
    status: Status
    sidecar: str
    seconds: float = 0.0
    error: str | None = None
    exit_code: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Means:
    """What a process needs to work on pairs; plain values, which may travel to another machine.

    Attributes:
        model, device, threads, rebuild, runtime: as ``serve.engine.open_engine``; without a model steps on the pair.
        workers: pairs under way at once.
        batch_size: pairs in one run of the network.
        out: folder of the batch.
        resume: skip what is done.
        shared: files that several pairs read.
        open: loads the engines; a test puts others in.
    """

    model: Path | None
    device: Device
    threads: int
    rebuild: Rebuild | None
    runtime: Runtime
    workers: int
    batch_size: int
    out: Path
    resume: bool = False
    shared: Collection[Path] = ()
    open: Callable[[Path, Device, int, Rebuild | None, Runtime], list[Engine]] = open_engines


@dataclass(frozen=True)
class Facts:
    """What the engines of a batch are.

    Attributes:
        contract, model_sha256, runtime, provider: as ``serve.engine.Engine``.
        engines: how many.
        batch_change_vox: largest change of a field by running several pairs at once, as tried on noise.
    """

    contract: Promise
    model_sha256: str | None
    runtime: str
    provider: str
    engines: int
    batch_change_vox: float


class NowhereToWrite(InputError):
    """No later pair of the batch could be written either."""


class Worker:
    """Engines, images and processes that the pairs of one process share; call ``run`` from several threads.

    Raises:
        DeviceError, InputError, UsageError: as ``open_engines`` and ``Engines``.
    """

    def __init__(self, means: Means) -> None:
        self.means = means
        self.engines = Engines(_open(means), means.batch_size)
        self.stop = threading.Event()
        self._images = Images(means.shared)
        self._aligners = Aligners(min(means.workers, most_threads()))
        # All cores for one pair at a time would make the others wait in turn; the results do not depend on it.
        self._kernel_threads = max(1, most_threads() // means.workers)

    def facts(self) -> Facts:
        """Of the engines."""
        first, several = self.engines.first, self.means.batch_size > 1
        change = self.engines.difference() if several else 0.0
        return Facts(first.contract, first.model_sha256, first.runtime, first.provider, self.engines.count, change)

    def close(self) -> None:
        """Stop what is under way before its next stage, end the processes."""
        self.stop.set()
        self.engines.stop()
        self._aligners.close()

    def run(self, pair: Pair, again: bool = False) -> Outcome:
        """Register one pair; ``again``: another worker has begun it, and died.

        Raises:
            CancelledError: the batch stopped meanwhile; nothing of the pair was written.
            OfgError: the batch cannot go on: the device is gone, or results cannot be written.
        """
        start = time.perf_counter()
        where = sidecar_of(pair.job).relative_to(self.means.out).as_posix()
        try:
            job = self._to_do(pair.job) if self.means.resume or again else pair.job
            if job is None:
                return Outcome(pair.name, "done" if again else "skipped", where)
            with threads(self._kernel_threads):
                warnings = self._register(job)
        except BaseException as error:
            if _stops(error):
                self.stop.set()  # here and now: the next pair may be done before anybody hears of this one
                raise
            seconds = round(time.perf_counter() - start, 3)
            return Outcome(pair.name, "failed", where, seconds, _line(error), getattr(error, "exit_code", 1))
        return Outcome(pair.name, "done", where, round(time.perf_counter() - start, 3), warnings=warnings)

    def _to_do(self, job: Job) -> Job | None:
        """None for what is done. A set without its sidecar is no set: what there is of it is replaced."""
        sweep(sidecar_of(job))
        try:
            if is_done(job, self.engines.first):
                return None
        except InputError:
            if not job.overwrite:
                raise
        return replace(job, overwrite=True)

    def _register(self, job: Job) -> tuple[str, ...]:
        self._go_on()
        prepared = prepare(job, self.engines.first.contract, self._images, self._aligners.align)
        self._go_on()
        field = self._predict(prepared)
        self._go_on()
        try:
            result = finish(job, prepared, field, self.engines.first)
        except InputError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in STOPS:
                raise NowhereToWrite(str(error)) from error
            raise
        return tuple(result.sidecar["warnings"])

    def _predict(self, prepared: Prepared) -> Field:
        """As ``registration.predict``, each pass in turn with other pairs; waiting for an engine is a stage."""
        start, waited = time.perf_counter(), 0.0

        def one_pass(moving: Image, fixed: Image) -> Field:
            nonlocal waited
            self._go_on()
            began = time.perf_counter()
            field, seconds = self.engines.predict(moving, fixed)
            waited += max(time.perf_counter() - began - seconds, 0.0)
            return field

        field = in_passes(one_pass, prepared.passes or 1)(prepared.pair.moving, prepared.pair.fixed)
        network = time.perf_counter() - start - waited
        prepared.clock.seconds |= {"wait": round(waited, 4), "network": round(network, 4)}
        return checked(field, prepared.pair)

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise CancelledError


def _open(means: Means) -> list[Engine]:
    if means.model is None:
        return [WithoutNetwork(NoNetwork.here(means.workers))]
    return means.open(means.model, means.device, means.threads, means.rebuild, means.runtime)


def sidecar_of(job: Job) -> Path:
    """Its last file."""
    return job.outputs("affine")["sidecar"]  # the same with any start


def _stops(error: BaseException) -> bool:
    """The next pair would fare no better, or somebody wants to see the traceback."""
    if isinstance(error, CancelledError | DeviceError | NowhereToWrite):
        return True
    return not isinstance(error, Exception) or (bool(os.environ.get("OFG_DEBUG")) and not isinstance(error, OfgError))


def _line(error: BaseException) -> str:
    said = " ".join((error.marked if isinstance(error, OfgError) else without_addresses(str(error))).split())
    if isinstance(error, MemoryError):
        return "out of memory: use fewer `workers` or a machine with more"
    return said if isinstance(error, OfgError) else f"internal error, {type(error).__name__}: {said}"

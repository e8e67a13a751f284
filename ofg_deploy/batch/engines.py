"""Loaded networks, one for each GPU, which pairs take in turn; several pairs in one run where that is asked for."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import UsageError, check_count
from ofg_deploy.field import Field
from ofg_deploy.model_file import Contract
from ofg_deploy.options.words import Device, Runtime
from ofg_deploy.serve.engine import Engine, open_engine

if TYPE_CHECKING:
    from ofg_deploy.serve.tensorrt import Rebuild

Image = npt.NDArray[np.float32]


@runtime_checkable
class TakesSeveral(Protocol):
    """An engine that runs several pairs at once."""

    def predict_several(self, moving: Image, fixed: Image) -> Field:
        """(N, X, Y, Z) twice -> (N, 3, X, Y, Z)."""
        ...


@dataclass(frozen=True, eq=False)
class Request:
    """Two (X, Y, Z) images that wait for an engine; the field, and the seconds of its run."""

    moving: Image
    fixed: Image
    answer: Future[tuple[Field, float]] = field(default_factory=Future)


def open_engines(model: Path, device: Device, threads: int, rebuild: Rebuild | None, runtime: Runtime) -> list[Engine]:
    """One engine for each GPU that CUDA shows, or one on the CPU. Raises as ``open_engine``."""
    first = open_engine(model, device, threads, rebuild, runtime)
    if "CPU" in first.provider:
        return [first]
    from ofg_deploy.serve.cuda import visible_gpus

    return [first, *(open_engine(model, device, threads, rebuild, runtime, gpu) for gpu in range(1, visible_gpus()))]


class Engines:
    """Runs pairs from many threads, each engine on one at a time.

    A run takes as many waiting pairs as a batch holds. It is always full: repeated pairs fill it up. So what a pair
    gets depends neither on its neighbours nor on how many were waiting.

    Args:
        engines: at least one, all of one model.
        batch_size: pairs in one run.

    Raises:
        UsageError: more than one pair in a run, and an engine that cannot.
    """

    def __init__(self, engines: Sequence[Engine], batch_size: int = 1) -> None:
        check_count("`batch_size`", batch_size)
        if batch_size > 1 and not all(isinstance(engine, TakesSeveral) for engine in engines):
            raise UsageError(f"`batch_size` {batch_size}: {engines[0].runtime} runs one pair at a time: leave it out")
        self.first = engines[0]
        self.count = len(engines)
        self._every = tuple(engines)
        self._batch_size = batch_size
        self._free: queue.Queue[Engine] = queue.Queue()
        self._waiting: deque[Request] = deque()
        self._lock = threading.Lock()
        for engine in engines:
            self._free.put(engine)

    def predict(self, moving: Image, fixed: Image) -> tuple[Field, float]:
        """As ``Engine.predict``, and the seconds of the run it was in."""
        mine = Request(moving, fixed)
        with self._lock:
            self._waiting.append(mine)
        engine = self._free.get()
        try:  # whoever gets an engine serves those who came first, perhaps not itself
            with self._lock:
                group = [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
            if group:
                self._run(engine, group)
        finally:
            self._free.put(engine)
        return mine.answer.result()

    def stop(self) -> None:
        """End what runs, where the runtime can be stopped: a run may take long, or never end."""
        for engine in self._every:
            if stop := getattr(engine, "stop", None):
                stop()

    def difference(self) -> float:
        """Largest change of a field, in voxels, by a full batch instead of a pair alone; tried on noise.

        Raises:
            UsageError: the field depends on the place within the batch.
        """
        contract = self.first.contract
        assert isinstance(contract, Contract)  # nothing else takes several pairs in one run
        noise = np.random.default_rng(0).random((2, *contract.expects.shape), dtype=np.float32)
        request = Request(noise[0], noise[1])
        alone = self.first.predict(request.moving, request.fixed)
        together = self._predict(self.first, [request])
        if any(not np.array_equal(field, together[0]) for field in together):
            raise UsageError(f"`batch_size`: {self.first.runtime} gives other fields at other places: leave it out")
        return float(np.abs(alone - together[0]).max())

    def _run(self, engine: Engine, group: list[Request]) -> None:
        start = time.perf_counter()
        try:
            fields = self._predict(engine, group)
        except BaseException as error:
            for request in group:
                request.answer.set_exception(error)
            return
        seconds = time.perf_counter() - start
        for request, predicted in zip(group, fields, strict=False):
            request.answer.set_result((predicted, seconds))

    def _predict(self, engine: Engine, group: list[Request]) -> list[Field]:
        """At least one field for each request."""
        if self._batch_size == 1:
            return [engine.predict(group[0].moving, group[0].fixed)]
        assert isinstance(engine, TakesSeveral)
        full = [group[n % len(group)] for n in range(self._batch_size)]
        fields = engine.predict_several(np.stack([r.moving for r in full]), np.stack([r.fixed for r in full]))
        return [np.ascontiguousarray(field) for field in fields]

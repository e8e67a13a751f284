"""A batch on a Ray cluster that is there: the only module that imports ray."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from ofg_deploy.batch.pairs import Pair
from ofg_deploy.batch.work import Means, Outcome, Worker, sidecar_of
from ofg_deploy.errors import DeviceError, OfgError
from ofg_deploy.extras import not_installed

START_S = 300.0  # for a first actor to load its engine
DEATHS = 2  # of actors that had a pair under way: it may be the pair that kills them


class OnRay:
    """See ``here.Executor``. One actor for each GPU of the cluster, or each node, holds one engine and some threads.

    Every node has this package and sees all files under the same paths. A pair whose actor dies goes to another one.

    Args:
        address: of the cluster; None for the one that Ray finds.

    Raises:
        DeviceError: no Ray, no cluster, no actor that starts, or actors that are not alike.
    """

    def __init__(self, means: Means, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise not_installed("ray") from error
        self._ray, self._means = ray, means
        address = address or os.environ.get("RAY_ADDRESS", "auto")
        try:
            _check_answers(address)
            ray.init(address=address, job_config=_job(ray), log_to_driver=False, logging_level=logging.CRITICAL)
        except (OSError, RuntimeError, ValueError, SystemExit) as error:  # a failed connection makes Ray exit
            reason = " ".join(str(error).split()) or "no answer"
            raise DeviceError(
                f"no Ray cluster at {address} ({reason}): start one with ray start, or give its `address` HOST:PORT"
            ) from error
        try:
            self._start()
        except BaseException:
            ray.shutdown()
            raise

    def __enter__(self) -> OnRay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors:
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(actor.close.remote(), timeout=10)
            self._ray.kill(actor)
        self._ray.shutdown()

    def _start(self) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        gpus = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in nodes}
        on_gpu = self._means.device == "cuda" or (self._means.device == "auto" and any(gpus.values()))
        # Calls are answered while all its pairs are under way.
        kind = self._ray.remote(max_concurrency=self._means.workers + 1, max_restarts=0)(Worker)
        means = replace(self._means, device="cuda" if on_gpu else "cpu")
        self._actors: list[Any] = [
            kind.options(
                num_cpus=1, num_gpus=int(on_gpu), scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(means)
            for node, count in gpus.items()
            for _ in range(count if on_gpu else 1)
        ]
        if not self._actors:
            raise DeviceError(
                f"the Ray cluster has no {'GPU' if on_gpu else 'node with a CPU'} for `device` {means.device}"
            )
        asked = [actor.facts.remote() for actor in self._actors]
        ready, late = self._ray.wait(asked, num_returns=len(asked), timeout=START_S)
        if late:
            raise DeviceError(
                f"{len(late)} of {len(asked)} Ray actors did not start in {START_S:g} s: is the cluster busy?"
            )
        found = [self._get(ref) for ref in ready]
        if any(replace(facts, batch_change_vox=0.0) != replace(found[0], batch_change_vox=0.0) for facts in found):
            said = "; ".join(sorted({f"{facts.runtime} on {facts.provider}" for facts in found}))
            raise DeviceError(
                f"the nodes would give different results ({said}): use nodes that are alike, or `runtime`"
            )
        self.facts = replace(found[0], engines=len(found), batch_change_vox=max(f.batch_change_vox for f in found))

    def run(self, pairs: Sequence[Pair], done: Callable[[Outcome], None]) -> None:
        """See ``here.Executor.run``."""
        waiting = deque(pairs)
        deaths: Counter[str] = Counter()
        under_way: dict[Any, tuple[Pair, Any]] = {}
        try:
            while waiting or under_way:
                busy = Counter(actor for _, actor in under_way.values())
                for actor in self._actors:
                    for _ in range(min(self._means.workers - busy[actor], len(waiting))):
                        pair = waiting.popleft()
                        under_way[actor.run.remote(pair, again=deaths[pair.name] > 0)] = (pair, actor)
                [ref], _ = self._ray.wait(list(under_way), num_returns=1)
                pair, actor = under_way.pop(ref)
                try:
                    with suppress(CancelledError):  # by another pair's failure, which comes too
                        done(self._get(ref))
                except self._ray.exceptions.RayActorError:
                    self._actors = [other for other in self._actors if other != actor]
                    deaths[pair.name] += 1
                    if deaths[pair.name] < DEATHS:
                        waiting.append(pair)
                    else:
                        done(_killed(pair, self._means))
                    if not self._actors:
                        raise DeviceError("every Ray actor died, perhaps for want of memory") from None
        finally:
            for actor in self._actors:
                actor.close.remote()
            for ref in under_way:
                with suppress(BaseException):  # why it stopped is told already
                    done(self._get(ref))

    def _get(self, ref: Any) -> Any:
        """What an actor answers; what it raises as it was raised there."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OfgError | CancelledError):
                raise error.cause from None
            raise


def _job(ray: ModuleType) -> Any:
    """Ray's workers look for modules first where its driver stands: let that be this package's folder.

    Ray adds the current folder unless the job brings a folder of its own, which would be sent to every node.
    """
    kind: Any = ray.job_config.JobConfig

    class Job(kind):  # type: ignore[misc]
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return Job(_py_driver_sys_path=[str(Path(__file__).parents[2])])


def _check_answers(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()


def _killed(pair: Pair, means: Means) -> Outcome:
    where = sidecar_of(pair.job).relative_to(means.out).as_posix()
    said = f"{DEATHS} Ray actors died while they worked on it, perhaps for want of memory"
    return Outcome(pair.name, "failed", where, error=said, exit_code=DeviceError.exit_code)

"""Engines built before, kept in one folder, and built once even when two processes want the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import msgspec

from ofg_deploy.errors import InputError
from ofg_deploy.export.tensorrt import Built
from ofg_deploy.export.toolchain import Toolchain
from ofg_deploy.outputs import staged, to_json
from ofg_deploy.records import read_as
from ofg_deploy.serve.engine_file import Range, Tensor


class _Kept(msgspec.Struct):
    """What lies beside a plan in the cache: of ``Built`` all but the plan, and its digest."""

    tensors: tuple[Tensor, ...]
    profile: dict[str, Range]
    layers: int
    seconds: float
    sha256: str


def cache_folder() -> Path:
    """``OFG_CACHE``, or ``ofg-deploy`` in the user's cache folder."""
    if given := os.environ.get("OFG_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ofg-deploy"


def timing_path(folder: Path, tools: Toolchain) -> Path:
    """The timing cache of a module, version and GPU; a build of another engine reads it too."""
    name = f"{tools.trt.name}-{tools.trt.version}-{tools.gpu}-{'-'.join(tools.capabilities)}"
    return folder / "timing" / (re.sub(r"[^\w.-]+", "_", name) + ".cache")


def build_once(
    onnx_sha256: str, tools: Toolchain, again: bool, build: Callable[[Path], Built], waiting: Callable[[], None]
) -> tuple[Built, bool]:
    """The engine from the cache, or built and kept there; the flag says whether it was built now.

    Args:
        again: build even if it is there.
        build: takes the path of the timing cache.
        waiting: called when another process is building this engine.

    Raises:
        InputError: the cache cannot be written (also: full disk). What ``build`` raises; nothing is kept then.
    """
    folder = cache_folder()
    key = {
        "onnx": onnx_sha256,
        "module": [tools.trt.name, tools.trt.version],
        "target": [tools.gpu, *tools.capabilities],
        "max_batch": tools.max_batch,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    plan, facts = folder / "engines" / f"{name}.engine", folder / "engines" / f"{name}.json"
    with _locked(plan.with_suffix(".lock"), waiting):
        if not again and (kept := _read(plan, facts)):
            return kept, False
        built = build(timing_path(folder, tools))
        with staged([plan, facts], overwrite=True) as [partial_plan, partial_facts]:
            partial_plan.write_bytes(built.plan)
            known = {k: v for k, v in vars(built).items() if k not in ("plan", "tensors")}
            digest = hashlib.sha256(built.plan).hexdigest()
            record = {**known, "tensors": [asdict(t) for t in built.tensors], "sha256": digest, "key": key}
            partial_facts.write_text(to_json(record))
    return built, True


def _read(plan: Path, facts: Path) -> Built | None:
    """What is kept, unless it is incomplete or damaged: then it is as good as absent."""
    try:
        content, known = plan.read_bytes(), read_as(facts, _Kept, "is damaged")
    except (OSError, InputError):
        return None
    if hashlib.sha256(content).hexdigest() != known.sha256:
        return None
    return Built(content, known.tensors, known.profile, known.layers, known.seconds)


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock; it goes with the process, however that ends."""
    from filelock import FileLock, Timeout  # comes with TensorRT's extras: registering alone does without

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    except OSError as error:  # Timeout is one too, but not of the second acquire
        raise InputError(f"cannot write into {path.parent}: {error.strerror or error}: set OFG_CACHE") from error
    try:
        yield
    finally:
        lock.release()

"""An engine on disk: the pure plan, and beside it a sealed JSON that says where it may run and what it promises.

A plan holds nothing of ours (a prefix would break trtexec and Triton), so the contract travels in the JSON. Whether a
plan may run here is decided before any runtime sees it, by comparing records alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ofg_deploy.errors import InputError
from ofg_deploy.model_file import Contract, completed
from ofg_deploy.outputs import parse_json, sha256_file, to_json
from ofg_deploy.records import fitted
from ofg_deploy.serve.cuda import Gpu

SCHEMA = 2  # 2: parity; the precision is the model's
SUFFIX = ".engine"
MAX_RECORD_BYTES = 1 << 20
MAX_PLAN_BYTES = 8 * 1024**3

CHANNELS = {"moving": 1, "fixed": 1, "field": 3, "warped": 1}  # of the inputs and outputs a contract may name

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # smallest, best and largest shape


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; -1 in ``shape`` is what the profile says: the batch, and sizes of any grid."""

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class EngineRecord:
    """What is known of a plan.

    Attributes:
        engine_sha256: of the plan.
        onnx: file name of the model it was built from; looked for beside the plan.
        onnx_sha256: of that model.
        module, module_version: what built it, and what alone can load it.
        gpu: name of the GPU it was built on; None for a build without one, which runs on any GPU of ``capabilities``.
        capabilities: compute capabilities it runs on, as in ``sm86``.
        precision: of its arithmetic, which is the model's.
        profile: shapes each input may have.
        tensors: inputs and outputs.
        layers: of the network as the parser gave it to the builder.
        build_s: seconds the build took.
        parity: how its field differed, as in the model's record; None where it was not compared.
        compared_with: what it was compared with, or why it was not.
        contract: the model's.
        version: of ofg_deploy.
        command: that wrote this record.
        schema: of this record.
    """

    engine_sha256: str
    onnx: str
    onnx_sha256: str
    module: str
    module_version: str
    gpu: str | None
    capabilities: tuple[str, ...]
    precision: str
    profile: dict[str, Range]
    tensors: tuple[Tensor, ...]
    layers: int
    build_s: float
    parity: dict[str, float | bool | None] | None
    compared_with: str
    contract: Contract
    version: str
    command: tuple[str, ...]
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Readable JSON with the seal of its own content."""
        record = asdict(self)
        return to_json({**record, "sha256": _seal(record)})


def record_path(engine: Path) -> Path:
    """``model.engine`` -> ``model.engine.json``."""
    return engine.with_name(engine.name + ".json")


def read_record(engine: Path) -> EngineRecord:
    """The record beside a plan, read strictly: its own seal, every key, nothing else, this schema.

    Raises:
        InputError: plan or record missing, record damaged or of another version.
    """
    path = record_path(engine)
    if not engine.is_file():
        raise InputError(f"{engine} is not a file: give an engine made by ofg export with `trt=True`")
    if not path.is_file():
        raise InputError(f"{engine} has no {path.name} beside it: give an engine made by ofg export with `trt=True`")
    for file, most in ((path, MAX_RECORD_BYTES), (engine, MAX_PLAN_BYTES)):
        if file.stat().st_size > most:
            raise InputError(f"{file} is larger than any that ofg export writes: build the engine again")
    damaged, advice = f"{path} was changed or damaged", "build the engine again"
    try:
        content = parse_json(path.read_bytes())
        seal = content.pop("sha256", None) if isinstance(content, dict) else None
        whole = seal == _seal(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{damaged}: {error}: {advice}") from error
    if isinstance(content, dict) and "schema" in content and content["schema"] != SCHEMA:
        raise InputError(f"{path} has schema {content['schema']}, this version reads {SCHEMA}: build it again")
    if isinstance(content, dict) and "contract" in content:
        content["contract"] = completed(content["contract"])
    record = fitted(content, EngineRecord, damaged, advice, exactly=True)
    for wrong, what in (
        (not whole, "sha256 differs"),
        (Path(record.onnx).name != record.onnx, "the model is not beside it"),
        (record.precision != record.contract.precision, "its precision is not its model's"),
    ):
        if wrong:
            raise InputError(f"{damaged}: {what}: {advice}")
    return replace(record, contract=Contract.from_record(content["contract"], path))


def file_mismatches(engine: Path, plan: bytes, record: EngineRecord) -> list[str]:
    """How the plan in ``engine`` differs from the record, and the ONNX model where it lies beside the plan."""
    found = []
    if hashlib.sha256(plan).hexdigest() != record.engine_sha256:
        found.append(f"{engine.name} was changed or damaged after its build (sha256 differs)")
    if model_beside(engine, record) == "another":
        found.append(f"{record.onnx} beside it is not the model it was built from (sha256 differs)")
    return found


def model_beside(engine: Path, record: EngineRecord) -> Literal["same", "another", "absent"]:
    """Whether the model it was built from lies beside it."""
    onnx = engine.with_name(record.onnx)
    if not onnx.is_file():
        return "absent"
    return "same" if sha256_file(onnx) == record.onnx_sha256 else "another"


def place_mismatches(record: EngineRecord, versions: dict[str, str], gpu: Gpu) -> list[str]:
    """How this place differs from the one the plan was built for. A pure function.

    Args:
        versions: of the modules installed here, by name.
        gpu: the GPU here.
    """
    found = []
    here = versions.get(record.module)
    if here is None:
        found.append(f"it needs {record.module} {record.module_version}, which is not installed")
    elif here != record.module_version:
        found.append(f"it was built with {record.module} {record.module_version} and here is {here}")
    if gpu.capability not in record.capabilities:
        found.append(f"it was built for {' '.join(record.capabilities)} and {gpu.name} is {gpu.capability}")
    elif record.gpu not in (None, gpu.name):
        found.append(f"it was built on {record.gpu} and here is {gpu.name}")
    return found


def content_mismatches(record: EngineRecord, tensors: tuple[Tensor, ...], profile: dict[str, Range]) -> list[str]:
    """How a loaded plan differs from its record, as the runtime reports it. A pure function.

    The batch does not count among the shapes: the profile says what it may be.
    """
    found = []
    here, expected = ({(t.name, t.mode, t.dtype, t.shape[1:]) for t in side} for side in (tensors, record.tensors))
    if here != expected:
        found.append(f"its inputs and outputs are {sorted(here)} and not {sorted(expected)}")
    if profile != record.profile:
        found.append(f"it takes shapes {profile} and not {record.profile}")
    return found


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()

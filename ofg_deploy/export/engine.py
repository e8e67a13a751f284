"""Exported model -> engine file and its record, published together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ofg_deploy.errors import DeviceError
from ofg_deploy.export.engine_cache import build_once
from ofg_deploy.export.parity import Reference, Tolerance, synthetic_pair
from ofg_deploy.export.tensorrt import Progress, build
from ofg_deploy.export.toolchain import BuildOptions, Toolchain, choose_toolchain
from ofg_deploy.locations import portable_command
from ofg_deploy.model_file import Contract, SealedModel, read_model
from ofg_deploy.outputs import check_writable, staged
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.engine_file import EngineRecord, record_path
from ofg_deploy.serve.tensorrt import TensorRTEngine
from ofg_deploy.version import __version__

NO_GPU = "not compared: built without a GPU, which alone could load it"


@dataclass(frozen=True)
class EngineJob:
    """With what to build, whether to build what the cache has, and who is told about it.

    ``emulate`` writes a model in types that no CPU runtime has as one that can be run, to compare an engine with; that
    needs torch and onnx, None does without.
    """

    tools: Toolchain
    command: list[str] = field(default_factory=list)
    again: bool = False
    progress: Progress | None = None
    waiting: Callable[[], None] = lambda: None
    emulate: Callable[[Path, Path], None] | None = None


@dataclass(frozen=True)
class PublishedEngine:
    """An engine file, its record, and whether it was built now or came from the cache."""

    engine: Path
    record: EngineRecord
    built_now: bool


def export_engine(onnx: Path, out: Path, job: EngineJob, overwrite: bool) -> PublishedEngine:
    """A model made by ``ofg export`` -> engine ``out`` and ``out``.json; both or none.

    There is no eager network here: the engine is compared with the model itself, on one synthetic pair.

    Raises:
        ParityError: the engine does not give the model's field.
        InputError: no model of ours, a graph the parser refuses, or ``out`` exists or cannot be written.
        DeviceError: as ``export.tensorrt.build``.
    """
    beside = record_path(out)
    check_writable([out, beside], overwrite)
    model = read_model(onnx)
    with staged([out, beside], overwrite) as [partial, partial_beside]:
        reference = _model_as_reference(onnx, model.contract, partial.parent, job.emulate) if job.tools.gpu else None
        return write_engine(model, onnx, job, out, partial, partial_beside, reference)


def rebuild(
    engine: Path,
    record: EngineRecord,
    progress: Progress | None,
    waiting: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Replace an engine that does not fit by one for this place, from the ONNX model beside it.

    Args:
        progress, waiting: as ``EngineJob`` has them. say: gets a line about what is built from what.

    Raises:
        DeviceError: there is no such model, or no engine can be built here. InputError: as ``export_engine``.
    """
    onnx = engine.with_name(record.onnx)
    if not onnx.is_file():
        raise DeviceError(
            f"{engine} is incompatible with this GPU or TensorRT, and {onnx}, to rebuild it from, is missing: export "
            "it again"
        )
    most = max(high[0] for _, _, high in record.profile.values())
    tools = choose_toolchain(BuildOptions(max_batch=most))
    say(f"rebuilding it from {onnx} with {tools}")
    export_engine(onnx, engine, EngineJob(tools, list(record.command), False, progress, waiting), overwrite=True)


def write_engine(
    model: SealedModel,
    onnx: Path,
    job: EngineJob,
    engine: Path,
    partial: Path,
    partial_record: Path,
    reference: Reference | str | None,
) -> PublishedEngine:
    """Build, or take from the cache, write both files where ``outputs.staged`` wants them, and compare.

    Args:
        onnx, engine: final paths, for the record and for messages.
        reference: what an engine for the GPU here must reproduce, or why there is nothing to compare with. An engine
            built without a GPU cannot be loaded and is not compared; its record says so.

    Raises:
        ParityError: the engine does not reproduce ``reference``.
    """
    tools = job.tools
    built, now = build_once(
        model.sha256, tools, job.again, lambda timing: build(model, onnx, tools, timing, job.progress), job.waiting
    )
    record = EngineRecord(
        engine_sha256=hashlib.sha256(built.plan).hexdigest(),
        onnx=onnx.name,
        onnx_sha256=model.sha256,
        module=tools.trt.name,
        module_version=tools.trt.version,
        gpu=tools.gpu,
        capabilities=tools.capabilities,
        precision=model.contract.precision,
        profile=built.profile,
        tensors=built.tensors,
        layers=built.layers,
        build_s=round(built.seconds, 3),
        parity=None,
        compared_with=reference if isinstance(reference, str) else NO_GPU,
        contract=replace(model.contract, sizes="fixed"),  # its profile has one grid
        version=__version__,
        command=tuple(portable_command(job.command, partial.parent.parent)),
    )
    partial.write_bytes(built.plan)
    partial_record.write_text(record.to_json())
    if tools.gpu and isinstance(reference, Reference):
        loaded = TensorRTEngine(partial, "cuda")
        found = reference.check(loaded.predict, record.precision)
        loaded.close()
        record = replace(record, parity=asdict(found), compared_with=reference.name)
        partial_record.write_text(record.to_json())
    return PublishedEngine(engine, record, now)


def _model_as_reference(
    onnx: Path, contract: Contract, folder: Path, emulate: Callable[[Path, Path], None] | None
) -> Reference | str:
    """The model in ONNX Runtime on the CPU, or why it cannot run: no runtime is needed to build an engine."""
    runnable = onnx
    try:
        if contract.precision == "bf16" and emulate:
            runnable = folder / "emulation.onnx"
            emulate(onnx, runnable)
        model = open_engine(runnable, "cpu")
    except DeviceError as error:
        return f"not compared: {error}"
    name = f"{onnx.name} {'emulated ' if runnable != onnx else ''}in {model.runtime}, one synthetic pair"
    return Reference(name, model.predict, [synthetic_pair(contract.expects)], [None], Tolerance())

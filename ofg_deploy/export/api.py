"""``export_model``: what ``ofg export`` does, for Python. Prints nothing; torch is loaded when it is called."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofg_deploy.errors import UsageError
from ofg_deploy.extras import need
from ofg_deploy.options.export import EXPORT, CheckpointOptions, EngineOptions, ModelOptions, TritonOptions
from ofg_deploy.options.value import named, options_of, with_options

if TYPE_CHECKING:
    from ofg_deploy.export.engine import EngineJob, PublishedEngine
    from ofg_deploy.export.observer import Observer
    from ofg_deploy.export.onnx import Exported as PublishedModel
    from ofg_deploy.export.request import BareOptions
    from ofg_deploy.export.toolchain import Toolchain
    from ofg_deploy.export.triton import Published

ENGINE_SUFFIX = ".engine"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the model; where an engine was built of a model that was there already, that model.
        parity: how far the field of the model (or of that engine) is from what it was made from, by name:
            ``field_mm_max``, ``field_vox_mean``, ``dice_difference`` and others; empty where nothing could be compared.
        engines: TensorRT engines that were written.
        model: all that is known of the model.
        engine: all that is known of the engine.
        triton: the model's folder in a repository of Triton, and how it runs there.
    """

    path: Path
    parity: Mapping[str, Any]
    engines: tuple[Path, ...] = ()
    model: PublishedModel | None = field(default=None, repr=False)
    engine: PublishedEngine | None = field(default=None, repr=False)
    triton: Published | None = field(default=None, repr=False)


@with_options(EXPORT)
def export_model(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    progress: Observer | None = None,
    **options: Any,
) -> Exported:
    """Export only the network to ONNX; nothing is published unless it reproduces the network.

    Args:
        source: a run (as ``train_network`` returns it, or its folder) or a checkpoint; with ``trt`` or
            ``triton`` also an exported model or its name, with ``triton`` an engine.
        path: file to write; model.onnx, or the .engine beside a model, if absent.
        overwrite: replace existing files.
        progress: watches the work; lines go to the logger ``ofg_deploy`` without one.
        options: as of ``ofg export`` (docs/training-options.md), by name: ``trt=True, precision="fp16"``. None stands
            for an option that is not given.

    Raises:
        UsageError: an option that is unknown, out of range, or contradicts another one or the source.
        InputError: a source that cannot be used; a file exists already or cannot be written.
        ParityError: the exported model differs from the network by more than allowed.
        DeviceError: a package or a GPU is not there.

    Example:
        >>> import ofg_deploy as ofg
        >>> exported = ofg.export_model("run", "model.onnx")
        >>> exported.parity["field_mm_max"] < 1e-3
        True
    """
    given = named(options, EXPORT)
    engine = EngineOptions(**{name: given[name] for name in given.keys() & options_of(EngineOptions)})
    triton = TritonOptions(**{name: given[name] for name in given.keys() & options_of(TritonOptions)})
    _check_together(engine, triton, given.get("precision"))
    from ofg_deploy.catalogue import is_name, source_path

    where = source_path(source) if isinstance(source, str) else Path(source)
    from_weights = where.suffix not in (".onnx", ENGINE_SUFFIX)
    need(*(("filelock",) if engine.trt else ()), *(("torch", "onnx", "onnxscript") if from_weights else ()))
    from ofg_deploy.export.observer import Observer
    from ofg_deploy.export.request import BareOptions

    checkpoint = CheckpointOptions(**{name: given[name] for name in given.keys() & options_of(CheckpointOptions)})
    bare = BareOptions(
        checkpoint.network,
        checkpoint.diffeomorphic,
        given.get("grid"),
        checkpoint.spacing,
        checkpoint.axes,
        checkpoint.intensity,
        checkpoint.init,
        checkpoint.pairs,
        checkpoint.recipe,
    )
    out, observer = None if path is None else Path(path), progress or Observer()
    if from_weights:
        out = out or Path("model.onnx")
        _check_triton(triton, out.stem, given.get("precision"), engine, overwrite)
        return _deployed(
            _export_model(where, out, given, bare, engine, overwrite, observer), out.stem, triton, given, overwrite
        )
    if given.get("with_warp"):
        raise UsageError(f"`with_warp=True`: {where} is exported already, give the run or checkpoint it came from")
    if given.keys() & {"precision", "atol_mm"}:
        raise UsageError(f"{where} has its precision already: `precision` and `atol_mm` go with its export")
    by_name = isinstance(source, str) and is_name(source)
    if triton.triton and not engine.trt:
        bare.check_none("an exported one")
        if out:
            raise UsageError(f"`path` {out}: {where} is exported already, and `triton` names where it goes")
        name = source if by_name else where.stem
        return _deployed(Exported(where, {}), str(name), triton, given, overwrite)
    if out is None:  # not into the folder of models
        out = Path(f"{source}{ENGINE_SUFFIX}") if by_name else where.with_suffix(ENGINE_SUFFIX)
    _check_triton(triton, out.stem, None, engine, overwrite)
    return _deployed(_export_engine(where, out, bare, engine, overwrite, observer), out.stem, triton, given, overwrite)


def _check_together(engine: EngineOptions, triton: TritonOptions, precision: str | None) -> None:
    if triton.triton is None and triton != TritonOptions():
        raise UsageError("`instances` goes with `triton`")
    if not engine.trt and (replace(engine, max_batch=1) if triton.triton else engine) != EngineOptions():
        raise UsageError("`cpu_build`, `target`, `trt_module`, `max_batch` and `rebuild` go with `trt=True`")
    if engine.cpu_build != bool(engine.target):
        raise UsageError("`cpu_build` and `target` go together: `cpu_build=True` `target=sm86,sm89,sm120`")
    if engine.trt and precision == "int8":
        raise UsageError(
            "`trt=True` `precision=int8`: int8 models are for the CPU runtimes, build engines of fp32 or fp16"
        )


def _check_triton(
    triton: TritonOptions, name: str, precision: str | None, engine: EngineOptions, overwrite: bool
) -> None:
    """Before any work: what ``triton.write_model`` would refuse after it."""
    if triton.triton is None:
        return
    from ofg_deploy.export.triton import check_module, check_precision, check_repository

    check_repository(triton.triton, name, overwrite)
    check_precision(precision, engine.trt)
    if engine.trt:
        check_module(_tools(engine).trt.name, "the engine that can be built here")


def _deployed(
    exported: Exported, name: str, triton: TritonOptions, given: Mapping[str, Any], overwrite: bool
) -> Exported:
    """With the model, or its engine, in a repository of Triton where one was asked for."""
    if triton.triton is None:
        return exported
    from ofg_deploy.export.triton import Deployment, write_model

    source = exported.engines[0] if exported.engines else exported.path
    how = Deployment(given.get("max_batch"), triton.instances)
    return replace(exported, triton=write_model(source, triton.triton, name, how, overwrite))


def _export_model(
    source: Path,
    out: Path,
    given: Mapping[str, Any],
    bare: BareOptions,
    engine: EngineOptions,
    overwrite: bool,
    observer: Observer,
) -> Exported:
    from ofg_deploy.export.onnx import export_onnx
    from ofg_deploy.export.parity import Tolerance
    from ofg_deploy.export.request import find_source
    from ofg_deploy.outputs import check_writable
    from ofg_deploy.serve.engine_file import record_path
    from ofg_deploy.train.devices import torch_as_it_was

    options = ModelOptions(**{name: given[name] for name in given.keys() & options_of(ModelOptions)})
    if out.suffix != ".onnx":
        raise UsageError(f"`path` {out} must end in .onnx")
    plan = out.with_suffix(ENGINE_SUFFIX)
    check_writable([out, out.with_suffix(".json"), *([plan, record_path(plan)] if engine.trt else [])], overwrite)
    with torch_as_it_was(), tempfile.TemporaryDirectory() as scratch:
        job = _job(engine, observer) if engine.trt else None
        with observer.working("preparing validation pairs, tracing, comparing"):
            found = find_source(source, bare, Path(scratch))
            for line in found.remarks:
                observer.note(line)
            made = export_onnx(
                found, out, Tolerance(options.atol_mm), overwrite, sys.argv, job, options.precision, options.with_warp
            )
    engines = (made.engine.engine,) if made.engine else ()
    return Exported(out, asdict(made.parity), engines, made, made.engine)


def _export_engine(
    source: Path, out: Path, bare: BareOptions, engine: EngineOptions, overwrite: bool, observer: Observer
) -> Exported:
    from ofg_deploy.export.engine import export_engine
    from ofg_deploy.outputs import check_writable
    from ofg_deploy.serve.engine_file import record_path

    if not engine.trt:
        raise UsageError(f"{source} is exported already: add `trt=True` for an engine, or give a run or a checkpoint")
    bare.check_none("a model")
    if out.suffix != ENGINE_SUFFIX:
        raise UsageError(f"`path` {out} must end in {ENGINE_SUFFIX}: {source} is a model already")
    check_writable([out, record_path(out)], overwrite)
    made = export_engine(source, out, _job(engine, observer), overwrite)
    return Exported(source, made.record.parity or {}, (made.engine,), None, made)


def _job(engine: EngineOptions, observer: Observer) -> EngineJob:
    """Chosen first: what cannot be built here is said before any work."""
    from ofg_deploy.export.engine import EngineJob
    from ofg_deploy.export.precision import write_emulation

    tools = _tools(engine)
    observer.note(f"engine: {tools}")
    return EngineJob(tools, sys.argv, engine.rebuild, observer, observer.waiting, write_emulation)


def _tools(engine: EngineOptions) -> Toolchain:
    from ofg_deploy.export.toolchain import BuildOptions, choose_toolchain

    targets = tuple(part.strip() for part in engine.target.split(",")) if engine.target else ()
    return choose_toolchain(BuildOptions(engine.trt_module, targets, engine.max_batch))

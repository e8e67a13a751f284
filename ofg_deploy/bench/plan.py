"""Which rows a table has: what was asked for, what the files and the checkpoint allow, and why the rest is missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ofg_deploy.bench.candidate import EAGER, FILES, RUNTIMES, Candidate, Runtime
from ofg_deploy.bench.models import ModelFile
from ofg_deploy.bench.proof import check_repeats
from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.geometry import Shape
from ofg_deploy.model_file import PRECISIONS


@dataclass(frozen=True)
class TableOptions:
    """What to measure, and how.

    Attributes:
        runtimes: rows in this order; empty for those of the device.
        precisions: of each runtime; empty for those of the files, and float32 of the checkpoint.
        checkpoint: run folder or checkpoint that the files were exported from: the eager network.
        pairs: folder or list of real pairs to measure accuracy on; those of the run if absent, or a synthetic one.
        grid: another size than the models' own, for models that take any.
        repeats: timed runs of each row.
        threads: CPU threads; 0 for all cores.

    Raises:
        UsageError: an unknown runtime or precision, one given twice, or fewer than 2 repeats.
    """

    runtimes: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    checkpoint: Path | None = None
    pairs: Path | None = None
    grid: Shape | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    repeats: int = 20
    threads: int = 0

    def __post_init__(self) -> None:
        check_repeats(self.repeats, self.threads)
        for option, given, known in (
            ("`runtimes`", self.runtimes, RUNTIMES),
            ("`precisions`", self.precisions, PRECISIONS),
        ):
            unknown = [name for name in given if name not in known]
            if unknown or len(set(given)) < len(given):
                what = f"{unknown[0]!r} is unknown" if unknown else "a name is given twice"
                raise UsageError(f"{option}: {what}; give some of {','.join(known)}")


def by_kind(files: Sequence[ModelFile]) -> dict[tuple[str, str], ModelFile]:
    """By suffix and precision. Raises UsageError for two of one, or for other weights."""
    found: dict[tuple[str, str], ModelFile] = {}
    for file in files:
        if file.contract.weights_sha256 != files[0].contract.weights_sha256:
            raise UsageError(f"{files[0].path} and {file.path} hold different weights: a table is of one network")
        other = found.setdefault((file.path.suffix, file.contract.precision), file)
        if other is not file:
            raise UsageError(f"{other.path} and {file.path} are both {file.contract.precision}: give one of them")
    return found


def _weights_file(checkpoint: Path | None) -> Path | None:
    """The checkpoint itself; of a run, its best."""
    if checkpoint is None:
        return None
    if not checkpoint.exists():
        raise InputError(f"{checkpoint} does not exist: give the run or checkpoint that the models were exported from")
    if checkpoint.is_dir():
        from ofg_deploy.train.run import Run

        return Run(checkpoint).best
    return checkpoint


def filled_in(options: TableOptions, files: Sequence[ModelFile]) -> TableOptions:
    """What was left open: all cores, the runtimes of the device, the precisions of the files.

    Raises:
        InputError: no such checkpoint.
    """
    return replace(
        options,
        checkpoint=_weights_file(options.checkpoint),
        threads=options.threads or os.cpu_count() or 1,
        runtimes=options.runtimes or _default_runtimes(options),
        precisions=options.precisions or _default_precisions(files, options),
    )


def _default_runtimes(options: TableOptions) -> tuple[str, ...]:
    eager = (("torch", "torch-compile") if options.device == "cuda" else ("torch",)) if options.checkpoint else ()
    return (*eager, "onnxruntime", "tensorrt" if options.device == "cuda" else "openvino")


def _default_precisions(files: Sequence[ModelFile], options: TableOptions) -> tuple[str, ...]:
    there = {file.contract.precision for file in files} | ({"fp32"} if options.checkpoint else set())
    return tuple(precision for precision in PRECISIONS if precision in there)


def candidate_of(
    runtime: Any, precision: str, files: dict[tuple[str, str], ModelFile], grid: Shape, options: TableOptions
) -> Candidate | str:
    """What to open for a row, or why there is nothing."""
    some = next(iter(files.values()))
    if runtime in EAGER:
        if options.checkpoint is None:
            return "needs the eager network: give `checkpoint` RUN"
        if precision == "int8":
            return "there is no int8 form of the eager network"
        if precision != "fp32" and options.device == "cpu":
            return "on a CPU the eager network is measured in fp32 alone"
        source = options.checkpoint
    else:
        suffix = FILES[runtime]
        if (suffix, precision) not in files:
            how = "`trt=True`" if suffix == ".engine" else f"`precision={precision}`"
            return f"no {precision} {suffix} among the files: ofg export with {how} makes one"
        source = files[suffix, precision].path
    return Candidate(runtime, source, precision, options.device, options.threads, some.contract, grid)


def reference_of(files: dict[tuple[str, str], ModelFile], grid: Shape, options: TableOptions) -> Candidate | None:
    """Float32 on the CPU, whatever the rows run on."""
    on_cpu = replace(options, device="cpu")
    runtime: Runtime = "torch" if options.checkpoint else "onnxruntime"
    found = candidate_of(runtime, "fp32", files, grid, on_cpu)
    return found if isinstance(found, Candidate) else None

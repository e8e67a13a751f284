"""``ofg export``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from ofg_deploy.cli.app import InitOption, Overwrite, RecipeOption, app
from ofg_deploy.errors import UsageError
from ofg_deploy.extras import need

ModuleOption = Literal["auto", "tensorrt", "tensorrt_rtx"]
PrecisionOption = Literal["fp32", "fp16", "bf16", "int8", "auto"]


@app.command()
def export(
    source: Annotated[
        Optional[str],
        typer.Argument(
            help="Run folder of ofg train, a checkpoint, or (--trt) a model.onnx or a model's name; the newest run in "
            "./run if absent."
        ),
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", "-o", help="File to write; model.onnx, or the .engine beside a model, if absent."),
    ] = None,
    network: Annotated[Optional[str], typer.Option(help="Architecture of a bare checkpoint.")] = None,
    diffeomorphic: Annotated[
        Optional[bool],
        typer.Option("--diffeomorphic", help="A published checkpoint predicts a velocity: integrate it."),
    ] = None,
    recipe: Annotated[
        Optional[RecipeOption], typer.Option(help="What a published checkpoint was trained on; options given here win.")
    ] = None,
    grid: Annotated[
        Optional[tuple[int, int, int]],
        typer.Option("--grid", "--shape", help="Network grid X Y Z; the one it was trained on if absent."),
    ] = None,
    spacing: Annotated[
        Optional[tuple[float, float, float]],
        typer.Option(help="Spacing of a published checkpoint; 1 mm if absent."),
    ] = None,
    axes: Annotated[Optional[str], typer.Option(help="Directions of --grid and --spacing; RAS if absent.")] = None,
    intensity: Annotated[
        Optional[str], typer.Option(help="Intensity recipe of a published checkpoint; minmax if absent.")
    ] = None,
    init: Annotated[
        Optional[InitOption], typer.Option(help="Alignment a published checkpoint expects; affine if absent.")
    ] = None,
    pairs: Annotated[
        Optional[Path], typer.Option(help="Folder or list of real pairs to check a bare checkpoint on.")
    ] = None,
    with_warp: Annotated[
        bool, typer.Option("--with-warp", help="The graph also returns the warped moving image.")
    ] = False,
    precision: Annotated[
        Optional[PrecisionOption],
        typer.Option(help="Arithmetic of the graph, fp32 if absent; auto: fp16, mixed or fp32, and says why."),
    ] = None,
    atol_mm: Annotated[
        Optional[float], typer.Option(help="Largest field error allowed, in mm; that of the precision if absent.")
    ] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Also build a TensorRT engine, for the GPU here.")] = False,
    cpu_build: Annotated[
        bool, typer.Option("--cpu-build", help="Build the engine without a GPU (tensorrt_rtx), for --target.")
    ] = False,
    target: Annotated[
        Optional[str], typer.Option(help="Compute capabilities of --cpu-build in one engine: sm86,sm89,sm120.")
    ] = None,
    trt_module: Annotated[ModuleOption, typer.Option(help="What builds the engine; auto says what it chose.")] = "auto",
    max_batch: Annotated[int, typer.Option(help="Most pairs at once in the engine.")] = 1,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build the engine even if the cache has it.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Export only the network to ONNX; nothing is published unless it reproduces the network.

    With --trt a TensorRT engine too, with its record beside it.
    """
    if not trt and (cpu_build or target or trt_module != "auto" or max_batch != 1 or rebuild):
        raise UsageError("--cpu-build, --target, --trt-module, --max-batch and --rebuild go with --trt")
    if cpu_build != bool(target):
        raise UsageError("--cpu-build and --target go together: --cpu-build --target sm86,sm89,sm120")
    if trt and precision == "int8":
        raise UsageError("--trt --precision int8: int8 models are for the CPU runtimes, build engines of fp32 or fp16")
    from ofg_deploy.catalogue import is_name, source_path

    from_weights = source is None or source_path(source).suffix != ".onnx"
    need(*(("filelock",) if trt else ()), *(("torch", "onnx", "onnxscript") if from_weights else ()))
    from ofg_deploy.export import command
    from ofg_deploy.export.request import BareOptions
    from ofg_deploy.export.toolchain import BuildOptions

    options = BareOptions(network, diffeomorphic, grid, spacing, axes, intensity, init, pairs, recipe)
    targets = tuple(part.strip() for part in target.split(",")) if target else ()
    engine = command.EngineOptions(BuildOptions(trt_module, targets, max_batch), rebuild) if trt else None
    path = command.newest_run_here() if source is None else source_path(source)
    if source is not None and is_name(source) and path.suffix == ".onnx":
        out = out or Path(f"{source}.engine")  # not into the folder of models
    command.export(path, out, options, atol_mm, engine, overwrite, precision, with_warp)

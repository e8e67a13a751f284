"""The options of export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ofg_deploy.options.value import option, options_of
from ofg_deploy.options.words import EngineModule, ExportPrecision, Init, RecipeName

MODEL, ENGINE, TRITON, CHECKPOINT = "Model", "Engine", "Triton", "Checkpoints without a run folder"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What the graph computes, and how exactly it must reproduce the network."""

    grid: tuple[int, int, int] | None = option(
        None,
        "Network grid in voxels, X Y Z.",
        MODEL,
        shown=True,
        flags=("--grid", "--shape"),
        default="the one it was trained on",
    )
    with_warp: bool = option(
        False, "The graph also returns the warped moving image.", MODEL, shown=True, flags=("--with-warp",)
    )
    precision: ExportPrecision = option(
        "fp32",
        "Precision of the graph; auto: the lowest of fp16, mixed and fp32 that passes the parity check.",
        MODEL,
        shown=True,
    )
    atol_mm: float | None = option(
        None, "Largest field error allowed, in mm.", MODEL, shown=True, default="that of the precision", above=0
    )


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Whether a TensorRT engine is built too, by what and for which GPUs."""

    trt: bool = option(False, "Also build a TensorRT engine, for this GPU.", ENGINE, shown=True, flags=("--trt",))
    cpu_build: bool = option(
        False,
        "Build the engine without a GPU (tensorrt_rtx), for the GPUs that `target` names.",
        ENGINE,
        shown=True,
        flags=("--cpu-build",),
    )
    target: str | None = option(
        None, "Compute capabilities to build for without a GPU: sm86,sm89,sm120.", ENGINE, shown=True, metavar="LIST"
    )
    trt_module: EngineModule = option("auto", "Package that builds the engine.", ENGINE, shown=True)
    max_batch: int = option(1, "Largest batch size of the engine, and of Triton.", ENGINE, shown=True, least=1)
    rebuild: bool = option(
        False, "Build the engine again although it is in the cache.", ENGINE, shown=True, flags=("--rebuild",)
    )


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """Whether a model repository of Triton is written too, and how it runs there."""

    triton: Path | None = option(
        None,
        "Also write the model (with `trt` the engine) into this model repository of the Triton Inference Server.",
        TRITON,
        shown=True,
        metavar="DIR",
    )
    instances: int = option(
        1, "Copies of the model that Triton runs at once, on each GPU or on the CPU.", TRITON, least=1
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What a published checkpoint does not say about itself. One of `ofg train` knows all of it."""

    network: str | None = option(None, "Network architecture.", CHECKPOINT, shown=True, metavar="NAME")
    diffeomorphic: bool | None = option(
        None,
        "The network predicts a stationary velocity field, which is integrated.",
        CHECKPOINT,
        shown=True,
        flags=("--diffeomorphic",),
    )
    recipe: RecipeName | None = option(
        None,
        "Data set it was trained on; options given explicitly take precedence.",
        CHECKPOINT,
        shown=True,
        metavar="NAME",
    )
    spacing: tuple[float, float, float] | None = option(
        None, "Voxel size of the network grid in mm.", CHECKPOINT, shown=True, default="1 1 1"
    )
    axes: str | None = option(
        None, "Anatomical directions of `grid` and `spacing`.", CHECKPOINT, shown=True, default="RAS", metavar="AXES"
    )
    intensity: str | None = option(
        None,
        "Normalisation of intensities to 0..1, as in training.",
        CHECKPOINT,
        shown=True,
        default="minmax",
        metavar="RECIPE",
    )
    init: Init | None = option(
        None, "Initial alignment that the network expects.", CHECKPOINT, shown=True, default="affine"
    )
    pairs: Path | None = option(
        None,
        "List or folder of pairs to check the exported model on.",
        CHECKPOINT,
        shown=True,
        default="one synthetic pair",
        metavar="LIST",
    )


EXPORT = options_of(ModelOptions, EngineOptions, TritonOptions, CheckpointOptions)

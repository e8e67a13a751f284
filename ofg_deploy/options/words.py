"""The choices that options offer, by name."""

from __future__ import annotations

from typing import Literal

Init = Literal["none", "header", "centre", "rigid", "affine"]
RecipeName = Literal["ixi", "oasis", "lpba40", "abdomenctct", "abdomenctct-published", "hippocampus"]
PAPER = "paper"  # the recipe of the method, which goes with that of any data set
Guidance = Literal["ofg", "none"]
Optimiser = Literal["greedy", "multilevel", "adam"]
Similarity = Literal["ncc", "mse", "mind"]
StepSimilarity = Literal["auto", "ncc", "mind"]  # of steps on the pair
Regulariser = Literal["diffusion", "bending"]
Precision = Literal["fp32", "bf16", "fp16"]
Starts = Literal["frame", "pair"]
Device = Literal["auto", "cpu", "cuda"]
Runtime = Literal["auto", "onnxruntime", "openvino", "tensorrt"]
Quality = Literal["fast", "default", "best"]
Interpolation = Literal["linear", "nearest", "genericlabel", "bspline"]
LabelInterpolation = Literal["nearest", "genericlabel"]
Dialect = Literal["itk", "ants", "itk-h5", "fsl", "l2r", "voxelmorph"]  # forms of a transform that are written
Form = Literal["itk", "ants", "itk-h5", "fsl", "l2r", "voxelmorph", "greedy"]  # that are read
PointsFrame = Literal["ras", "lps"]
Executor = Literal["here", "ray"]
Unit = Literal["um", "mm", "m"]
ExportPrecision = Literal["fp32", "fp16", "bf16", "int8", "auto"]
EngineModule = Literal["auto", "tensorrt", "tensorrt_rtx"]
NetworkName = Literal[
    "voxelmorph",
    "voxelmorph-2",
    "voxelmorph-half",
    "vit-v-net",
    "transmorph",
    "transmorph-small",
    "transmorph-large",
    "transmorph-lpba",
    "lku-net",
]
MOST_PASSES = 20  # of a network over one pair
COMPACT: NetworkName = "voxelmorph-half"  # a ninth of the arithmetic, see docs/guidance.md

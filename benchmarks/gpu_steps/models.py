"""Networks without training whose fields are large enough to be wrong, and their model files."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from gpu_steps.phantom import Shape, head
from ofg_deploy import metrics
from ofg_deploy.export.casts import LOW, lower
from ofg_deploy.export.form import choose_form
from ofg_deploy.export.onnx import trace
from ofg_deploy.export.precision import sealed
from ofg_deploy.field import Field
from ofg_deploy.geometry import Grid, lattice
from ofg_deploy.model_file import Contract
from ofg_deploy.outputs import write_bytes
from ofg_deploy.preprocess import Intensity, NetworkInput, PreparedPair
from ofg_deploy.train.checkpoint import weights_sha256
from ofg_deploy.train.networks import build_network

BRAIN: Shape = (160, 192, 224)
TINY: Shape = (16, 32, 48)
LARGEST = 3.0  # voxels


@cache
def make_pair(shape: Shape) -> tuple[PreparedPair, tuple[Any, Any]]:
    """Two heads on the network's grid in 0..1, fixed first, and their label maps."""
    (fixed, fixed_labels), (moving, moving_labels) = (head(shape, number) for number in (0, 1))
    images = [np.clip(image / 130, 0, 1).astype(np.float32) for image in (fixed, moving)]
    there = Grid(shape, np.eye(4))
    return PreparedPair(images[0], images[1], there, np.eye(4), overlap=1.0, outside=0.0), (fixed_labels, moving_labels)


def dice(labels: tuple[Any, Any], field: Field) -> float:
    """Mean Dice of the fixed labels and the moving ones under a field."""
    shape = labels[0].shape
    upper = np.array(shape).reshape(3, 1, 1, 1) - 1
    where = tuple(np.clip(np.rint(lattice(shape) + field), 0, upper).astype(np.intp))
    return metrics.mean(metrics.dice(labels[0], labels[1][where])) or 0.0


def make_network(name: str, shape: Shape, seed: int = 0) -> Any:
    """Random weights, the last convolution scaled to a field of ``LARGEST`` voxels on ``make_pair``.

    Biases of zero, with which some layers begin, become small numbers: the exporter would leave them out, and the graph
    would not be that of a trained network.
    """
    torch.manual_seed(seed)
    network = build_network(name, shape).eval()
    pair = make_pair(shape)[0]
    scaled(network, pair.moving, pair.fixed)
    for key, weight in network.named_parameters():
        if key.endswith("bias") and not weight.any():
            torch.nn.init.normal_(weight, std=1e-3)
    return network


def scaled(network: Any, moving: Any, fixed: Any) -> None:
    heads = [p for name, p in network.named_parameters() if name.startswith(("flow", "reg_head")) and p.dim() > 1]
    with torch.inference_mode():
        field = network(*(torch.from_numpy(image)[None, None] for image in (moving, fixed)))
    for weight in heads:
        weight.data *= LARGEST / float(field.abs().max())


def write_models(network: Any, name: str, shape: Shape, paths: dict[str, Path], guidance: str) -> onnx.ModelProto:
    """Trace once, then lower and seal for each precision, as ``ofg export`` does (no gate); the float32 graph."""
    form = choose_form(network, with_warp=False)
    graph = trace(network.inference_copy(form.sizes == "multiples"), shape)
    expects = NetworkInput(shape, (1.0, 1.0, 1.0), Intensity("minmax"), "affine")
    weights = weights_sha256(network.state_dict())
    contract = Contract(name, expects, network.divisor, weights, {"guidance": guidance}, sizes=form.sizes)
    for precision, path in paths.items():
        lowered = lower(graph, precision) if precision in LOW else graph
        write_bytes(path, sealed(lowered, replace(contract, precision=precision)))
    return graph


def model_file(work: Path, name: str, shape: Shape, precision: str = "fp32") -> Path:
    """The model of ``make_network`` in the work folder; written, with its other precision, if it is not there."""
    size = "x".join(map(str, shape))
    paths = {kind: work / f"{name}-{size}-{kind}.onnx" for kind in ("fp32", "fp16")}
    if not paths[precision].exists():
        write_models(make_network(name, shape), name, shape, paths, "none")
    return paths[precision]

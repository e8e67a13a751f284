"""Which sizes a graph takes and what it returns, and the proof that both hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ofg_deploy.errors import ParityError
from ofg_deploy.export.parity import Parity, Predict, Reference, Tolerance, synthetic_pair
from ofg_deploy.export.precision import write_emulation
from ofg_deploy.field import sample
from ofg_deploy.geometry import lattice
from ofg_deploy.model_file import read_model
from ofg_deploy.preprocess import NetworkInput, PreparedPair
from ofg_deploy.serve.onnx_runtime import OnnxRuntimeEngine
from ofg_deploy.train.networks.base import RegistrationNetwork
from ofg_deploy.train.validation import predict


@dataclass(frozen=True)
class GraphForm:
    """``sizes`` and ``outputs`` as in the contract, and in words what sizes these are and why."""

    sizes: str
    outputs: tuple[str, ...]
    reason: str


def choose_form(network: RegistrationNetwork, with_warp: bool) -> GraphForm:
    """One graph for all multiples of the divisor where nothing in the network belongs to its grid."""
    outputs = ("field", "warped") if with_warp else ("field",)
    only = f"this grid alone ({' '.join(map(str, network.grid))}): "
    if not network.fully_convolutional:
        return GraphForm("fixed", outputs, only + "its attention is laid out for it")
    if network.integrate is not None:
        return GraphForm("fixed", outputs, only + "its integration samples on a lattice of it")
    if with_warp:
        return GraphForm("fixed", outputs, only + "its sampler has a lattice of it")
    if network.padded != network.grid:
        return GraphForm("fixed", outputs, only + f"it is padded to multiples of {network.divisor}")
    return GraphForm("multiples", outputs, f"any multiples of {network.divisor}, as it is fully convolutional")


def elsewhere(expects: NetworkInput, divisor: int) -> NetworkInput:
    """Another grid of multiples, no two axes alike."""
    x, y, z = (3 * divisor, 2 * divisor, 4 * divisor)
    return replace(expects, shape=(x, y, z) if expects.shape != (x, y, z) else (z, x, y))


def runnable(model: Path) -> OnnxRuntimeEngine:
    """An exported file in ONNX Runtime; its emulation, written beside it, where the CPU lacks its types."""
    if read_model(model).contract.precision == "bf16":
        emulation = model.with_name("emulation.onnx")
        write_emulation(model, emulation)
        model = emulation
    return OnnxRuntimeEngine(model, "cpu", threads=0)


def compare_elsewhere(
    network: RegistrationNetwork, engine: OnnxRuntimeEngine, expects: NetworkInput, tolerance: Tolerance, precision: str
) -> Parity:
    """The same weights on another grid than the network's, against its graph there, on a synthetic pair.

    Raises:
        ParityError: out of the bounds of the precision.
    """
    other = type(network)(expects.shape).eval()
    other.load_state_dict(network.state_dict())
    eager: Predict = lambda moving, fixed: predict(other, moving, fixed, "cpu")  # noqa: E731
    words = f"eager float32 network on {expects.shape}"
    reference = Reference(words, eager, [synthetic_pair(expects)], [None], tolerance)
    return reference.check(engine.predict, precision)


def largest_warp_error(engine: OnnxRuntimeEngine, pairs: list[PreparedPair], most: float) -> float:
    """``warped`` of the graph against our own sampler under the graph's own field, over all pairs.

    Our sampler holds edge values for half a voxel where the graph falls to zero within one: zeros around the image
    make them the same.

    Raises:
        ParityError: it exceeds ``most``, or is not a number.
    """
    errors = []
    for pair in pairs:
        found = engine.run(pair.moving, pair.fixed)
        where = lattice(pair.grid.shape) + found["field"] + 1
        errors.append(np.abs(found["warped"][0] - sample(np.pad(pair.moving, 1), where)).max())
    largest = float(np.max(errors))
    if not largest <= most:
        how = f"{largest:.3g} > {most:g}"
        raise ParityError(f"the exported model warps otherwise than our own sampler ({how}): not published")
    return largest

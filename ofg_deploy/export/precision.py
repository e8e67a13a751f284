"""Which precision a model gets: the one asked for, or with ``auto`` the lowest that stays within its bounds."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import onnx

from ofg_deploy.export.casts import LOW, emulate, lower, lowerable
from ofg_deploy.export.parity import Parity, Reference, compare
from ofg_deploy.export.quantise import quantise
from ofg_deploy.model_file import CONTRACT_KEY, SEAL_KEY, UNSEALED, Contract, read_model, seal
from ofg_deploy.preprocess import PreparedPair
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.version import __version__

SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the module a node came from
MAX_LAYERS = 24  # parts of a network that are told apart when looking for those that hurt


@dataclass(frozen=True)
class Attempt:
    """One precision that was tried.

    Attributes:
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        float32_layers: parts of the network kept in float32 besides the islands every model has, worst first, each with
            the 99.9th percentile of the field's error, in mm, that it alone causes in this precision.
        parity: against the eager float32 network.
        beyond: figures out of bounds; none where it holds.
    """

    precision: str
    float32_layers: dict[str, float]
    parity: Parity
    beyond: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Proven:
    """A model within its bounds.

    Attributes:
        content: the sealed file.
        parity: what was decided on.
        in_runtime: of the file itself in ``runtime``, where ``parity`` is of its emulation and the CPU can run it; of
            int8 in OpenVINO, if it is installed, where ``parity`` is in ONNX Runtime.
        attempts: all that was tried, the last being this one.
    """

    model: onnx.ModelProto
    content: bytes
    contract: Contract
    runtime: str
    parity: Parity
    in_runtime: Parity | None
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, eq=False)
class Gate:
    """Compares models with the eager network.

    Attributes:
        contract: of the float32 model.
        folder: for the files that are run; not kept.
        calibration: the pairs int8 takes its ranges from.
    """

    reference: Reference
    contract: Contract
    folder: Path
    calibration: Callable[[], list[PreparedPair]] = list

    def prove(self, model: onnx.ModelProto, precision: str) -> Proven:
        """Give a float32 model the precision asked for, and let it pass or not.

        The float32 model is compared first in any case: a mistake must not hide in the wider bounds of a lower type.

        Raises:
            ParityError: out of bounds, in float32 or in the precision asked for.
        """
        exact = self._measured(model, "fp32")
        exact.check(self.reference.tolerance, "fp32")
        attempts: list[Attempt] = []
        candidates = self._steps(model) if precision == "auto" else iter([(precision, dict[str, float]())])
        for tried, kept in candidates:
            int8 = tried == "int8"
            candidate = quantise(model, self.calibration()) if int8 else at_precision(model, tried, set(kept))
            parity = exact if tried == "fp32" else self._measured(candidate, tried)
            beyond = tuple(parity.beyond(self.reference.tolerance.bounds(tried)))
            attempts.append(Attempt(tried, kept, parity, beyond))
            if not beyond:
                return self._proven(candidate, tried, parity, tuple(attempts))
        attempts[-1].parity.check(self.reference.tolerance, attempts[-1].precision)
        raise AssertionError("the last attempt was out of bounds")

    def _steps(self, model: onnx.ModelProto) -> Iterator[tuple[str, dict[str, float]]]:
        """float16; float16 with the 1, 2, 4, ... worst layers in float32, at most half of them; float32."""
        yield "fp16", {}
        errors = self.layer_errors(model, "fp16")
        worst = sorted(errors, key=lambda layer: errors[layer], reverse=True)
        for count in takewhile(lambda n: 2 * n <= len(worst), (1, 2, 4, 8)):
            yield "fp16", {layer: errors[layer] for layer in worst[:count]}
        yield "fp32", {}

    def layer_errors(self, model: onnx.ModelProto, precision: str) -> dict[str, float]:
        """99.9th percentile of the field's error on the first pair, in mm, for each layer lowered alone.

        A figure that is not a number counts as infinite.
        """
        parts = layers(model, precision)
        errors = {}
        for layer in parts:
            parity = self._measured(at_precision(model, precision, parts.keys() - {layer}), precision, pairs=1)
            found = parity.field_mm_p999
            errors[layer] = found if found == found else float("inf")  # noqa: PLR0124
        return errors

    def _measured(self, candidate: onnx.ModelProto, precision: str, pairs: int | None = None) -> Parity:
        """Where the runtime would round less than the types say, or lacks them, the emulation is what counts."""
        emulated = precision in LOW
        path = self.folder / "candidate.onnx"
        contract = replace(self.contract, precision="fp32" if emulated else precision)
        path.write_bytes(sealed(emulate(candidate) if emulated else candidate, contract))
        reference, engine = self.reference, open_engine(path, "cpu")
        found = compare(reference.predict, engine.predict, reference.pairs[:pairs], reference.dice[:pairs])
        return replace(found, emulated=emulated)

    def _proven(self, model: onnx.ModelProto, precision: str, parity: Parity, attempts: tuple[Attempt, ...]) -> Proven:
        """The file itself, run where the CPU can run it."""
        contract = replace(self.contract, precision=precision)
        content = sealed(model, contract)
        path = self.folder / "candidate.onnx"
        path.write_bytes(content)
        if precision == "bf16":
            return Proven(model, content, contract, "emulated", parity, None, attempts)
        # Rounding to integers is the runtime's own business: both that may run the file have to hold.
        other = precision == "int8" and find_spec("openvino") is not None
        engine = open_engine(path, "cpu", runtime="openvino" if other else None)
        own = self.reference.check(engine.predict, precision) if parity.emulated or other else None
        return Proven(model, content, contract, engine.runtime, parity, own, attempts)


def write_emulation(path: Path, out: Path) -> None:
    """A lowered model file as one that every runtime can run, see ``casts.emulate``."""
    model = read_model(path)
    graph = emulate(onnx.load_model_from_string(model.content))
    out.write_bytes(sealed(graph, replace(model.contract, precision="fp32")))


def at_precision(model: onnx.ModelProto, precision: str, float32_layers: set[str]) -> onnx.ModelProto:
    """A float32 model at a precision, with those layers left in float32."""
    if precision not in LOW:
        return model
    parts = layers(model, precision) if float32_layers else {}
    return lower(model, precision, [name for layer in float32_layers for name in parts[layer]])


def layers(model: onnx.ModelProto, precision: str) -> dict[str, list[str]]:
    """The parts of a network that can be lowered, by module name -> first outputs of their nodes.

    Names are cut at the depth that leaves at most ``MAX_LAYERS`` of them.
    """
    scopes: dict[str, tuple[str, ...]] = {}
    before: tuple[str, ...] = ("input",)
    for node in lowerable(model, precision):
        noted = {p.key: p.value for p in node.metadata_props}.get(SCOPES)
        # Each entry is a module's full name, the last one the operation; a node without any belongs to the one before.
        before = tuple(ast.literal_eval(noted)[1:-1]) or ("input",) if noted else before
        scopes[node.output[0]] = before
    deepest = max(map(len, scopes.values()), default=1)
    depth = max((d for d in range(1, deepest + 1) if len({s[:d] for s in scopes.values()}) <= MAX_LAYERS), default=1)
    found: dict[str, list[str]] = {}
    for name, scope in scopes.items():
        found.setdefault(scope[:depth][-1], []).append(name)
    return found


def sealed(model: onnx.ModelProto, contract: Contract) -> bytes:
    """The file of a model."""
    onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.to_json(), SEAL_KEY: UNSEALED})
    model.producer_name, model.producer_version = "ofg_deploy", __version__
    return seal(model.SerializeToString())

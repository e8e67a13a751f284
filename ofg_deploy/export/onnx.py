"""Network -> one self-contained ONNX file with its contract, published only when it reproduces the network."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnxscript import optimizer

from ofg_deploy.errors import ParityError
from ofg_deploy.export.engine import EngineJob, PublishedEngine, write_engine
from ofg_deploy.export.form import GraphForm, choose_form, compare_elsewhere, elsewhere, largest_warp_error, runnable
from ofg_deploy.export.loggers import errors_only
from ofg_deploy.export.parity import Parity, Predict, Reference, Tolerance
from ofg_deploy.export.precision import SCOPES, Attempt, Gate
from ofg_deploy.export.source import ExportSource
from ofg_deploy.export.topology import topology, weights
from ofg_deploy.export.velocity import name_velocity
from ofg_deploy.field import Field
from ofg_deploy.locations import portable_command
from ofg_deploy.model_file import MAX_BYTES, OPSET, OPSETS, Contract, SealedModel
from ofg_deploy.outputs import check_writable, staged, to_json
from ofg_deploy.serve.engine_file import SUFFIX, record_path
from ofg_deploy.train.checkpoint import weights_sha256
from ofg_deploy.train.networks.base import RegistrationNetwork
from ofg_deploy.train.validation import predict
from ofg_deploy.version import __version__

MAX_LISTED = 5


@dataclass(frozen=True)
class Exported:
    """What was published.

    Attributes:
        parity: on ``pairs_from`` of the source; ``parity_elsewhere`` on another grid, where the graph takes any.
        attempts: the precisions that were tried.
        warped_error: of the second output against our own sampler, if there is one.
        engine: if one was asked.
    """

    model: Path
    record: Path
    parity: Parity
    contract: Contract
    attempts: tuple[Attempt, ...]
    form: GraphForm
    parity_elsewhere: Parity | None = None
    warped_error: float | None = None
    engine: PublishedEngine | None = None


def export_onnx(
    source: ExportSource,
    out: Path,
    tolerance: Tolerance,
    overwrite: bool,
    command: list[str],
    engine_job: EngineJob | None = None,
    precision: str = "fp32",
    with_warp: bool = False,
) -> Exported:
    """Trace the network alone, prove it against the eager one in ONNX Runtime, then publish model and record.

    With ``engine_job`` also a TensorRT engine of the model beside it: all files, or none. With ``with_warp`` the graph
    also returns the warped moving image, checked against our own sampler.

    Args:
        precision: one of ``PRECISIONS``, or ``auto`` for the lowest of fp16 and fp32 within its bounds.

    Raises:
        ParityError: the graph holds something that is not inference of the network, or differs beyond ``tolerance``.
        InputError: ``out`` exists already or cannot be written. Also as ``export.tensorrt.build``.
    """
    record = out.with_suffix(".json")
    plan = out.with_suffix(SUFFIX)
    beside = [plan, record_path(plan)] if engine_job else []
    check_writable([*beside, out, record], overwrite)
    network = source.network.eval()
    form = choose_form(network, with_warp)
    contract = Contract(
        network=source.name,
        expects=source.expects,
        divisor=network.divisor,
        weights_sha256=weights_sha256(network.state_dict()),
        training=source.training,
        sizes=form.sizes,
        outputs=form.outputs,
        passes=source.passes,
    )
    deployed = network.inference_copy(form.sizes == "multiples", with_warp)
    model = trace(deployed, source.expects.shape)
    check_graph(model, deployed)
    published = parity_elsewhere = warped_error = None
    with staged([*beside, out, record], overwrite) as [*partial_beside, partial, partial_record]:
        eager = _remembered(lambda moving, fixed: predict(network, moving, fixed, "cpu"))
        what = f"eager float32 network, {source.pairs_from}"
        reference = Reference(what, eager, source.pairs, source.dice, tolerance)
        proven = Gate(reference, contract, partial.parent, source.calibration).prove(model, precision)
        made = SealedModel(proven.content, proven.contract, OPSETS[proven.contract.precision])
        partial.write_bytes(made.content)
        bounds = tolerance.bounds(made.contract.precision)
        if form.sizes == "multiples":
            other = elsewhere(source.expects, network.divisor)
            engine, made_in = runnable(partial), made.contract.precision
            parity_elsewhere = compare_elsewhere(network, engine, other, tolerance, made_in)
        if with_warp:
            warped_error = largest_warp_error(runnable(partial), source.pairs, bounds.warped)
        shape = topology(proven.model)
        sidecar = {
            "schema": 2,
            "version": __version__,
            "command": portable_command(command, out.parent),
            "model": out.name,
            "model_sha256": made.sha256,
            "contract": asdict(made.contract),
            "opset": made.opset,
            "topology_sha256": shape.sha256,
            "nodes": len(shape.nodes),
            "parameters": shape.parameters,
            "runtime": proven.runtime,
            "parity": asdict(proven.parity),
            "parity_in_runtime": asdict(proven.in_runtime) if proven.in_runtime else None,
            "parity_pairs": source.pairs_from,
            "parity_elsewhere": parity_elsewhere and {"grid": other.shape, **asdict(parity_elsewhere)},
            "warped_error": warped_error,
            "tolerance": asdict(bounds),
            "attempts": [asdict(attempt) for attempt in proven.attempts],
        }
        partial_record.write_text(to_json(sidecar))
        if engine_job:
            published = write_engine(made, out, engine_job, plan, partial_beside[0], partial_beside[1], reference)
    attempts = proven.attempts
    return Exported(
        out, record, proven.parity, made.contract, attempts, form, parity_elsewhere, warped_error, published
    )


def _remembered(network: Predict) -> Predict:
    """Runs each pair once: several precisions are compared with it. The caller holds on to the pairs."""
    fields: dict[int, Field] = {}

    def field(moving: Any, fixed: Any) -> Field:
        if id(moving) not in fields:
            fields[id(moving)] = network(moving, fixed)
        return fields[id(moving)]

    return field


def trace(network: RegistrationNetwork, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """Inputs ``moving`` and ``fixed`` (N, 1, X, Y, Z), output ``field`` (N, 3, X, Y, Z); any batch size N.

    A copy for any size has multiples of its divisor for X, Y, Z, whatever ``shape`` is; one with a sampler has a second
    output ``warped`` (N, 1, X, Y, Z).
    """
    dynamic = {0: torch.export.Dim("N")}
    if network.any_size:
        divisor = network.divisor
        shape = (2 * divisor, 3 * divisor, 4 * divisor)
        dynamic |= {axis: divisor * torch.export.Dim(name) for axis, name in zip((2, 3, 4), "XYZ", strict=True)}
    example = torch.zeros(2, 1, *shape)
    with warnings.catch_warnings(), errors_only("torch.onnx"):
        # The exporter deprecates parts of itself while running; nothing a user of this command could act on.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.inference_copy(),
            (example, example.clone()),
            input_names=["moving", "fixed"],
            output_names=["field"] if network.sampler is None else ["field", "warped"],
            dynamic_shapes={"moving": dynamic, "fixed": dynamic},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ParityError("the network could not be traced")
    # The exporter itself folds small constants alone.
    optimizer.fold_constants(program.model, input_size_limit=MAX_BYTES, output_size_limit=MAX_BYTES)
    model: onnx.ModelProto = program.model_proto
    without_origins(model)
    if network.integrate is not None:
        name_velocity(model, network.integrate)
    onnx.checker.check_model(model, full_check=True)
    return model


def without_origins(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about each part: lines and paths of the Python files of the machine it ran on.

    The names of a node's modules stay: by them a lower precision keeps whole layers in float32.
    """
    graphs = [model.graph]
    for part in (model, *model.functions):
        part.doc_string = ""
    del model.metadata_props[:]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        del graph.metadata_props[:]
        for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            part.doc_string = ""
            scopes = [entry for entry in part.metadata_props if entry.key == SCOPES]
            del part.metadata_props[:]
            part.metadata_props.extend(scopes)
        for node in graph.node:
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            for attribute in node.attribute:
                attribute.doc_string = ""
                graphs += attribute.graphs


def check_graph(model: onnx.ModelProto, network: RegistrationNetwork) -> None:
    """Only the network is in the graph: its own operators, its own weights, nothing of training.

    Raises:
        ParityError: an operator the network does not declare, or a stored tensor that is neither
            one of its weights nor a constant of its grid.
    """
    foreign = sorted({n.op_type for n in model.graph.node if n.domain or n.op_type not in network.onnx_ops})
    if foreign:
        raise ParityError(f"the graph holds {', '.join(foreign[:MAX_LISTED])}, which is not inference of this network")
    copy = network.inference_copy()
    # Its weights, and the constants of its grid: buffers that are not part of its state.
    constants = [(name, value) for name, value in copy.named_buffers() if name not in copy.state_dict()]
    own = {name: value.detach().numpy() for name, value in [*copy.named_parameters(), *constants]}
    # A bias of zeros may be missing, the exporter leaves it out; that the values are right is for parity to say.
    unknown = [t for t in weights(model) if t.name not in own or own[t.name].shape != tuple(t.dims)]
    known = {_nonzeros(value) for value in own.values()} if unknown else set()
    extra = sorted(t.name for t in unknown if not _is_from(onnx.numpy_helper.to_array(t), known))
    if extra:
        raise ParityError(f"the graph stores {', '.join(extra[:MAX_LISTED])}, which is no weight of this network")


def _is_from(value: npt.NDArray[Any], known: set[str]) -> bool:
    """One number throughout (a factor, a slope), or a known tensor: the exporter transposes, reshapes and pads them."""
    return bool((value == value.flat[0]).all()) or _nonzeros(value) in known


def _nonzeros(value: npt.NDArray[Any]) -> str:
    """Digest of the values other than 0, whatever their order."""
    return hashlib.sha256(np.sort(value[value != 0], axis=None).tobytes()).hexdigest()

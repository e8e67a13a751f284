"""An exported model in a model repository of the Triton Inference Server (``DIR/NAME/``, with ``config.pbtxt``).

Triton runs an ONNX model by ONNX Runtime and a plan by TensorRT. Its configuration carries the contract as a
parameter, so that a client needs nothing but Triton's address (``examples/triton_client.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofg_deploy.catalogue import NAME
from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.model_file import Contract, read_model, tensor_shapes
from ofg_deploy.outputs import check_folder, staged_folder
from ofg_deploy.serve.engine_file import SUFFIX, file_mismatches, read_record
from ofg_deploy.version import __version__

CONFIG = "config.pbtxt"
HEAD = "# Written by ofg export; do not edit.\n"
ONNX, PLAN = "onnxruntime_onnx", "tensorrt_plan"
FILES = {ONNX: "model.onnx", PLAN: "model.plan"}  # under the number of the version
VERSION = "1"
DELAY_US = 2000  # a pair waits so long for others: little beside the time that it takes
INPUTS = ("moving", "fixed")

Message = list[tuple[str, Any]]  # fields of a protobuf message: numbers, texts, words of an enum, tuples, messages


class Word(str):
    """A name that stands without quotes: a value of an enum."""

    __slots__ = ()


@dataclass(frozen=True)
class Deployment:
    """How Triton is to run a model.

    Attributes:
        max_batch: most pairs in a batch that it puts together; None for what an engine was built for, 1 of a model.
        instances: copies at once, on each GPU or on the CPU.
    """

    max_batch: int | None = None
    instances: int = 1


@dataclass(frozen=True)
class Published:
    """What was written: the folder of the model, what runs it, and the most pairs in a batch."""

    folder: Path
    platform: str
    max_batch: int


@dataclass(frozen=True)
class _Served:
    """A file that Triton loads, and what its configuration says about it; shapes by tensor, the batch first."""

    platform: str
    content: bytes
    sha256: str
    contract: Contract
    shapes: dict[str, tuple[int, ...]]
    most: int | None
    made_with: str | None = None


def check_repository(repository: Path, name: str, overwrite: bool) -> Path:
    """Where the model goes; refused before any work if it could not be written at the end.

    Raises:
        UsageError: a name that Triton cannot have. InputError: there is something already (without ``overwrite``), or
            something that ``ofg export`` did not write.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name in Triton: give `path` letters, digits and _ . + -, at most 64"
        )
    folder = repository / name
    check_folder(folder, overwrite)
    if folder.exists():
        known = {CONFIG, VERSION, *(f"{VERSION}/{file}" for file in FILES.values())}
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        config = folder / CONFIG
        if not there <= known or (config.exists() and not config.read_bytes().startswith(HEAD.encode())):
            raise InputError(f"{folder} holds what ofg export did not write: choose another folder, or move it away")
    return folder


def check_precision(precision: str | None, engine: bool) -> None:
    """Raises UsageError for a model that ONNX Runtime does not run."""
    if precision == "bf16" and not engine:
        raise UsageError("`triton` with a bf16 model: ONNX Runtime does not run it everywhere, add `trt=True`")


def check_module(module: str, what: str) -> None:
    """Raises UsageError for engines that Triton does not load."""
    if module != "tensorrt":
        raise UsageError(f"{what} is of {module}, and Triton loads plans of tensorrt alone: add `trt_module=tensorrt`")


def write_model(source: Path, repository: Path, name: str, given: Deployment, overwrite: bool) -> Published:
    """A model or an engine made by ``ofg export`` -> its folder in a model repository; whole, or nothing.

    Args:
        source: ``.onnx``, or ``.engine`` with its record beside it.

    Raises:
        UsageError, InputError: as ``check_repository``, ``check_precision`` and ``check_module``; a model that is
            damaged; a batch it does not take.
    """
    folder = check_repository(repository, name, overwrite)
    if folder.exists() and any(folder.joinpath(VERSION, file).resolve() == source.resolve() for file in FILES.values()):
        raise InputError(f"{source} is an input, and would be lost: choose another `triton`")
    served = _read_engine(source) if source.suffix == SUFFIX else _read_onnx(source)
    config, most = configuration(name, served, given)
    with staged_folder(folder, overwrite) as partial:
        (partial / VERSION).mkdir()
        (partial / VERSION / FILES[served.platform]).write_bytes(served.content)
        (partial / CONFIG).write_text(config, encoding="ascii")
    return Published(folder, served.platform, most)


def configuration(name: str, served: _Served, given: Deployment) -> tuple[str, int]:
    """The text of ``config.pbtxt``, and the most pairs in a batch. Raises UsageError: a batch it does not take."""
    contract, batches = served.contract, all(shape[0] == -1 for shape in served.shapes.values())
    most = given.max_batch or served.most or 1
    if most > (served.most or most) or (most > 1 and not batches):
        takes = f"at most {served.most} pairs" if served.most else "one pair at a time"
        raise UsageError(f"`max_batch` {most}: this {'engine' if served.most else 'model'} takes {takes}")
    on_cpu = contract.precision == "int8"  # its kernels are the CPU's
    kind = "KIND_GPU" if served.platform == PLAN else "KIND_CPU" if on_cpu else "KIND_AUTO"

    def tensor(tensor_name: str) -> Message:
        dims = served.shapes[tensor_name][1 if batches else 0 :]
        return [("name", tensor_name), ("data_type", Word("TYPE_FP32")), ("dims", dims)]

    fields: Message = [
        ("name", name),
        ("platform", served.platform),
        ("max_batch_size", most if batches else 0),
        *(("input", tensor(each)) for each in INPUTS),
        *(("output", tensor(each)) for each in contract.outputs),
        ("instance_group", [("count", given.instances), ("kind", Word(kind))]),
    ]
    if batches:
        fields.append(("dynamic_batching", [("max_queue_delay_microseconds", DELAY_US)] if most > 1 else []))
    if served.platform == ONNX and not on_cpu:  # on its own the provider rounds inputs to 10 bits, see onnx_runtime
        exact: Message = [("name", "cuda"), ("parameters", [("key", "use_tf32"), ("value", "0")])]
        fields.append(("optimization", [("execution_accelerators", [("gpu_execution_accelerator", exact)])]))
    # Memory for a whole batch is taken before the model is ready, and not found missing by a client.
    fields += [("model_warmup", _warm_up(contract, count, batches)) for count in dict.fromkeys((1, most))]
    parameters = {
        "ofg_deploy.contract": contract.to_json(),
        "ofg_deploy.sha256": served.sha256,
        "ofg_deploy.version": __version__,
        **({"ofg_deploy.made_with": served.made_with} if served.made_with else {}),
    }
    for key, value in parameters.items():
        fields.append(("parameters", [("key", key), ("value", [("string_value", value)])]))
    return HEAD + _text(fields), most


def _warm_up(contract: Contract, count: int, batches: bool) -> Message:
    dims = (1, *contract.expects.shape) if batches else (1, 1, *contract.expects.shape)
    zeros: Message = [("data_type", Word("TYPE_FP32")), ("dims", dims), ("zero_data", True)]
    batch = [("batch_size", count)] if batches else []
    inputs: Message = [("inputs", [("key", each), ("value", zeros)]) for each in INPUTS]
    return [("name", f"{count} of {' '.join(map(str, contract.expects.shape))}"), *batch, *inputs]


def _read_onnx(source: Path) -> _Served:
    model = read_model(source)
    check_precision(model.contract.precision, engine=False)
    return _Served(ONNX, model.content, model.sha256, model.contract, tensor_shapes(model, source), None)


def _read_engine(source: Path) -> _Served:
    record = read_record(source)
    check_module(record.module, str(source))
    plan = source.read_bytes()
    if wrong := file_mismatches(source, plan, record):
        raise InputError(f"{'; '.join(wrong)}: build the engine again")
    shapes = {tensor.name: tensor.shape for tensor in record.tensors}
    most = max(high[0] for _, _, high in record.profile.values())
    made_with = f"{record.module} {record.module_version} for {record.gpu or ' '.join(record.capabilities)}"
    return _Served(PLAN, plan, record.engine_sha256, record.contract, shapes, most, made_with)


def _text(message: Message, indent: str = "") -> str:
    """A message in protobuf's text format."""
    lines = []
    for name, value in message:
        if isinstance(value, list):
            lines.append(f"{indent}{name} {{\n{_text(value, indent + '  ')}{indent}}}\n")
        else:
            lines.append(f"{indent}{name}: {_value(value)}\n")
    return "".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, str) and not isinstance(value, Word):
        plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in value.encode())
        return f'"{"".join(plain)}"'
    return str(value)

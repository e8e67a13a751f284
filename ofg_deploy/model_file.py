"""The contract an exported model carries inside its own file, and the seal that shows a changed file.

The contract is one JSON string in the ONNX metadata. The seal is the sha256 of the whole file with the seal's own 64
characters set to zero; it is found and checked on raw bytes, before any parser sees a file of unknown origin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.options.words import MOST_PASSES
from ofg_deploy.outputs import parse_json
from ofg_deploy.preprocess import Init, NetworkInput
from ofg_deploy.records import fitted

SCHEMA = 3  # 2: the axes of the network's grid; 3: precision, sizes, outputs
OPSET = 20  # of the graphs we export: the first with a GridSample of volumes
CONTRACT_KEY = "ofg_deploy.contract"
SEAL_KEY = "ofg_deploy.sha256"
UNSEALED = "0" * 64
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
OPSETS = {"fp32": OPSET, "fp16": OPSET, "bf16": 22, "int8": OPSET}  # 22: the first whose convolutions take bfloat16
SIZES = ("fixed", "multiples")
OUTPUTS = (("field",), ("field", "warped"))
MAX_BYTES = 2 * 1024**3  # a protobuf message cannot be larger

# How protobuf writes the metadata entry {SEAL_KEY: 64 characters}: the key's text, then field 2 of length 64.
_SEAL_MARK = SEAL_KEY.encode() + b"\x12\x40"


# Of ONNX's ModelProto (onnx.proto).
_OPSET_IMPORT, _METADATA = 8, 14
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of TensorProto
_GRAPH, _INPUT, _OUTPUT = 7, 11, 12  # of ModelProto; of GraphProto
_FIXED = {1: 8, 5: 4}  # bytes of a number, by wire type
# What holds tensors, and in which fields: message -> number of the field -> message.
_HOLDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
}


@dataclass(frozen=True)
class Contract:
    """What a model promises and expects.

    Attributes:
        network: name of the architecture.
        expects: grid, spacing, intensity recipe and initial alignment of its input.
        divisor: the network computes on multiples of this; it pads other grids and crops the field, inside the graph.
        weights_sha256: digest of the weights, the same for a checkpoint and its export.
        training: how the weights came about (guidance, epochs, seed, data), as recorded by ``ofg train``.
        field_unit: always ``voxel`` (of the network's grid, array-axis order).
        field_maps: always ``fixed_to_moving`` (pull field).
        precision: of the graph's arithmetic, one of ``PRECISIONS``; inputs and outputs are float32 in all of them.
        sizes: ``fixed`` takes the grid of ``expects`` alone; ``multiples`` any grid of multiples of the divisor.
        outputs: ``field``, or ``field`` and ``warped`` (the moving image under it, linear, 0 outside).
        schema: version of this record.
        passes: how often a registration asks the network, each time with the moving image moved by the field so far
            (``passes``), unless it is told otherwise; 1 where a record does not name it.
    """

    network: str
    expects: NetworkInput
    divisor: int
    weights_sha256: str
    training: dict[str, Any]
    field_unit: str = "voxel"
    field_maps: str = "fixed_to_moving"
    precision: str = "fp32"
    sizes: str = "fixed"
    outputs: tuple[str, ...] = ("field",)
    schema: int = SCHEMA
    passes: int = 1

    @property
    def init(self) -> Init:
        """The start its training pairs had."""
        return self.expects.init

    def on_grid(self, grid: tuple[int, ...] | None) -> NetworkInput:
        """What the model expects on another grid of the same spacing; None means its own.

        Raises:
            UsageError: a grid it does not take.
        """
        if grid is None or grid == self.expects.shape:
            return self.expects
        given, own = (" ".join(map(str, shape)) for shape in (grid, self.expects.shape))
        if self.sizes == "fixed":
            raise UsageError(f"grid {given}: this model takes {own} alone, export one with `grid` {given}")
        x, y, z = (max(1, -(-n // self.divisor)) * self.divisor for n in grid)
        if grid != (x, y, z):
            raise UsageError(f"grid {given}: this model takes multiples of {self.divisor}, the next are {x} {y} {z}")
        return replace(self.expects, shape=(x, y, z))

    def passes_asked(self, passes: int | None) -> int:
        """How often the network is asked where so many passes are asked for; None leaves it to the model."""
        return self.passes if passes is None else passes

    def to_json(self) -> str:
        """One line of JSON, keys sorted; a single pass is not named, as before there were others."""
        record = asdict(self)
        if self.passes == 1:
            del record["passes"]
        return json.dumps(record, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, path: Path) -> Contract:
        """Read strictly: every key, nothing else, this schema.

        Raises:
            InputError: the record is not a contract this version understands.
        """
        try:
            record = parse_json(text)
        except ValueError as error:
            raise InputError(f"{path} carries a damaged contract: {error}: export the model again") from error
        return cls.from_record(record, path)

    @classmethod
    def from_record(cls, record: Any, path: Path) -> Contract:
        """The same of JSON that is parsed."""
        if isinstance(record, dict) and "schema" in record and record["schema"] != SCHEMA:
            raise InputError(
                f"{path} carries contract schema {record['schema']}, this version reads {SCHEMA}: "
                "export it again with this version"
            )
        damaged, advice = f"{path} carries a damaged contract", "export the model again"
        contract = fitted(completed(record), cls, damaged, advice, exactly=True)
        if contract.field_unit != "voxel" or contract.field_maps != "fixed_to_moving":
            raise InputError(f"{path} predicts a {contract.field_unit} {contract.field_maps} field: not supported")
        made = (contract.precision, contract.sizes, contract.outputs)
        if any(value not in known for value, known in zip(made, (PRECISIONS, SIZES, OUTPUTS), strict=True)):
            raise InputError(f"{path} is {' '.join(map(str, made))}: not supported, export it again")
        if not 1 <= contract.passes <= MOST_PASSES:
            raise InputError(f"{damaged}: passes is {contract.passes}, expected 1 to {MOST_PASSES}: {advice}")
        return contract


def completed(record: Any) -> Any:
    """A contract's record with what it need not name."""
    return {"passes": 1, **record} if isinstance(record, dict) else record


def seal(content: bytes) -> bytes:
    """Fill in the seal of a serialised model that carries ``{SEAL_KEY: UNSEALED}``."""
    start = _seal_start(content)
    if start is None or content[start : start + 64] != UNSEALED.encode():
        raise ValueError("the model carries no empty seal")
    return content[:start] + hashlib.sha256(content).hexdigest().encode() + content[start + 64 :]


def read_sealed(path: Path) -> bytes:
    """The bytes of an exported model, seal checked.

    Raises:
        InputError: missing, too large, not made by ``ofg export``, or changed since.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file: give a model.onnx made by ofg export")
    if path.stat().st_size >= MAX_BYTES:
        raise InputError(f"{path} is larger than an ONNX file can be (2 GiB)")
    content = path.read_bytes()
    start = _seal_start(content)
    if start is None:
        raise InputError(f"{path} carries no contract: not made by ofg export, or cut short")
    blank = content[:start] + UNSEALED.encode() + content[start + 64 :]
    if hashlib.sha256(blank).hexdigest().encode() != content[start : start + 64]:
        raise InputError(f"{path} was changed or damaged after its export (sha256 differs): export it again")
    return content


@dataclass(frozen=True, eq=False)
class SealedModel:
    """An exported model as bytes, with what it says about itself."""

    content: bytes
    contract: Contract
    opset: int

    @property
    def sha256(self) -> str:
        """Digest of the whole file."""
        return hashlib.sha256(self.content).hexdigest()


def read_model(path: Path) -> SealedModel:
    """Seal, contract and opset of an exported model, without onnx or any runtime.

    Raises:
        InputError: as ``read_sealed`` and ``Contract.from_json``; another opset than its precision's.
    """
    content = read_sealed(path)
    stored: dict[str, str] = {}
    opset = 0
    try:
        for number, value in _protobuf(memoryview(content)):
            if number == _METADATA:
                entry = dict(_protobuf(value))
                stored[bytes(entry[1]).decode()] = bytes(entry[2]).decode()
            elif number in _HOLDS["model"]:
                refuse_outside_weights(value, _HOLDS["model"][number], path)
            elif number == _OPSET_IMPORT:
                entry = dict(_protobuf(value))
                if not bytes(entry.get(1, b"")):  # the domain of ONNX itself
                    opset = entry[2]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not an ONNX file: export the model again") from error
    if CONTRACT_KEY not in stored:
        raise InputError(f"{path} carries no contract: not made by ofg export, or cut short")
    contract = Contract.from_json(stored[CONTRACT_KEY], path)
    expected = OPSETS[contract.precision]
    if opset != expected:  # OpenVINO and TensorRT take any number, and read the graph as they please
        raise InputError(f"{path} has ONNX opset {opset}, {contract.precision} models have {expected}: export it again")
    return SealedModel(content, contract, opset)


def tensor_shapes(model: SealedModel, path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each input and output of the graph by name, in its order; -1 where it may vary.

    Raises:
        InputError: they are not those of the contract.
    """
    found: dict[str, tuple[int, ...]] = {}
    try:
        [graph] = [value for number, value in _protobuf(memoryview(model.content)) if number == _GRAPH]
        for number, value in _protobuf(graph):
            if number in (_INPUT, _OUTPUT):  # ValueInfoProto: 1 name, 2 type; TypeProto: 1 tensor, of it: 2 shape
                about = dict(_protobuf(value))
                shape = dict(_protobuf(dict(_protobuf(about[2]))[1]))[2]
                axes = [dict(_protobuf(axis)) for _, axis in _protobuf(shape)]  # 1 a number, 2 a name
                found[bytes(about[1]).decode()] = tuple(int(axis.get(1, -1)) for axis in axes)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} does not state the shapes of its tensors: export the model again") from error
    expected = ("moving", "fixed", *model.contract.outputs)
    if tuple(found) != expected or any(len(shape) != 5 for shape in found.values()):
        given = ", ".join(f"{name} {shape}" for name, shape in found.items()) or "none"
        raise InputError(
            f"{path} has tensors {given}: expected {', '.join(expected)}, each (N, channels, X, Y, Z): export it again"
        )
    return found


def refuse_outside_weights(message: memoryview, kind: str, path: Path) -> None:
    """Whatever holds tensors, down to subgraphs and functions: none may lie in another file, which no seal covers.

    Raises:
        InputError: one does. ValueError, IndexError, RecursionError: not such a message.
    """
    for number, value in _protobuf(message):
        if kind == "tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                raise InputError(
                    f"{path} keeps weights in another file, which its seal does not cover: export it again"
                )
        elif number in _HOLDS[kind] and isinstance(value, memoryview):
            refuse_outside_weights(value, _HOLDS[kind][number], path)


def _protobuf(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: integers, and bytes of all others."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if size := _FIXED.get(key & 7):
            if at + size > len(message):
                raise ValueError("a number that is cut off")
            yield key >> 3, message[at : at + size]
            at += size
            continue
        value, at = _varint(message, at)
        if key & 7 == 0:
            yield key >> 3, value
        elif key & 7 == 2 and at + value <= len(message):
            yield key >> 3, message[at : at + value]
            at += value
        else:
            raise ValueError("not a message of integers and byte strings")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where it ends (protobuf encoding)."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _seal_start(content: bytes) -> int | None:
    at = content.rfind(_SEAL_MARK)
    start = at + len(_SEAL_MARK)
    return start if at >= 0 and start + 64 <= len(content) else None

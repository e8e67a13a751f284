"""Checkpoints: ours and published ones. Read with ``weights_only=True``; nothing is ever unpickled freely."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from ofg_deploy.errors import DAMAGED, InputError
from ofg_deploy.outputs import write_bytes
from ofg_deploy.preprocess import NetworkInput
from ofg_deploy.records import fitted

SCHEMA = 2  # 2: the axes of the network's grid
# What others save their weights under, and what they put before the names: DataParallel, torch.compile, a model as
# the member of a class of somebody's own. Both may be stacked.
STATES = ("state_dict", "model_state_dict", "model_state", "model", "net", "network")
PREFIXES = ("module.", "_orig_mod.", "net.", "model.", "network.")
MOST_NAMES = 8  # of what was found instead, in a message
MOST_GROWN = 4  # times the file's size: what its tensors may take in memory; some share their numbers
FROM_SHAPE = (".grid", ".relative_position_index")  # published buffers that follow from the shape

# Published checkpoints record their best Dice as a numpy scalar, under the module names of numpy 1 and 2.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
    type(np.dtype(np.int32)),
]


@dataclass(frozen=True)
class Checkpoint:
    """Weights and where they came from.

    Attributes:
        state: tensors by published name.
        network, expects: None for a published checkpoint, which records neither.
        training: provenance as ``ofg train`` recorded it; empty for a published checkpoint.
        resume: what only training needs (optimiser, history, epoch); empty in ``best.pt``.
        config: how VoxelMorph's own code described its network; None for anybody else's checkpoint.
    """

    state: dict[str, torch.Tensor]
    network: str | None = None
    expects: NetworkInput | None = None
    training: dict[str, Any] | None = None
    resume: dict[str, Any] | None = None
    config: dict[str, Any] | None = None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: a full disk or a kill leaves the old file."""
    buffer = io.BytesIO()
    expects = asdict(checkpoint.expects) if checkpoint.expects else None
    torch.save(
        {
            "schema": SCHEMA,
            "network": checkpoint.network,
            "expects": expects,
            "training": checkpoint.training,
            "state_dict": checkpoint.state,
            "weights_sha256": weights_sha256(checkpoint.state),
            "resume": checkpoint.resume,
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one of ours, or a published one: a state dict, bare or under ``STATES``, with or without ``PREFIXES``.

    A ``config`` beside it, as VoxelMorph's own PyTorch code saves it, is kept.

    Raises:
        InputError: missing, not a checkpoint, changed since it was written, or holding anything but tensors and plain
            values.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file: a checkpoint (.pt, .pth.tar) is needed")
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch's reader raise nearly anything
        # What torch says is not repeated: it advises to read the file without this protection.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it would run {found[1]}" if found else f"torch cannot read it, {type(error).__name__}"
        raise InputError(f"{path} is not a checkpoint of tensors and plain values, refused ({why})") from error
    state = _find_state(record)
    if state is None:
        raise InputError(f"{path} holds no state_dict of tensors: it has {_found(record)}")
    _check_state(state, path)
    if "schema" not in record:
        config = record.get("config")
        described = isinstance(config, dict) and ("inshape" in config or "model_state" in record)
        return Checkpoint(_unwrapped(state), config=dict(config) if described else None)
    return _ours(record, state, path)


class _Record(msgspec.Struct):
    """What a checkpoint of ours holds besides its weights; the digest is absent in those from before there was one."""

    network: str | None
    expects: NetworkInput | None
    training: dict[str, Any] | None
    resume: dict[str, Any] | None
    weights_sha256: str | None = None


def _ours(record: dict[str, Any], state: dict[str, torch.Tensor], path: Path) -> Checkpoint:
    if type(record["schema"]) is not int or record["schema"] != SCHEMA:
        raise InputError(f"{path} has checkpoint schema {record['schema']!r}, this version reads {SCHEMA}")
    damaged = f"{path} has a damaged record"
    known = fitted(record, _Record, damaged, exactly=True)
    try:
        json.dumps(known.training, allow_nan=False)  # as it goes into models and tables
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{damaged}: training: {' '.join(str(error).split())[:160]}") from error
    if known.weights_sha256 is not None and known.weights_sha256 != weights_sha256(state):
        raise InputError(f"{path} was changed or damaged: its weights are not those it was written with (sha256)")
    return Checkpoint(state, known.network, known.expects, known.training, known.resume)


def _check_archive(path: Path) -> None:
    """The checksums of a checkpoint that is a zip, as all of today are; torch does not look at them.

    Raises:
        InputError: a member that differs from its checksum, or that claims more than is there.
    """
    if not zipfile.is_zipfile(path):
        return  # before torch 1.6; no checksums
    damaged = f"{path} was changed or damaged: copy it again, or use an earlier checkpoint"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MOST_GROWN * path.stat().st_size:
                raise InputError(f"{path} claims more than it holds, refused: torch writes checkpoints uncompressed")
            if any(member.CRC for member in members if member.file_size):  # torch can leave all of them out
                bad = archive.testzip()
                if bad:
                    raise InputError(f"{damaged} ({bad} differs from its checksum)")
    except DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{damaged} ({' '.join(str(error).split())[:80]})") from error


def _check_state(state: dict[Any, torch.Tensor], path: Path) -> None:
    """Dense tensors of real numbers under names, and no more of them than the file can hold."""
    for name, value in state.items():
        if not isinstance(name, str):
            raise InputError(f"{path}: its state_dict names a tensor {name!r}, a text is needed")
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            raise InputError(f"{path}: {name!r} is not a dense tensor of real numbers ({value.dtype}, {value.layout})")
    if sum(v.numel() * v.element_size() for v in state.values()) > MOST_GROWN * path.stat().st_size:
        raise InputError(f"{path}: its tensors have more numbers than a file of this size can hold")


def _find_state(record: Any) -> dict[str, torch.Tensor] | None:
    """Tensors by name, at any depth of wrappers."""
    if not isinstance(record, dict) or not record:
        return None
    if all(isinstance(value, torch.Tensor) for value in record.values()):
        return dict(record)
    found = (_find_state(record[name]) for name in STATES if isinstance(record.get(name), dict))
    return next((state for state in found if state is not None), None)


def _found(record: Any) -> str:
    if not isinstance(record, dict):
        return f"a {type(record).__name__}"
    names = [repr(str(name)) for name in record]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"the keys {', '.join(names[:MOST_NAMES])}{more}" if names else "no key at all"


def _unwrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without what wrappers put before every name; parts that were compiled by themselves have it in the middle."""
    names = {name: name.replace("_orig_mod.", "") for name in state}
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in names.values())), None):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    return {short: state[name] for name, short in names.items()} if len({*names.values()}) == len(state) else state


def load_weights(network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copy published-name weights into a network; buffers that follow from the shape are ignored.

    Batch norms count the batches they have seen, of which inference knows nothing: where the count is missing it is 0.

    Raises:
        InputError: names the first key that is missing, unexpected or of another shape, and what was found instead.
    """
    given = {name: value for name, value in state.items() if not name.endswith(FROM_SHAPE)}
    wanted = {name: value for name, value in network.state_dict().items() if not name.endswith(FROM_SHAPE)}
    for name in [*wanted, *given]:
        if name not in given and name.endswith(".num_batches_tracked"):
            continue
        if name not in given:
            raise InputError(f"{path} has no {name!r}: it is a checkpoint of another network; it has {_found(given)}")
        if name not in wanted:
            raise InputError(f"{path} has {name!r}, which this network does not: it is a checkpoint of another network")
        if given[name].shape != wanted[name].shape:
            raise InputError(
                f"{path}: {name!r} has shape {tuple(given[name].shape)}, expected {tuple(wanted[name].shape)}"
            )
    network.load_state_dict(given, strict=False)


def weights_sha256(state: dict[str, torch.Tensor]) -> str:
    """Digest of names, shapes and float32 values, in name order, without buffers that follow from the shape."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if not name.endswith(FROM_SHAPE):
            values = state[name].detach().cpu().float().contiguous().numpy()
            digest.update(f"{name}{values.shape}".encode())
            digest.update(values.astype("<f4").tobytes())
    return digest.hexdigest()

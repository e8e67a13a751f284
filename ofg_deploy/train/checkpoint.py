"""Checkpoints: ours and published ones. Read with ``weights_only=True``; nothing is ever unpickled freely."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.model_file import read_network_input
from ofg_deploy.outputs import write_bytes
from ofg_deploy.preprocess import NetworkInput

SCHEMA = 2  # 2: the axes of the network's grid
WRAPPER = "module."
FROM_SHAPE = (".grid", ".relative_position_index")  # published buffers that follow from the shape

# Published checkpoints record their best Dice as a numpy scalar, under the module names of numpy 1 and 2.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
]


@dataclass(frozen=True)
class Checkpoint:
    """Weights and where they came from.

    Attributes:
        state: tensors by published name.
        network, expects: None for a published checkpoint, which records neither.
        training: provenance as ``ofg train`` recorded it; empty for a published checkpoint.
        resume: what only training needs (optimiser, history, epoch); empty in ``best.pt``.
    """

    state: dict[str, torch.Tensor]
    network: str | None = None
    expects: NetworkInput | None = None
    training: dict[str, Any] | None = None
    resume: dict[str, Any] | None = None


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
            "resume": checkpoint.resume,
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one of ours, or a published ``.pth.tar`` (a dict with ``state_dict``, or the bare state dict).

    Raises:
        InputError: missing, not a checkpoint, or holding anything but tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file: a checkpoint (.pt, .pth.tar) is needed")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            record = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} is not a checkpoint of tensors and plain values, refused: {reason}") from error
    state = record.get("state_dict", record) if isinstance(record, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{path} holds no state_dict of tensors")
    if "schema" not in record:
        return Checkpoint(_unwrapped(state))
    if record["schema"] != SCHEMA:
        raise InputError(f"{path} has checkpoint schema {record['schema']}, this version reads {SCHEMA}")
    try:
        expects = read_network_input(record["expects"])
        return Checkpoint(state, record["network"], expects, record["training"], record["resume"])
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise InputError(f"{path} has a damaged record ({error})") from error


def _unwrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the prefix that torch's DataParallel puts before every name."""
    if not all(name.startswith(WRAPPER) for name in state):
        return state
    return {name.removeprefix(WRAPPER): value for name, value in state.items()}


def load_weights(network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copy published-name weights into a network; buffers that follow from the shape are ignored.

    Raises:
        InputError: names the first key that is missing, unexpected or of another shape.
    """
    given = {name: value for name, value in state.items() if not name.endswith(FROM_SHAPE)}
    wanted = {name: value for name, value in network.state_dict().items() if not name.endswith(FROM_SHAPE)}
    for name in [*wanted, *given]:
        if name not in given:
            raise InputError(f"{path} has no {name!r}: it is a checkpoint of another network")
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

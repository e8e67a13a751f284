"""The files of one bench: what they say about themselves, and whether they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.model_file import Contract, read_model
from ofg_deploy.serve.engine_file import SUFFIX, read_record


@dataclass(frozen=True)
class ModelFile:
    """A sealed model or a recorded engine."""

    path: Path
    contract: Contract


def read_files(paths: Sequence[Path]) -> list[ModelFile]:
    """Contracts of exported files, without any runtime.

    Raises:
        InputError: missing, damaged or none of ours.
    """
    found = []
    for path in paths:
        if path.suffix not in (".onnx", SUFFIX):
            raise InputError(f"{path} is not an .onnx model or an .engine: make one with ofg export")
        contract = read_model(path).contract if path.suffix == ".onnx" else read_record(path).contract
        found.append(ModelFile(path, contract))
    return found


def check_same_network(files: Sequence[ModelFile]) -> None:
    """Raises UsageError if they are for different networks, forms, sizes or grids."""
    first = files[0]
    for other in files[1:]:
        if _identity(other.contract) != _identity(first.contract):
            raise UsageError(f"{first.path} and {other.path} are for different networks or grids: nothing to compare")


def _identity(contract: Contract) -> tuple[object, ...]:
    diffeomorphic = bool(contract.training.get("diffeomorphic", False))
    return contract.network, diffeomorphic, contract.expects.shape, contract.sizes, contract.outputs, contract.passes

"""What a model, engine, checkpoint or run folder says about itself. Checked while read; nothing is run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from ofg_deploy.errors import InputError
from ofg_deploy.model_file import read_model
from ofg_deploy.outputs import read_text, sha256_file
from ofg_deploy.records import read_as
from ofg_deploy.serve.engine_file import model_beside, read_record

CHECKPOINTS = (".pt", ".pth", ".tar")


class _Pairs(msgspec.Struct):
    training: list[Any]
    validation: list[Any]


class _Run(msgspec.Struct):
    """What is shown of the ``config.json`` of a run, of this version or an earlier one."""

    version: str
    torch: str
    command: list[str]
    config: dict[str, Any]
    pairs: _Pairs


def describe(path: Path) -> dict[str, Any]:
    """JSON-ready record; ``kind`` says what the rest is.

    Raises:
        InputError: missing, damaged, changed since it was made, or none of ours.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: give a model, engine, checkpoint or run folder")
    if path.is_dir():
        return _run(path)
    if path.suffix == ".onnx":
        return _model(path)
    if path.suffix == ".engine":
        return _engine(path)
    if path.suffix in CHECKPOINTS:
        return _checkpoint(path)
    raise InputError(f"{path} is not a run folder and none of .onnx, .engine, {', '.join(CHECKPOINTS)}")


def _model(path: Path) -> dict[str, Any]:
    model = read_model(path)
    contract = json.loads(model.contract.to_json())
    card = path.with_suffix(".md")
    known = {"kind": "model", "file": str(path), **({"card": str(card)} if card.is_file() else {})}
    return {**known, "sha256": model.sha256, "opset": model.opset, "contract": contract}


def _engine(path: Path) -> dict[str, Any]:
    record = read_record(path)
    if sha256_file(path) != record.engine_sha256:
        raise InputError(f"{path} was changed or damaged after its build (sha256 differs): build it again")
    beside = model_beside(path, record)
    return {"kind": "engine", "file": str(path), "onnx_beside": beside, **json.loads(record.to_json())}


def _run(path: Path) -> dict[str, Any]:
    """What was asked for. Read as text: ``train.run`` would load torch, and refuse a run of an older version."""
    config = path / "config.json"
    if not config.is_file():
        raise InputError(f"{path} is not a run of ofg train: it has no config.json")
    record = read_as(config, _Run, "is damaged")
    known = {"version": record.version, "torch": record.torch, "command": record.command, "config": record.config}
    pairs = {"training": len(record.pairs.training), "validation": len(record.pairs.validation)}
    metrics = path / "metrics.csv"
    finished = max(0, len(read_text(metrics).splitlines()) - 1) if metrics.is_file() else 0
    there = {name: (path / name).is_file() for name in ("best.pt", "last.pt")}
    return {"kind": "run", "file": str(path), "epochs_finished": finished, "pairs": pairs, **there, **known}


def _checkpoint(path: Path) -> dict[str, Any]:
    from ofg_deploy.train.checkpoint import load_checkpoint, weights_sha256

    checkpoint = load_checkpoint(path)
    tensors = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in checkpoint.state.items()
    }
    return {
        "kind": "checkpoint",
        "file": str(path),
        "sha256": sha256_file(path),
        "network": checkpoint.network,
        "expects": asdict(checkpoint.expects) if checkpoint.expects else None,
        "training": checkpoint.training,
        "config": checkpoint.config,
        "resumable": bool(checkpoint.resume),
        "weights_sha256": weights_sha256(checkpoint.state),
        "parameters": sum(value.numel() for value in checkpoint.state.values()),
        "tensors": tensors,
    }

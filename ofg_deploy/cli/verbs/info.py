"""``ofg info`` on a terminal: five lines that a person reads, or everything with ``--verbose`` and ``--json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ofg_deploy.cli.terminal import is_verbose, terminal
from ofg_deploy.info import describe
from ofg_deploy.outputs import to_json

MAX_SHOWN = 8  # tensors of a checkpoint; --json has all
LONGEST = 200  # characters of a value: what is longer is for machines
STRIPPED = 0.5  # share of training images cut out of their background above which the others are the exception


def show(path: Path, as_json: bool) -> None:
    """Print ``describe``: as JSON, in five lines, or whole. Raises InputError as ``describe``."""
    record = describe(path)
    if as_json:
        print(to_json(record), end="")
        return
    console = terminal()
    for name, line in in_words(record).items():
        console.print(f"{name}: {line}", soft_wrap=True)
    if is_verbose():
        for name, value in _flat(record):
            text = str(value)
            shown = text if len(text) <= LONGEST else f"{len(text)} characters (see --json)"
            console.print(f"{name}: {shown}", soft_wrap=True)
        return
    for name in ("file", "card", "sha256", "onnx_beside"):
        if record.get(name):
            console.print(f"{name}: {record[name]}", soft_wrap=True)
    console.print("more: --verbose; everything: --json", soft_wrap=True)


def in_words(record: dict[str, Any]) -> dict[str, str]:
    """Network, grid, images, training and validation of a record of ``describe``, a line each."""
    known: dict[str, Any] = record.get("contract") or record.get("config") or record
    training = _training(record)
    return {
        "network": _network(record, known),
        "grid": _grid(known),
        "images": _images(known.get("expects"), training),
        "training": _course(record, training),
        "validation": _validation(record, training),
    }


def _training(record: dict[str, Any]) -> dict[str, Any]:
    if record["kind"] == "run":
        config = record["config"]
        return {**config, "epoch": record["epochs_finished"], "version": record["version"]}
    return (record.get("contract") or record).get("training") or {}


def _network(record: dict[str, Any], known: dict[str, Any]) -> str:
    name = known.get("network") or "not recorded"
    if record["kind"] == "model":
        return f"{name}{_passes(known)}, {known['precision']}, ONNX opset {record['opset']}"
    if record["kind"] == "engine":
        where = record["gpu"] or ", ".join(record["capabilities"])
        made = f"{record['module']} {record['module_version']} engine for {where}"
        return f"{name}{_passes(known)}, {record['precision']}, {made}"
    if record["kind"] == "checkpoint":
        more = ", can be resumed" if record["resumable"] else ""
        return f"{name}, {record['parameters']:,} parameters{more}"
    return str(name)


def _passes(contract: dict[str, Any]) -> str:
    count = contract.get("passes", 1)
    return "" if count == 1 else f" in {count} passes"


def _grid(known: dict[str, Any]) -> str:
    expects = known.get("expects")
    if not expects:
        return "not recorded"
    shape, spacing = ("x".join(f"{v:g}" for v in expects[name]) for name in ("shape", "spacing_mm"))
    sizes = f", or other multiples of {known['divisor']}" if known.get("sizes") == "multiples" else ""
    return f"{shape} voxels of {spacing} mm, axes {expects['axes']}{sizes}"


def _images(expects: dict[str, Any] | None, training: dict[str, Any]) -> str:
    if not expects:
        return "not recorded"
    recipe = expects["intensity"]
    limits = "" if recipe["kind"] == "minmax" else f" {recipe['low']:g} to {recipe['high']:g}"
    parts = [f"intensities by {recipe['kind']}{limits}", f"initial alignment {expects['init']}"]
    look = training.get("images")
    if isinstance(look, dict) and isinstance(look.get("stripped"), int | float):
        background = "without background (skull-stripped)" if look["stripped"] > STRIPPED else "with their background"
        parts.insert(0, f"trained on images {background}")
    return ", ".join(parts)


def _course(record: dict[str, Any], training: dict[str, Any]) -> str:
    if not training.get("epochs"):
        return "not recorded"
    guidance = "On-the-Fly Guidance" if training.get("guidance") == "ofg" else "unsupervised"
    pairs = f" of {record['pairs']['training']} pairs" if record["kind"] == "run" else ""
    parts = [guidance, f"epoch {training.get('epoch')} of {training['epochs']}{pairs}", f"seed {training.get('seed')}"]
    return ", ".join([*parts, f"ofg_deploy {training.get('version')}"])


def _validation(record: dict[str, Any], training: dict[str, Any]) -> str:
    if record["kind"] == "run":
        best = record["best"]
        if best is None:
            return "none so far"
        pairs = record["pairs"]["validation"]
        where = f" over {pairs} pair{'s' * (pairs != 1)}, best epoch {best['epoch']:g}"
        return (_scores(best) or "not recorded") + where
    return _scores(training) or "not recorded"


def _scores(row: dict[str, Any]) -> str:
    forms = {"val_dice": "Dice {:.3f}", "val_ncc": "NCC {:.3f}", "val_folding_percent": "folding {:.2g} %"}
    return ", ".join(form.format(row[name]) for name, form in forms.items() if row.get(name) is not None)


def _flat(record: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """One line for each value; long tables are cut and say so."""
    lines: list[tuple[str, Any]] = []
    for key, value in record.items():
        name = f"{before}{key}"
        if key == "tensors" and isinstance(value, dict):
            lines += [(f"{name}.{n}", f"{t['dtype']} {t['shape']}") for n, t in list(value.items())[:MAX_SHOWN]]
            if len(value) > MAX_SHOWN:
                lines.append((name, f"{len(value) - MAX_SHOWN} more (see --json)"))
        elif isinstance(value, dict):
            lines += _flat(value, name + ".")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [(name, " ".join(map(str, entry.values()))) for entry in value]
        elif isinstance(value, list):
            lines.append((name, " ".join(map(str, value))))
        else:
            lines.append((name, value))
    return lines

"""Options from a JSON file, or from the configuration of another run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.options.training import TRAINING
from ofg_deploy.options.value import checked
from ofg_deploy.outputs import read_json
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.records import fitted
from ofg_deploy.train.config import WEIGHTS, TrainConfig


def configured(source: str | os.PathLike[str] | TrainConfig | None) -> dict[str, Any]:
    """Options by name, each checked.

    Args:
        source: a JSON object of options, in which paths are relative to the file; the ``config.json`` of a run, or its
            folder, of which the options are taken, not the data; or a configuration.

    Raises:
        InputError: no such file, or one with a name that no option has, or a value of another type or out of range.
    """
    if source is None:
        return {}
    if isinstance(source, TrainConfig):
        return _of_run(source.to_record() | {"expects": source.expects}, source.expects)
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"`config` {path} is not a file: give a JSON object of options, or config.json of a run")
    record = read_json(path)
    try:
        return _of_file(record, path.parent)
    except (UsageError, InputError) as error:
        raise InputError(f"{path}: {error}") from error


def _of_file(record: Any, folder: Path) -> dict[str, Any]:
    """Raises UsageError or InputError without the name of the file."""
    if isinstance(record, dict) and isinstance(record.get("config"), dict):
        record = record["config"]
        if "expects" not in record:
            raise InputError("a run's configuration has an entry 'expects', and there is none")
    if not isinstance(record, dict):
        raise InputError("expected a JSON object of options")
    if "expects" in record:
        if missing := sorted(WEIGHTS.keys() - record.keys()):
            raise InputError(
                f"of another version: it does not say {', '.join(missing)}; write the options that you want into a "
                "JSON object of their own"
            )
        expects = record["expects"]
        if expects is not None:
            expects = fitted({"expects": expects}, _Expects, "damaged").expects
        return _of_run(record, expects)
    found = checked(record, TRAINING)
    TrainConfig(**{name: value for name, value in found.items() if name in WEIGHTS})
    return {name: folder / value if isinstance(value, Path) else value for name, value in found.items()}


@dataclass(frozen=True)
class _Expects:
    expects: NetworkInput


def _in_full(intensity: Intensity) -> str:
    """With all digits, which ``str`` rounds."""
    kind = intensity.kind
    return kind if kind == "minmax" else f"{kind}:{intensity.low!r},{intensity.high!r}"


def _of_run(record: dict[str, Any], expects: NetworkInput | None) -> dict[str, Any]:
    """The options of a run. Which image was its common frame depends on the data; that it had one does not."""
    options = {name: value for name, value in record.items() if name not in ("expects", "frame")}
    if expects is not None:
        options |= {
            "grid": expects.shape,
            "spacing": expects.spacing_mm,
            "axes": expects.axes,
            "intensity": _in_full(expects.intensity),
            "init": expects.init,
            "starts": "pair" if record.get("frame") is None else "frame",
        }
    found = checked(options, TRAINING)
    TrainConfig(**{name: value for name, value in found.items() if name in WEIGHTS})
    return found

"""``ofg info``: a line for each entry of the record, or all of it as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ofg_deploy.info import describe
from ofg_deploy.outputs import to_json

MAX_SHOWN = 8  # tensors of a checkpoint; --json shows all


def show(path: Path, as_json: bool) -> None:
    """Print it. Raises InputError as ``info.describe``."""
    record = describe(path)
    if as_json:
        print(to_json(record), end="")
        return
    for key, value in _flat(record):
        print(f"{key}: {value}")


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

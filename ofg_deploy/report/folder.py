"""What a folder of ``ofg register`` holds: sidecars, and ``failures.csv`` of a batch."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ofg_deploy.errors import InputError
from ofg_deploy.outputs import read_text
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.rows import Failure


def entries(folder: Path) -> list[Registration | Failure]:
    """Every pair of the folder by name, those that could not be registered last.

    A JSON file that does not parse is taken for a broken sidecar and comes along; other records of ours and files of
    somebody else's do not.

    Raises:
        InputError: not a folder, or no pair in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the --out folder of ofg register")
    found: list[Registration | Failure] = [Registration(p) for p in sorted(folder.glob("*.json")) if _is_pair(p)]
    found += _failures(folder / "failures.csv")
    if not found:
        raise InputError(f"{folder} holds no sidecar of ofg register (*.json): give its --out folder")
    return found


def _is_pair(path: Path) -> bool:
    try:
        record: Any = json.loads(read_text(path))
    except (ValueError, RecursionError):  # InputError is one, too
        return True
    return isinstance(record, dict) and record.get("tool") == "ofg_deploy" and "transform" in record


def _failures(path: Path) -> list[Failure]:
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(read_text(path).splitlines(keepends=True)))
        return [Failure(row["pair"], row["error"]) for row in rows]
    except (csv.Error, KeyError) as error:
        raise InputError(f"{path} is no table of ofg register, with columns pair and error: {error!r}") from error

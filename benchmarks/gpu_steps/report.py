"""The results on disk: ``gpu.json``, to which every step is appended, and ``gpu.md``, drawn from it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_steps.verdicts import verdicts

NAMES = ("gpu.json", "gpu.md")
SCHEMA = 1


class Report:
    """What lies in a folder, and what is added to it.

    Raises:
        ValueError: ``gpu.json`` there is not one of ours.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.json, self.markdown = (folder / name for name in NAMES)
        self.runs = read_runs(self.json) if self.json.exists() else []

    def begin(self, about: dict[str, Any]) -> None:
        """A new run; its rows follow."""
        self.runs.append({**about, "rows": []})
        self._write()

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rows of the run that was begun; both files are replaced as a whole."""
        self.runs[-1]["rows"] += rows
        self._write()

    def merge(self, path: Path) -> int:
        """The runs of another file that are not here yet; how many."""
        new = [run for run in read_runs(path) if run not in self.runs]
        self.runs = sorted([*self.runs, *new], key=lambda run: str(run["began"]))
        self._write()
        return len(new)

    def _write(self) -> None:
        replace(self.json, json.dumps({"schema": SCHEMA, "runs": self.runs}, indent=1, allow_nan=False) + "\n")
        replace(self.markdown, markdown(self.runs))


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Raises ValueError for a file that holds something else."""
    try:
        record = json.loads(path.read_text())
        if record["schema"] != SCHEMA:
            raise ValueError(f"{path} has schema {record['schema']}, expected {SCHEMA}: move it away")
        return list(record["runs"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not hold results of benchmarks/gpu.py ({error}): move it away") from error


def replace(path: Path, text: str) -> None:
    """The file is the old one or the new one, never part of one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """A section for each run, newest last, and what all rows together say to do."""
    lines = ["# Measured on a GPU", "", "Written by `benchmarks/gpu.py`; `gpu.json` holds the same.", ""]
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        lines += [f"## {run['began']}, {run['machine']}", "", f"`{run['command']}`", "", versions, ""]
        lines += ["| step | what | figures | aim | on |", "| --- | --- | --- | --- | --- |"]
        lines += [line(row) for row in run["rows"]]
        lines.append("")
    lines += ["## What follows", "", *[f"- {text}" for text in verdicts(runs)], ""]
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    figures = "; ".join(f"{name}: {number(value)}" for name, value in row["figures"].items())
    told = figures if row["why_not"] is None else f"not measured: {row['why_not']}"
    cells = (row["step"], row["what"], told, row["aim"] or "", row["on"])
    return "| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in cells) + " |"


def number(value: Any) -> str:
    """Four digits are enough to read."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

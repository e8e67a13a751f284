"""``ofg check`` on a terminal: a table or JSON, copies where asked for, and an error if anything remains one."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ofg_deploy.check.examine import Examined, examine
from ofg_deploy.check.finding import Finding
from ofg_deploy.check.repair import mendable, write_copies
from ofg_deploy.check.together import beside_model, compare
from ofg_deploy.cli.terminal import terminal
from ofg_deploy.errors import InputError
from ofg_deploy.model_file import read_model
from ofg_deploy.options.words import Unit
from ofg_deploy.outputs import to_json

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def check(
    paths: list[Path],
    fix: Path | None,
    model: Path | None,
    as_json: bool,
    max_voxels: int,
    unit: Unit | None = None,
    nan: float | None = None,
) -> None:
    """Examine every file, the first beside each other; print; write copies.

    Args:
        unit: of the lengths of all files, whatever their headers say. nan: what belongs in place of NaN and infinity.

    Raises:
        InputError: an error was found which no copy mends; or the model or the copies' folder cannot be used.
    """
    contract = read_model(model).contract if model else None
    files: list[Examined] = []
    for path in paths:
        file = examine(path, max_voxels, unit, nan)
        more = beside_model(file, contract) if contract else []
        if files:
            more += compare(files[0], file)
        files.append(replace(file, findings=(*file.findings, *more)))
        if len(files) > 1 and not (fix and mendable(files[-1])):
            files[-1] = replace(files[-1], data=None)  # only the first one's voxels are needed again
    copies = write_copies(files, fix, max_voxels) if fix else {}
    if as_json:
        print(to_json(_record(files, copies, contract is not None)), end="")
    else:
        _print(files, copies, contract is not None)
    bad = [f for f in files if any(_remains(finding, f.path in copies) for finding in f.findings)]
    if bad:
        names = ", ".join(str(file.path) for file in bad[:3]) + (" ..." if len(bad) > 3 else "")
        mend = "" if fix or not any(map(mendable, bad)) else "; --fix DIR writes corrected copies"
        raise InputError(f"{len(bad)} of {len(files)} files cannot be registered as they are: {names}{mend}")


def _remains(finding: Finding, copied: bool) -> bool:
    return finding.severity == "error" and not (finding.mended and copied)


def _record(files: list[Examined], copies: dict[Path, Path], with_model: bool) -> dict[str, Any]:
    return {
        "schema": 1,
        "compared_with_model": with_model,
        "files": [
            {
                "path": str(file.path),
                "shape": list(file.grid.shape) if file.grid else None,
                "spacing_mm": list(file.grid.spacing_mm) if file.grid else None,
                "orientation": file.grid.orientation if file.grid else None,
                "findings": [asdict(finding) for finding in file.findings],
                "copy": str(copies[file.path]) if file.path in copies else None,
            }
            for file in files
        ],
    }


def _print(files: list[Examined], copies: dict[Path, Path], with_model: bool) -> None:
    console = terminal()
    for file in files:
        place = "where it lies is unknown"
        if file.grid:
            sizes = "x".join(f"{s:.4g}" for s in file.grid.spacing_mm)
            place = f"{'x'.join(map(str, file.grid.shape))} voxels of {sizes} mm, {file.grid.orientation}"
        console.print(f"{file.path}: {place}", soft_wrap=True)
        if file.findings:
            table = Table("severity", "about", "found", "fix")
            for finding in sorted(file.findings, key=lambda f: list(STYLES).index(f.severity)):
                fix = f"{finding.fix} (--fix DIR)" if finding.mended and file.path not in copies else finding.fix
                cells = (finding.severity, finding.about, finding.found, fix)
                table.add_row(
                    *(Text(cell, style=STYLES[finding.severity] if cell == cells[0] else "") for cell in cells)
                )
            console.print(table)
            for line in dict.fromkeys(f.command for f in file.findings if f.command):
                console.print(line, soft_wrap=True)  # whole, so that it can be copied
        if file.path in copies:
            console.print(f"corrected copy: {copies[file.path]} (free text and extensions left out)", soft_wrap=True)
    if with_model:
        console.print(
            "the model's record keeps no statistics of its training images: compared with its recipe and grid"
        )

"""``ofg check`` on a terminal: a table or JSON, copies where asked for, and an error if anything remains one."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ofg_deploy.check.examine import Examined, examine
from ofg_deploy.check.finding import Finding
from ofg_deploy.check.repair import mendable, write_copies
from ofg_deploy.check.together import beside_model, compare
from ofg_deploy.cli.terminal import is_verbose, terminal
from ofg_deploy.errors import InputError
from ofg_deploy.image_folder import look_into
from ofg_deploy.model_file import read_model
from ofg_deploy.nifti import stem
from ofg_deploy.options.words import Unit
from ofg_deploy.outputs import to_json

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim", "ok": "green"}


def check(
    paths: list[Path],
    fix: Path | None,
    model: Path | None,
    as_json: bool,
    max_voxels: int,
    unit: Unit | None = None,
    nan: float | None = None,
) -> None:
    """Examine every file; compare each other file that is named with the first one; print; write copies.

    Args:
        paths: files, and folders whose images are examined, each by itself.
        unit: of the lengths of all files, whatever their headers say. nan: what belongs in place of NaN and infinity.

    Raises:
        InputError: an error was found which no copy mends; or the model or the copies' folder cannot be used.
    """
    contract = read_model(model).contract if model else None
    files: list[Examined] = []
    names = _files(paths)
    together = [*names] == paths
    curable: set[Path] = set()
    for path in names:
        file = examine(path, max_voxels, unit, nan)
        more = beside_model(file, contract) if contract else []
        if files and together:
            more += compare(files[0], file)
        files.append(replace(file, findings=(*file.findings, *more)))
        if mendable(files[-1]):
            curable.add(path)
        if (len(files) > 1 or not together) and not (fix and path in curable):
            files[-1] = replace(files[-1], data=None)  # only the first one's voxels are needed again
    copies = write_copies(files, fix, max_voxels, names) if fix else {}
    if as_json:
        print(to_json(_record(files, copies, contract is not None)), end="")
    else:
        _print(files, copies, contract is not None)
    bad = [f for f in files if any(_remains(finding, f.path in copies) for finding in f.findings)]
    if bad:
        worst = ", ".join(str(file.path) for file in bad[:3]) + (" ..." if len(bad) > 3 else "")
        mend = (
            "" if fix or not curable.intersection(file.path for file in bad) else "; --fix DIR writes corrected copies"
        )
        raise InputError(f"{len(bad)} of {len(files)} files cannot be registered as they are: {worst}{mend}")


def _files(paths: list[Path]) -> dict[Path, str]:
    """Each file and the name of its copy, without ending; the images of a folder and of those below it in its place."""
    found: dict[Path, str] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = stem(path)
            continue
        images = look_into(path, deep=True)
        if not images.images:
            found[path] = path.name  # perhaps of DICOM slices: what to do with it is for ``examine`` to say
            continue
        found |= {image: name.replace("/", "_") for name, image in images.images.items()}
    return found


def _remains(finding: Finding, copied: bool) -> bool:
    return finding.severity == "error" and not (finding.mended and copied)


def _record(files: list[Examined], copies: dict[Path, Path], with_model: bool) -> dict[str, Any]:
    return {
        "schema": 1,
        "compared_with_model": with_model,
        "files": [
            {
                "path": str(file.path),
                "status": status(file),
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
        console.print(
            Text(f"{status(file):<7}", style=STYLES[status(file)]), f"{_place(file)}  {file.path}", soft_wrap=True
        )
        shown = [f for f in file.findings if f.severity != "note" or is_verbose()]
        for finding in sorted(shown, key=lambda f: list(STYLES).index(f.severity)):
            head = f"  {finding.severity}, {finding.about}: "
            _print_wrapped(console, head, finding.found)
            if finding.fix:
                mended = " (--fix DIR)" if finding.mended and file.path not in copies else ""
                _print_wrapped(console, "    to do: ", finding.fix + mended)
        for line in dict.fromkeys(f.command for f in shown if f.command):
            console.print(line, soft_wrap=True)  # whole, so that it can be copied
        if file.path in copies:
            console.print(f"  corrected copy, without free text and extensions: {copies[file.path]}", soft_wrap=True)
    if len(files) > 1:
        counts = Counter(status(file) for file in files)
        console.print(f"{len(files)} files: {', '.join(f'{counts[kind]} {kind}' for kind in STYLES if counts[kind])}")
    if with_model:
        console.print(
            "the model has no statistics of its training images: the files were compared with its recipe and grid",
            soft_wrap=True,
        )


def status(file: Examined) -> str:
    """``ok``, or the worst that was found; a note is none of it."""
    found = {finding.severity for finding in file.findings}
    return "error" if "error" in found else "warning" if "warning" in found else "ok"


def _place(file: Examined) -> str:
    if not file.grid:
        return "unknown geometry"
    sizes = "x".join(f"{s:.4g}" for s in file.grid.spacing_mm)
    return f"{'x'.join(map(str, file.grid.shape))} voxels of {sizes} mm, {file.grid.orientation}"


def _print_wrapped(console: Console, head: str, text: str) -> None:
    """Wrapped below its own beginning where a terminal is narrow; one line elsewhere."""
    width = max(console.width - len(head), 20)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        console.print((head if number == 0 else " " * len(head)) + line, soft_wrap=True)

"""``ofg check``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from ofg_deploy.cli.app import MaxVoxels, app


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="NIfTI files; the first is compared with each other one.")],
    fix: Annotated[Optional[Path], typer.Option(help="Write corrected copies into this folder.")] = None,
    model: Annotated[
        Optional[str], typer.Option("--model", "-m", metavar="NAME|FILE", help="Model (.onnx) they are meant for.")
    ] = None,
    unit: Annotated[
        Optional[Literal["um", "mm", "m"]],
        typer.Option(help="Unit of the lengths in all files, whatever their headers say; copies are in mm."),
    ] = None,
    nan: Annotated[Optional[float], typer.Option(help="What copies have in place of NaN and infinity.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    max_voxels: MaxVoxels = None,
) -> None:
    """Say what is wrong with NIfTI files, and how to mend it; exit code 3 if one cannot be registered."""
    from math import isfinite

    from ofg_deploy.catalogue import model_path
    from ofg_deploy.cli.verbs import check as on_terminal
    from ofg_deploy.errors import UsageError
    from ofg_deploy.nifti_file import MAX_VOXELS

    if nan is not None and not isfinite(nan):
        raise UsageError(f"--nan {nan}: a finite number is needed")
    beside = model_path(model) if model is not None else None
    on_terminal.check(files, fix, beside, json, max_voxels or MAX_VOXELS, unit, nan)

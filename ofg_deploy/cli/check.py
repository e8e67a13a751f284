"""``ofg check``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import MaxVoxels, app


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="NIfTI files; the first is compared with each other one.")],
    fix: Annotated[Optional[Path], typer.Option(help="Write corrected copies into this folder.")] = None,
    model: Annotated[
        Optional[str], typer.Option("--model", "-m", metavar="NAME|FILE", help="Model (.onnx) they are meant for.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    max_voxels: MaxVoxels = None,
) -> None:
    """Say what is wrong with NIfTI files, and how to mend it; exit code 3 if one cannot be registered."""
    from ofg_deploy.catalogue import model_path
    from ofg_deploy.check import command
    from ofg_deploy.nifti_file import MAX_VOXELS

    command.check(files, fix, model_path(model) if model is not None else None, json, max_voxels or MAX_VOXELS)

"""``ofg check``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import JsonOutput, MaxVoxels, app
from ofg_deploy.cli.help import BASIC, REGISTER, choices, verb
from ofg_deploy.options.words import Unit


@verb(
    app,
    panel=REGISTER,
    examples=(
        ("A pair before its registration", "ofg check fixed.nii.gz moving.nii.gz"),
        ("All images in a folder", "ofg check scans"),
        ("Write corrected copies", "ofg check scans --fix corrected"),
    ),
    verbose=True,
    rare=True,
)
def check(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="NIfTI file, or a folder of them. The first of several files is compared with the others.",
        ),
    ],
    fix: Annotated[
        Optional[Path],
        typer.Option(metavar="DIR", rich_help_panel=BASIC, help="Write corrected copies into this folder."),
    ] = None,
    model: Annotated[
        Optional[str],
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            rich_help_panel=BASIC,
            help="Model (name or .onnx) that is to register the files; they are compared with what it expects.",
        ),
    ] = None,
    unit: Annotated[
        Optional[Unit],
        typer.Option(
            metavar=choices(Unit),
            rich_help_panel=BASIC,
            help="Unit of length of the files, instead of that in their headers; copies are in mm.",
        ),
    ] = None,
    nan: Annotated[
        Optional[float],
        typer.Option(metavar="VALUE", rich_help_panel=BASIC, help="Value that replaces NaN and infinity in copies."),
    ] = None,
    json: JsonOutput = False,
    max_voxels: MaxVoxels = None,
) -> None:
    """Check NIfTI files before registration: what is wrong, and how to mend it; exit code 3 if one cannot be used."""
    from math import isfinite

    from ofg_deploy.catalogue import model_path
    from ofg_deploy.cli.verbs import check as on_terminal
    from ofg_deploy.errors import UsageError
    from ofg_deploy.nifti_file import MAX_VOXELS

    if nan is not None and not isfinite(nan):
        raise UsageError(f"--nan {nan}: a finite number is needed")
    beside = model_path(model) if model is not None else None
    on_terminal.check(files, fix, beside, json, max_voxels or MAX_VOXELS, unit, nan)

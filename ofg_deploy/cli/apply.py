"""``ofg apply``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import (
    FillOption,
    InterpolationOption,
    MaxVoxels,
    Overwrite,
    PointsFrameOption,
    app,
)
from ofg_deploy.options.words import Form


@app.command()
def apply(
    transform: Annotated[
        list[str],
        typer.Option(
            "--transform",
            "-t",
            help="Transform file, or [FILE,1] for its inverse; several as for antsApplyTransforms: the last one given "
            "is applied to the image first.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="File to write: .nii.gz; of points the ending they came with.",
        ),
    ],
    image: Annotated[
        Optional[Path], typer.Argument(help="Image, label map or 4-D series to resample on the reference's grid.")
    ] = None,
    reference: Annotated[Optional[Path], typer.Option("--reference", "-r", help="The result lies on its grid.")] = None,
    interpolation: InterpolationOption = "auto",
    fixed_points: Annotated[
        Optional[Path],
        typer.Option(help="Points (.csv, .fcsv, .mrk.json) of the reference's space: carried to the image's."),
    ] = None,
    moving_points: Annotated[
        Optional[Path],
        typer.Option(
            "--moving-points",
            "--points",
            help="Points of the image's space: to the reference's, by the inverse.",
        ),
    ] = None,
    points_frame: PointsFrameOption = None,
    field_format: Annotated[
        Form,
        typer.Option("--format", help="Form of the transforms; greedy: 4x4 text of Greedy, c3d or NiftyReg (RAS mm)."),
    ] = "itk",
    fill: FillOption = "auto",
    max_voxels: MaxVoxels = None,
    overwrite: Overwrite = False,
) -> None:
    """Apply saved transforms to IMAGE or to points: chains, inverses, one interpolation."""
    from ofg_deploy.cli.verbs import apply as on_terminal
    from ofg_deploy.nifti_file import MAX_VOXELS
    from ofg_deploy.serve.apply import Application, Step
    from ofg_deploy.serve.job import parse_fill

    steps = tuple(Step.parse(text) for text in transform)
    how = None if interpolation == "auto" else interpolation
    given = (steps, out, image, reference, fixed_points, moving_points, points_frame, how, field_format)
    on_terminal.apply(Application(*given, parse_fill(fill), max_voxels or MAX_VOXELS, overwrite, sys.argv))

"""``ofg apply``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import JsonOutput, MaxVoxels, Overwrite, app, json_output
from ofg_deploy.cli.companions import (
    INTERPOLATION_HELP,
    AutoInterpolation,
    FillOption,
    FixedPoints,
    MovingPoints,
    PointsFrameOption,
)
from ofg_deploy.cli.help import BASIC, REGISTER, choices, verb
from ofg_deploy.options.words import Form


@verb(
    app,
    panel=REGISTER,
    usage="[IMAGE] -t FILE [-t FILE]... -o FILE",
    examples=(
        ("An image onto the fixed grid", "ofg apply pet.nii.gz -t m_to_f_Warp.nii.gz -r fixed.nii.gz -o out.nii.gz"),
        ("A label map", "ofg apply seg.nii.gz -t m_to_f_Warp.nii.gz -r fixed.nii.gz -o seg_warped.nii.gz"),
        ("Points of the moving image", "ofg apply --moving-points p.csv -t m_to_f_Warp.nii.gz -o p_fixed.csv"),
    ),
    rare=True,
)
def apply(
    transform: Annotated[
        list[str],
        typer.Option(
            "--transform",
            "-t",
            metavar="FILE",
            rich_help_panel=BASIC,
            help="Transform file, or [FILE,1] for its inverse. Repeatable, in the order of antsApplyTransforms: the "
            "last one is applied to the image first.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel=BASIC,
            help="Output file: .nii.gz; for points the extension of the input.",
        ),
    ],
    image: Annotated[
        Optional[Path], typer.Argument(metavar="IMAGE", help="Image, label map or 4-D series to be resampled.")
    ] = None,
    reference: Annotated[
        Optional[Path],
        typer.Option(
            "--reference",
            "-r",
            metavar="FILE",
            rich_help_panel=BASIC,
            help="Image that defines the output grid: the fixed image.",
        ),
    ] = None,
    interpolation: Annotated[
        AutoInterpolation,
        typer.Option(
            metavar=choices(AutoInterpolation),
            rich_help_panel=BASIC,
            help=f"Interpolation; {INTERPOLATION_HELP}",
        ),
    ] = "auto",
    field_format: Annotated[
        Form,
        typer.Option(
            "--format",
            metavar=choices(Form),
            rich_help_panel=BASIC,
            help="Format of the transforms; greedy: the 4x4 text of Greedy, c3d or NiftyReg (RAS mm).",
        ),
    ] = "itk",
    fixed_points: FixedPoints = None,
    moving_points: MovingPoints = None,
    points_frame: PointsFrameOption = None,
    fill: FillOption = "auto",
    overwrite: Overwrite = False,
    json: JsonOutput = False,
    max_voxels: MaxVoxels = None,
) -> None:
    """Apply saved transforms to an image, a label map or points: chains, inverses, one interpolation."""
    from ofg_deploy.cli.verbs import apply as on_terminal
    from ofg_deploy.nifti_file import MAX_VOXELS
    from ofg_deploy.serve.apply import Application, Step
    from ofg_deploy.serve.job import parse_fill

    steps = tuple(Step.parse(text) for text in transform)
    how = None if interpolation == "auto" else interpolation
    given = (steps, out, image, reference, fixed_points, moving_points, points_frame, how, field_format)
    with json_output(json) as answer:
        answer(on_terminal.apply(Application(*given, parse_fill(fill), max_voxels or MAX_VOXELS, overwrite, sys.argv)))

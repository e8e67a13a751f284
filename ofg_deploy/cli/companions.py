"""Options of what moves along with an image: label maps, other images, points; and how they are interpolated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from ofg_deploy.cli.help import COMPANIONS, OUTPUT, choices
from ofg_deploy.options.words import Interpolation, LabelInterpolation, PointsFrame

MovingLabels = Annotated[
    Optional[list[Path]],
    typer.Option(
        metavar="FILE",
        rich_help_panel=COMPANIONS,
        help="Label map of the moving image, to be warped; repeatable.",
    ),
]

FixedLabels = Annotated[
    Optional[Path],
    typer.Option(
        metavar="FILE",
        rich_help_panel=COMPANIONS,
        help="Label map of the fixed image: Dice and HD95 with the first moving one.",
    ),
]

LabelInterpolationOption = Annotated[
    LabelInterpolation,
    typer.Option(
        metavar=choices(LabelInterpolation),
        hidden=True,
        rich_help_panel=COMPANIONS,
        help="Interpolation of label maps; genericlabel: the label with the largest linear weight.",
    ),
]

Also = Annotated[
    Optional[list[Path]],
    typer.Option(
        metavar="FILE",
        rich_help_panel=COMPANIONS,
        help="Another image or 4-D series in the moving image's space, to be warped; repeatable.",
    ),
]

FixedPoints = Annotated[
    Optional[Path],
    typer.Option(
        metavar="FILE",
        rich_help_panel=COMPANIONS,
        help="Points (.csv, .fcsv, .mrk.json) on the fixed image, to be mapped to the moving one.",
    ),
]

MovingPoints = Annotated[
    Optional[Path],
    typer.Option(
        "--moving-points",
        "--points",
        metavar="FILE",
        rich_help_panel=COMPANIONS,
        help="Points on the moving image, to be mapped to the fixed one.",
    ),
]

FixedMask = Annotated[
    Optional[Path],
    typer.Option(
        metavar="FILE",
        rich_help_panel=COMPANIONS,
        help="Mask of the fixed image; zero voxels are ignored during the initial alignment.",
    ),
]

MovingMask = Annotated[
    Optional[Path],
    typer.Option(metavar="FILE", rich_help_panel=COMPANIONS, help="Mask of the moving image, likewise."),
]
PointsFrameOption = Annotated[
    Optional[PointsFrame],
    typer.Option(
        "--points-frame",
        "--points-space",
        metavar=choices(PointsFrame),
        rich_help_panel=COMPANIONS,
        help="Coordinate frame of the points in CSV files; RAS if absent. Files of 3D Slicer name their own.",
    ),
]
FillOption = Annotated[
    str,
    typer.Option(
        metavar="auto|VALUE",
        hidden=True,
        rich_help_panel=OUTPUT,
        help="Value outside the moving image; auto: its background, 0 for label maps.",
    ),
]
AutoInterpolation = Literal["auto", Interpolation]
INTERPOLATION_HELP = (
    "auto: nearest for label maps, linear for other images. nearest and genericlabel are for label maps."
)

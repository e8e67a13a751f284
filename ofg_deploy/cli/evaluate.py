"""``ofg eval``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import JsonOutput, MaxVoxels, Overwrite, app, json_output
from ofg_deploy.cli.companions import PointsFrameOption
from ofg_deploy.cli.help import BASIC, REGISTER, verb


@verb(
    app,
    "eval",
    panel=REGISTER,
    usage="SOURCE [OTHER] -o DIR",
    examples=(
        ("Results of ofg register, with label maps named like the images", "ofg eval out --labels labels -o scores"),
        ("Transforms of any tool, from a list", "ofg eval pairs.csv -o scores"),
        ("Two methods on the same pairs", "ofg eval out_fast out_best -o comparison"),
    ),
    verbose=True,
    rare=True,
)
def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Output folder of ofg register, or a CSV, TSV or JSON list with the column transform (empty or "
            "identity: the headers alone) and optionally name, fixed_labels, moving_labels, fixed_points, "
            "moving_points, fixed, moving.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", rich_help_panel=BASIC, help="Output folder.")],
    other: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="OTHER", help="A second one: both are evaluated and compared pair by pair, matched by name."
        ),
    ] = None,
    labels: Annotated[
        Optional[Path],
        typer.Option(
            metavar="DIR",
            rich_help_panel=BASIC,
            help="Folder of label maps, named like the images; not with a list, which names its own.",
        ),
    ] = None,
    label_names: Annotated[
        Optional[Path],
        typer.Option(
            metavar="FILE",
            rich_help_panel=BASIC,
            help="CSV (label, name) or JSON: evaluate only these labels, under these names.",
        ),
    ] = None,
    points_frame: PointsFrameOption = None,
    json: JsonOutput = False,
    overwrite: Overwrite = False,
    max_voxels: MaxVoxels = None,
) -> None:
    """Evaluate registrations, or compare two sets: Dice, HD95, folding, landmark error; CSV, JSON and a plot."""
    from ofg_deploy.cli.verbs import evaluate as on_terminal
    from ofg_deploy.nifti_file import MAX_VOXELS

    how = on_terminal.How(labels, label_names, points_frame, max_voxels or MAX_VOXELS, overwrite, tuple(sys.argv))
    with json_output(json) as answer:
        if other is None:
            on_terminal.run(source, out, how, answer)
        else:
            on_terminal.run_comparison(source, other, out, how, answer)

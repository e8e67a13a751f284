"""``ofg eval``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import JsonOutput, MaxVoxels, Overwrite, PointsFrameOption, app, json_output


@app.command(name="eval")
def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of ofg register, or a CSV or JSON list with fixed_labels, moving_labels, fixed_points, "
            "moving_points, fixed, moving, name and transform (empty or identity: the headers alone)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")],
    labels: Annotated[
        Optional[Path], typer.Option(help="Label maps of a folder's pairs, named like the images.")
    ] = None,
    label_names: Annotated[
        Optional[Path], typer.Option(help="CSV (label, name) or JSON: evaluate these labels only, by these names.")
    ] = None,
    points_frame: PointsFrameOption = None,
    max_voxels: MaxVoxels = None,
    json: JsonOutput = False,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate registrations: Dice, HD95, folding and landmark distances; CSV, JSON and a box plot."""
    from ofg_deploy.cli.verbs import evaluate as on_terminal
    from ofg_deploy.nifti_file import MAX_VOXELS

    how = (points_frame, max_voxels or MAX_VOXELS, overwrite, sys.argv)
    with json_output(json) as answer:
        on_terminal.run(source, out, labels, label_names, *how, answer)

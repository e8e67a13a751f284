"""``ofg data``: its layouts and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import Overwrite, app

data = typer.Typer(help="Describe a data set in one dataset.json that ofg train reads.", rich_markup_mode=None)
app.add_typer(data, name="data")

Destination = Annotated[Path, typer.Argument(help="Folder of dataset.json and of the converted images.")]
Orientation = Annotated[
    Optional[str],
    typer.Option(help="Axes of arrays that come without geometry, for example LIA; the layout's own if absent."),
]


@data.command()
def ixi(
    source: Annotated[Path, typer.Argument(help="IXI_data of TransMorph: Train, Val, Test and atlas.pkl.")],
    destination: Destination,
    orientation: Orientation = None,
    overwrite: Overwrite = False,
) -> None:
    """IXI as TransMorph preprocessed it (.pkl)."""
    from ofg_deploy.cli.verbs import data as on_terminal

    on_terminal.convert("ixi", source, destination, orientation, overwrite)


@data.command()
def oasis(
    source: Annotated[Path, typer.Argument(help="TransMorph's .pkl folder, Learn2Reg's zip or folder, or neurite's.")],
    destination: Destination,
    orientation: Orientation = None,
    overwrite: Overwrite = False,
) -> None:
    """OASIS in any of its three public layouts."""
    from ofg_deploy.cli.verbs import data as on_terminal

    on_terminal.convert("oasis", source, destination, orientation, overwrite)


@data.command()
def lpba40(
    source: Annotated[Path, typer.Argument(help="Delineation space: SNN/SNN.delineation.skullstripped.* and labels.")],
    destination: Destination,
    orientation: Orientation = None,
    overwrite: Overwrite = False,
) -> None:
    """LPBA40 in delineation space (Analyze or NIfTI)."""
    from ofg_deploy.cli.verbs import data as on_terminal

    on_terminal.convert("lpba40", source, destination, orientation, overwrite)


@data.command()
def abdomenctct(
    source: Annotated[Path, typer.Argument(help="Learn2Reg's AbdomenCTCT zip or folder.")],
    destination: Destination,
    overwrite: Overwrite = False,
) -> None:
    """Abdomen CT of Learn2Reg."""
    from ofg_deploy.cli.verbs import data as on_terminal

    on_terminal.convert("abdomenctct", source, destination, None, overwrite)


@data.command()
def folder(
    source: Annotated[Path, typer.Argument(help="Folder of NIfTI images, also with a folder for each subject.")],
    destination: Annotated[Path, typer.Argument(help="Folder of dataset.json; the images stay where they are.")],
    labels: Annotated[
        Optional[Path], typer.Option(help="Folder of label maps, with the images' relative paths.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out what cannot be used, with a warning.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Your own images: checks every header, plans grid, spacing and batch."""
    from ofg_deploy.cli.verbs import data as on_terminal

    on_terminal.describe_images(source, destination, labels, seed, skip_bad, overwrite)

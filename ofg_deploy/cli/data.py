"""``ofg data``: its layouts and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import Overwrite, app
from ofg_deploy.cli.help import BASIC, TRAIN, Verbs, verb

data = typer.Typer(
    cls=Verbs,
    help="Describe a data set in a file that ofg train reads (dataset.json): your own images, or a public data set.",
    rich_markup_mode=None,
)
app.add_typer(data, name="data", rich_help_panel=TRAIN)

Destination = Annotated[
    Path, typer.Argument(metavar="DIR", help="Output folder: dataset.json and the converted images.")
]
Orientation = Annotated[
    Optional[str],
    typer.Option(
        metavar="AXES",
        rich_help_panel=BASIC,
        help="Anatomical axes of arrays without geometry, for example LIA; those of the data set if absent.",
    ),
]


@verb(data, examples=(("Convert, then train", "ofg data ixi IXI_data ixi"),))
def ixi(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder IXI_data of TransMorph: Train, Val, Test and atlas.pkl.")
    ],
    destination: Destination,
    orientation: Orientation = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert IXI as preprocessed by TransMorph (.pkl)."""
    from ofg_deploy.cli.verbs import data as on_terminal

    on_terminal.convert("ixi", source, destination, orientation, overwrite)


@verb(data, examples=(("Convert, then train", "ofg data oasis OASIS.zip oasis"),))
def oasis(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of .pkl files of TransMorph, zip or folder of Learn2Reg, or folder of neurite.",
        ),
    ],
    destination: Destination,
    orientation: Orientation = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert OASIS in any of its three public layouts."""
    from ofg_deploy.cli.verbs import data as on_terminal

    on_terminal.convert("oasis", source, destination, orientation, overwrite)


@verb(data, examples=(("Convert, then train", "ofg data lpba40 LPBA40 lpba40"),))
def lpba40(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Delineation space: SNN/SNN.delineation.skullstripped.* and labels."),
    ],
    destination: Destination,
    orientation: Orientation = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert LPBA40 in delineation space (Analyze or NIfTI)."""
    from ofg_deploy.cli.verbs import data as on_terminal

    on_terminal.convert("lpba40", source, destination, orientation, overwrite)


@verb(data, examples=(("Convert, then train", "ofg data abdomenctct AbdomenCTCT.zip abdomenctct"),))
def abdomenctct(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Zip or folder AbdomenCTCT of Learn2Reg.")],
    destination: Destination,
    overwrite: Overwrite = False,
) -> None:
    """Convert the abdominal CT of Learn2Reg."""
    from ofg_deploy.cli.verbs import data as on_terminal

    on_terminal.convert("abdomenctct", source, destination, None, overwrite)


@verb(
    data,
    examples=(
        ("Images with label maps of the same names", "ofg data folder images . --labels labels"),
        ("Then train", "ofg train dataset.json -o run"),
    ),
)
def folder(
    source: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Folder of NIfTI images, which may have a folder for each subject.")
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output folder: dataset.json; the images stay where they are.")
    ],
    labels: Annotated[
        Optional[Path],
        typer.Option(metavar="DIR", rich_help_panel=BASIC, help="Folder of label maps, named like the images."),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", rich_help_panel=BASIC, help="Leave out images that cannot be used, with a warning."),
    ] = False,
    seed: Annotated[
        int,
        typer.Option(metavar="N", rich_help_panel=BASIC, help="Seed of the split into training, validation and test."),
    ] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Describe your own images: checks every header; plans grid, spacing and batch size."""
    from ofg_deploy.cli.verbs import data as on_terminal

    on_terminal.describe_images(source, destination, labels, seed, skip_bad, overwrite)

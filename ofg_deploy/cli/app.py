"""The command-line application and the options that several verbs share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from ofg_deploy.errors import check_count
from ofg_deploy.options.words import Interpolation, PointsFrame
from ofg_deploy.version import __version__

app = typer.Typer(
    name="ofg",
    help="Train registration networks with On-the-Fly Guidance, export only the network, register NIfTI pairs.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PointsFrameOption = Annotated[
    Optional[PointsFrame],
    typer.Option(
        "--points-frame",
        "--points-space",
        help="Coordinate frame of points in CSV; RAS if absent. Files of 3D Slicer name their own.",
    ),
]
FillOption = Annotated[
    str,
    typer.Option(
        metavar="auto|VALUE",
        help="Value outside the image and where a transform is unknown; auto: the background of the image, 0 for "
        "label maps.",
    ),
]
InterpolationOption = Annotated[
    Literal["auto", Interpolation],
    typer.Option(
        help="How the image (in ofg register: --also images) is resampled; auto: nearest for label maps, linear for "
        "others. nearest and genericlabel are for label maps."
    ),
]


JsonOutput = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")
]


@contextmanager
def json_output(wanted: bool) -> Iterator[Callable[[Any], None]]:
    """With ``--json`` nothing is printed on standard output but the document that is handed to what this yields.

    It is printed when the work ends, also where an error ends it after the document is known.
    """
    found: list[Any] = []
    try:
        with redirect_stdout(io.StringIO()) if wanted else nullcontext():
            yield found.append
    finally:
        if wanted and found:
            from ofg_deploy.outputs import to_json

            print(to_json(found[-1]), end="")


def _max_voxels(value: Optional[int]) -> Optional[int]:
    if value is not None:
        check_count("--max-voxels", value)
    return value


MaxVoxels = Annotated[
    Optional[int],
    typer.Option(callback=_max_voxels, help="Refuse larger images before reading their voxels; 2 x 512^3 if absent."),
]
ModelOrNone = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="auto|none|NAME|FILE",
        help="A model by name (ofg models), an .onnx or an engine; none: steps on the pair alone; auto: the model "
        "whose training images both images look like, else none.",
    ),
]
LimitFile = Annotated[
    Optional[Path], typer.Option("--limits", help='JSON of limits: {"folding_percent": {"warn": 0.5, "fail": 1}}.')
]
QcFail = Annotated[bool, typer.Option("--qc-fail", help="Exit with 7 if a pair fails, after everything is written.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ofg {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())

"""The command-line application and the options that several verbs share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ofg_deploy.cli.help import OUTPUT, QUALITY, RUNTIME, Verbs
from ofg_deploy.errors import check_count
from ofg_deploy.version import __version__


class _Root(Verbs):
    examples = (
        ("Register two images", "ofg register fixed.nii.gz moving.nii.gz -o out"),
        ("Train on a folder of images, then export", "ofg train images -o run && ofg export run -o model.onnx"),
        ("Help on a command", "ofg register --help"),
    )


app = typer.Typer(
    name="ofg",
    cls=_Root,
    help="Train registration networks with On-the-Fly Guidance, export the network, and register NIfTI images with it.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


JsonOutput = Annotated[
    bool,
    typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON document on standard output, nothing else."),
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
    typer.Option(
        callback=_max_voxels,
        metavar="N",
        hidden=True,
        rich_help_panel=RUNTIME,
        help="Refuse larger images before their voxels are read; 2 x 512^3 if absent.",
    ),
]
LimitFile = Annotated[
    Optional[Path],
    typer.Option(
        "--limits",
        metavar="FILE",
        rich_help_panel=QUALITY,
        help='JSON file of quality limits: {"folding_percent": {"warn": 0.5, "fail": 1}}.',
    ),
]
QcFail = Annotated[
    bool,
    typer.Option(
        "--qc-fail",
        rich_help_panel=QUALITY,
        help="Exit with code 7 if a pair is beyond the limits; all outputs are written.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Replace existing outputs.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ofg {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())

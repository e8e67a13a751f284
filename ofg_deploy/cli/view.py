"""``ofg view``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import app
from ofg_deploy.cli.help import BASIC, REGISTER, verb


@verb(
    app,
    panel=REGISTER,
    examples=(
        ("The registration in a folder", "ofg view out"),
        (
            "One pair of a batch, from another machine through a tunnel",
            "ofg view out --pair sub-01 --port 8765 --no-browser",
        ),
    ),
)
def view(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that ofg register wrote, or a sidecar in it.")],
    pair: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", rich_help_panel=BASIC, help="Which pair, where the folder holds several."),
    ] = None,
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, metavar="N", rich_help_panel=BASIC, help="Port to listen on; 0: any free one."),
    ] = 0,
    browser: Annotated[
        bool,
        typer.Option(
            "--browser/--no-browser",
            rich_help_panel=BASIC,
            help="Open the page in a browser, or only print its address.",
        ),
    ] = True,
) -> None:
    """Show a registration in a browser, on this machine only, until Ctrl-C; nothing is written."""
    from ofg_deploy.cli.verbs import view as on_terminal

    on_terminal.view(out, pair, port, browser)

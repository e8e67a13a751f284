"""``ofg view``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import app


@app.command()
def view(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that ofg register wrote, or a sidecar in it.")],
    pair: Annotated[
        Optional[str], typer.Option("--pair", metavar="NAME", help="Which pair, where the folder holds several.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: a free one.")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser, or only print its address.")
    ] = True,
) -> None:
    """Show a registration in a browser, on this machine only, until Ctrl-C; nothing is written."""
    from ofg_deploy.cli.verbs import view as on_terminal

    on_terminal.view(out, pair, port, browser)

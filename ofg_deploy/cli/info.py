"""``ofg info``: its options."""

from __future__ import annotations

from typing import Annotated

import typer

from ofg_deploy.cli.app import app


@app.command()
def info(
    file: Annotated[str, typer.Argument(help="Model (.onnx) or its name, engine (.engine), checkpoint or run folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON, every detail.")] = False,
) -> None:
    """Print what a model, engine, checkpoint or run expects, promises and came from; it is checked, nothing is run."""
    from ofg_deploy.catalogue import source_path
    from ofg_deploy.cli.verbs.info import show

    show(source_path(file), json)

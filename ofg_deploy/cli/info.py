"""``ofg info``: its options."""

from __future__ import annotations

from typing import Annotated

import typer

from ofg_deploy.cli.app import JsonOutput, app
from ofg_deploy.cli.help import MODELS, verb


@verb(
    app,
    panel=MODELS,
    examples=(("A model", "ofg info model.onnx"), ("All of it, for a machine", "ofg info run --json")),
    verbose=True,
)
def info(
    file: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Model (.onnx) or its name, engine (.engine), checkpoint or run folder."),
    ],
    json: JsonOutput = False,
) -> None:
    """Describe a model, an engine, a checkpoint or a run: network, grid, images it is for, validation."""
    from ofg_deploy.catalogue import source_path
    from ofg_deploy.cli.verbs import info as on_terminal

    on_terminal.show(source_path(file), json)

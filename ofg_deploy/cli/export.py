"""``ofg export``: its options, made from ``options.export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ofg_deploy.cli.app import Overwrite, app
from ofg_deploy.cli.from_options import InPanels, takes
from ofg_deploy.extras import need
from ofg_deploy.options.export import EXPORT


@app.command(cls=InPanels)
@takes(EXPORT)
def export(
    source: Annotated[
        Optional[str],
        typer.Argument(
            help="Run folder of ofg train, a checkpoint, or (--trt, --triton) a model.onnx or a model's name, or "
            "(--triton) an engine; the newest run in ./run if absent."
        ),
    ] = None,
    path: Annotated[
        Optional[Path],
        typer.Option("--out", "-o", help="File to write; model.onnx, or the .engine beside a model, if absent."),
    ] = None,
    overwrite: Overwrite = False,
    **given: Any,
) -> None:
    """Export only the network to ONNX; nothing is published unless it reproduces the network.

    With --trt a TensorRT engine too, with its record beside it; with --triton a model repository of the Triton
    Inference Server.
    """
    from ofg_deploy.export.api import export_model

    if source is None:
        need("torch", "onnx", "onnxscript")
    from ofg_deploy.cli.verbs.export import Terminal

    with Terminal() as terminal:
        if source is None:
            from ofg_deploy.cli.here import newest_run

            source = str(newest_run(Path()))
            terminal.note(f"run: {source} (the newest one here)")
        exported = export_model(source, path, overwrite=overwrite, progress=terminal, **given)
    terminal.conclude(exported)

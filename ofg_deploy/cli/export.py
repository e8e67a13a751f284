"""``ofg export``: its options, made from ``options.export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ofg_deploy.cli.app import JsonOutput, Overwrite, app, json_output
from ofg_deploy.cli.from_options import takes
from ofg_deploy.cli.help import BASIC, TRAIN, verb
from ofg_deploy.extras import need
from ofg_deploy.options.export import EXPORT


@verb(
    app,
    panel=TRAIN,
    examples=(
        ("The newest run in ./run", "ofg export"),
        ("A run, in the lowest precision that holds", "ofg export run -o model.onnx --precision auto"),
        ("A TensorRT engine too", "ofg export run -o model.onnx --trt"),
        ("A model repository of Triton", "ofg export model.onnx --triton repository"),
        ("A published checkpoint", "ofg export voxelmorph.pth.tar --network voxelmorph --recipe ixi -o model.onnx"),
    ),
    verbose=True,
    rare=True,
)
@takes(EXPORT)
def export(
    source: Annotated[
        Optional[str],
        typer.Argument(
            metavar="RUN",
            help="Run folder of ofg train, a checkpoint, or (with --trt or --triton) the file or name of a model, or "
            "(with --triton) an engine; the newest run in ./run if absent.",
        ),
    ] = None,
    path: Annotated[
        Optional[Path],
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel=BASIC,
            help="Output file; if absent model.onnx, or for a model its name with .engine.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: JsonOutput = False,
    **given: Any,
) -> None:
    """Export the network to ONNX, without the guidance; refused unless the file reproduces the network.

    With --trt also a TensorRT engine and its record; with --triton a model repository of the Triton Inference Server.
    """
    from ofg_deploy.export.api import export_model

    if source is None:
        need("torch", "onnx", "onnxscript")
    from ofg_deploy.cli.verbs.export import Terminal, as_record

    with json_output(json) as answer:
        with Terminal() as terminal:
            if source is None:
                from ofg_deploy.cli.here import newest_run

                source = str(newest_run(Path()))
                terminal.note(f"run: {source} (the newest run here)")
            exported = export_model(source, path, overwrite=overwrite, progress=terminal, **given)
        terminal.conclude(exported)
        answer(as_record(exported))

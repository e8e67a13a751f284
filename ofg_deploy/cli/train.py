"""``ofg train``: its options, made from ``options.training``, and its last lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ofg_deploy.cli.app import app
from ofg_deploy.cli.from_options import InPanels, takes, with_assigned
from ofg_deploy.errors import Interrupted
from ofg_deploy.extras import need
from ofg_deploy.options.training import BASIC, PANELS, TRAINING

ORDERED = dict(sorted(TRAINING.items(), key=lambda item: PANELS.index(item[1].about.panel)))


@app.command(cls=InPanels)
@takes(ORDERED)
def train(
    images: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="DATA",
            help="dataset.json of ofg data, folder of NIfTI, or CSV or JSON list of pairs; if absent dataset.json or "
            "images (and labels) of the current folder.",
        ),
    ] = None,
    run: Annotated[Path, typer.Option("--out", "-o", help="Run folder.", rich_help_panel=BASIC)] = Path("run"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out as it was configured.", rich_help_panel=BASIC)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.", rich_help_panel=BASIC)
    ] = False,
    config: Annotated[
        Optional[Path],
        typer.Option(
            metavar="FILE",
            help="JSON file of options by name; config.json of a run is one. Options on the command line win.",
            rich_help_panel=BASIC,
        ),
    ] = None,
    assigned: Annotated[
        Optional[list[str]],
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other option by name, may be repeated; all are in docs/training-options.md.",
            rich_help_panel=BASIC,
        ),
    ] = None,
    **given: Any,
) -> None:
    """Train a network: images -> run folder with checkpoints.

    Several GPUs or machines: torchrun --nproc-per-node N -m ofg_deploy train ...
    """
    need("torch", "lightning_fabric", "tensorboard", "matplotlib", "filelock")
    options = with_assigned(given, assigned or (), TRAINING)
    from ofg_deploy.cli.verbs.train import Terminal, is_first
    from ofg_deploy.train.api import train_network

    terminal = Terminal()
    if images is None and not resume:
        from ofg_deploy.cli.here import data_in

        images, beside = data_in(Path())
        if beside and "labels" not in options:
            options["labels"] = beside
        if is_first():
            taken = options.get("labels")
            terminal.note(f"data: {images}{f' with {taken}' if taken else ''} (of this folder)")
    try:
        done = train_network(
            images, run, config=config, resume=resume, overwrite=overwrite, progress=terminal, **options
        )
    except Interrupted as error:
        command = f"with: ofg train -o {run} --resume"
        raise Interrupted(error.marked.replace("with `resume=True`", command)) from error
    if is_first():
        terminal.note(f"run: {done.folder}")
        terminal.note(f"next: ofg export {done.folder} -o model.onnx")

"""``ofg train``: its options, made from ``options.training``, and its last lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ofg_deploy.cli.app import app
from ofg_deploy.cli.from_options import takes, with_assigned
from ofg_deploy.cli.help import TRAIN, verb
from ofg_deploy.errors import Interrupted
from ofg_deploy.extras import need
from ofg_deploy.options.training import BASIC, PANELS, TRAINING

ORDERED = dict(sorted(TRAINING.items(), key=lambda item: PANELS.index(item[1].about.panel)))


@verb(
    app,
    panel=TRAIN,
    examples=(
        ("A folder of images, two hours on this machine", "ofg train images --hours 2 -o run"),
        ("With label maps for validation and supervision", "ofg train images --labels labels --dice-weight 1 -o run"),
        ("The published method on IXI", "ofg train ixi/dataset.json --recipe ixi --recipe paper -o run"),
        ("Continue an interrupted run", "ofg train -o run --resume"),
        ("Four GPUs", "torchrun --nproc-per-node 4 -m ofg_deploy train images -o run"),
    ),
    rare=True,
)
@takes(ORDERED)
def train(
    images: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="DATA",
            help="Folder of NIfTI images, dataset.json of ofg data, or CSV, TSV or JSON list of pairs; if absent "
            "dataset.json, or the folders images and labels, of the current folder.",
        ),
    ] = None,
    run: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Run folder.", rich_help_panel=BASIC)] = Path(
        "run"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out with its own options.", rich_help_panel=BASIC)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.", rich_help_panel=BASIC)
    ] = False,
    config: Annotated[
        Optional[Path],
        typer.Option(
            metavar="FILE",
            help="JSON file of options, such as config.json of a run. Options on the command line win.",
            rich_help_panel=BASIC,
        ),
    ] = None,
    assigned: Annotated[
        Optional[list[str]],
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other option by its name in docs/training-options.md; repeatable.",
            rich_help_panel=BASIC,
        ),
    ] = None,
    **given: Any,
) -> None:
    """Train a registration network on a folder of images, with On-the-Fly Guidance."""
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

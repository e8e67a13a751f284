"""``ofg serve``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import MaxVoxels, app
from ofg_deploy.cli.help import BASIC, REGISTER, RUNTIME, choices, verb
from ofg_deploy.options.words import Device, Runtime

ACCESS, JOBS = "Access", "Jobs"


@verb(
    app,
    panel=REGISTER,
    examples=(
        ("On this machine, in the browser", "ofg serve"),
        ("For others, with a token", "ofg serve --host 0.0.0.0 --token-file token.txt -m model.onnx"),
    ),
    rare=True,
)
def serve(
    model: Annotated[
        Optional[list[str]],
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            rich_help_panel=BASIC,
            help="As in ofg register; auto if absent. Repeatable: clients choose, and the first one is the default.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel=BASIC,
            help="Address to listen on. Any but the loopback address of this machine needs a token.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", rich_help_panel=BASIC, help="Port; 0: any free one.")
    ] = 8000,
    token_file: Annotated[
        Optional[Path],
        typer.Option(
            metavar="FILE",
            rich_help_panel=ACCESS,
            help="File with the token that clients must present; if absent the environment variable OFG_TOKEN.",
        ),
    ] = None,
    allow_host: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="NAME",
            rich_help_panel=ACCESS,
            help="Host name under which clients reach the service, besides localhost and addresses; repeatable.",
        ),
    ] = None,
    data: Annotated[
        Optional[Path],
        typer.Option(
            metavar="DIR",
            rich_help_panel=JOBS,
            help="Folder of jobs and results; if absent a folder in the user's application data.",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=JOBS,
            help="Pairs in progress at the same time; 0: the number of cores, at most 4.",
        ),
    ] = 0,
    queue: Annotated[
        int,
        typer.Option(
            metavar="N",
            hidden=True,
            rich_help_panel=JOBS,
            help="Largest number of waiting jobs; beyond it requests are answered with 'try again later'.",
        ),
    ] = 32,
    upload_mib: Annotated[
        int,
        typer.Option(
            metavar="N", hidden=True, rich_help_panel=JOBS, help="Largest size of a request with all its files, in MiB."
        ),
    ] = 1024,
    keep_hours: Annotated[
        float,
        typer.Option(
            metavar="H",
            hidden=True,
            rich_help_panel=JOBS,
            help="Delete results this many hours after the end of a job.",
        ),
    ] = 24.0,
    device: Annotated[
        Device,
        typer.Option(metavar=choices(Device), rich_help_panel=RUNTIME, help="Device; auto: a GPU if one can be used."),
    ] = "auto",
    runtime: Annotated[
        Runtime,
        typer.Option(metavar=choices(Runtime), rich_help_panel=RUNTIME, help="Inference runtime, as in ofg register."),
    ] = "auto",
    threads: Annotated[int, typer.Option(metavar="N", rich_help_panel=RUNTIME, help="CPU threads; 0: automatic.")] = 0,
    max_voxels: MaxVoxels = None,
) -> None:
    """Serve registrations over HTTP: an API, and a page for the browser."""
    from ofg_deploy.extras import need

    need("fastapi", "uvicorn", "pydantic", "python_multipart", "prometheus_client")
    from ofg_deploy.cli.verbs import serve as on_terminal
    from ofg_deploy.locations import user_folder
    from ofg_deploy.nifti_file import MAX_VOXELS
    from ofg_deploy.service.limits import Limits

    limits = Limits(queue, upload_mib, max_voxels or MAX_VOXELS, keep_hours)
    folder = data or user_folder() / "service"
    means = on_terminal.Means(model or ["auto"], device, runtime, threads, workers)
    on_terminal.serve(means, folder, limits, host, port, token_file, allow_host or [])

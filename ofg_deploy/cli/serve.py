"""``ofg serve``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import MaxVoxels, app
from ofg_deploy.options.words import Device, Runtime


@app.command()
def serve(
    model: Annotated[
        Optional[list[str]],
        typer.Option(
            "--model",
            "-m",
            metavar="auto|none|NAME|FILE",
            help="As in ofg register; may be given again, and clients choose: the first one is the default. auto if "
            "absent.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Any but this machine's own (loopback) needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    token_file: Annotated[
        Optional[Path],
        typer.Option(help="File with the token that clients have to show; if absent the environment's OFG_TOKEN."),
    ] = None,
    allow_host: Annotated[
        Optional[list[str]],
        typer.Option(help="Name under which clients reach the service, besides localhost and addresses; repeatable."),
    ] = None,
    data: Annotated[
        Optional[Path],
        typer.Option(help="Folder of jobs and results; in the user's folder for data of applications if absent."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Pairs under way at once; 0: the number of cores, at most 4.")] = 0,
    queue: Annotated[int, typer.Option(help="Most jobs that wait; beyond it clients are asked to come back.")] = 32,
    upload_mib: Annotated[int, typer.Option(help="Most MiB of one request, all its files together.")] = 1024,
    keep_hours: Annotated[float, typer.Option(help="Delete results so many hours after a job has ended.")] = 24.0,
    max_voxels: MaxVoxels = None,
    device: Annotated[Device, typer.Option(help="Where to run; auto says what it chose.")] = "auto",
    runtime: Annotated[Runtime, typer.Option(help="What runs the network, as in ofg register.")] = "auto",
    threads: Annotated[
        int, typer.Option(help="CPU threads of the network and of the steps on the pair; 0: automatic.")
    ] = 0,
) -> None:
    """Register pairs for others: the engine of ofg register behind an HTTP API, with a page for the browser."""
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

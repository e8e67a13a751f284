"""``ofg bench``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from ofg_deploy.cli.app import Overwrite, app
from ofg_deploy.errors import UsageError

BenchDevice = Literal["cpu", "cuda"]


@app.command()
def bench(
    models: Annotated[
        list[str], typer.Argument(help="Exported models, by file or name: one or two, or several for a table.")
    ],
    repeats: Annotated[int, typer.Option(help="Timed runs of each, in turn.")] = 20,
    guidance_steps: Annotated[
        Optional[int], typer.Option(help="K of the test-time optimisation it replaces; 5 if absent.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of everything timed; 0 for all cores.")] = 0,
    grid: Annotated[Optional[tuple[int, int, int]], typer.Option(help="Size, for models that take any.")] = None,
    runtimes: Annotated[
        Optional[str],
        typer.Option(help="Table: onnxruntime,openvino,tensorrt,torch,torch-channels-last,torch-compile."),
    ] = None,
    precisions: Annotated[Optional[str], typer.Option(help="Table: fp32,fp16,bf16,int8; those of the files.")] = None,
    checkpoint: Annotated[
        Optional[Path], typer.Option(help="Table: run or checkpoint of the models, for the eager network.")
    ] = None,
    pairs: Annotated[
        Optional[Path], typer.Option(help="Table: folder or list of pairs to measure accuracy on.")
    ] = None,
    device: Annotated[Optional[BenchDevice], typer.Option(help="Table: where its rows run; cpu if absent.")] = None,
    json: Annotated[Optional[Path], typer.Option(help="Also write the figures here.")] = None,
    plot: Annotated[Optional[Path], typer.Option(help="Table: also draw speed against error here (.png).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare models: graph and latency with and without guidance, next to optimising each pair at test time.

    With any option marked "Table": runtimes and precisions of one network, accuracy beside speed.
    """
    from ofg_deploy.bench.plan import TableOptions
    from ofg_deploy.bench.proof import ProofOptions
    from ofg_deploy.catalogue import model_path
    from ofg_deploy.cli.verbs import bench as on_terminal

    files = [model_path(text) for text in models]
    if not any(option is not None for option in (runtimes, precisions, checkpoint, pairs, device, plot)):
        steps = 5 if guidance_steps is None else guidance_steps
        on_terminal.bench_proof(files, ProofOptions(repeats, steps, threads, grid), json, overwrite)
        return
    if guidance_steps is not None:
        raise UsageError("--guidance-steps belongs to the proof; a table times networks alone")
    options = TableOptions(
        _names(runtimes), _names(precisions), checkpoint, pairs, grid, device or "cpu", repeats, threads
    )
    on_terminal.bench_table(files, options, json, plot, overwrite)


def _names(given: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in given.split(",")) if given else ()

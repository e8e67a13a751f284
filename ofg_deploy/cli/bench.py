"""``ofg bench``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from ofg_deploy.cli.app import JsonOutput, Overwrite, app, json_output
from ofg_deploy.cli.help import BASIC, MODELS, OUTPUT, RUNTIME, choices, verb
from ofg_deploy.errors import UsageError

BenchDevice = Literal["cpu", "cuda"]
TABLE = "Table of runtimes and precisions"


@verb(
    app,
    panel=MODELS,
    examples=(
        ("What guidance costs at test time: nothing", "ofg bench with_guidance.onnx without_guidance.onnx"),
        ("Runtimes side by side", "ofg bench model.onnx --runtimes onnxruntime,openvino --pairs pairs.csv"),
        (
            "Precisions against PyTorch",
            "ofg bench m_fp32.onnx m_int8.onnx --checkpoint run --out speed.json --plot speed.png",
        ),
    ),
)
def bench(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Exported model, by file or name; several for a comparison."),
    ],
    repeats: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=BASIC, help="Timed runs of each, in random order.")
    ] = 20,
    guidance_steps: Annotated[
        Optional[int],
        typer.Option(
            metavar="K",
            rich_help_panel=BASIC,
            help="Inner steps of the optimisation at test time that the network replaces; 5 if absent. Not for tables.",
        ),
    ] = None,
    grid: Annotated[
        Optional[tuple[int, int, int]],
        typer.Option(
            metavar="X Y Z", rich_help_panel=BASIC, help="Network grid in voxels (dynamic-shape models only)."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", rich_help_panel=RUNTIME, help="CPU threads; 0: all cores.")] = 0,
    runtimes: Annotated[
        Optional[str],
        typer.Option(
            metavar="LIST",
            rich_help_panel=TABLE,
            help="Runtimes, separated by commas: onnxruntime, openvino, tensorrt, torch, torch-channels-last, "
            "torch-compile.",
        ),
    ] = None,
    precisions: Annotated[
        Optional[str],
        typer.Option(
            metavar="LIST",
            rich_help_panel=TABLE,
            help="Precisions, separated by commas: fp32, fp16, bf16, int8; those of the models if absent.",
        ),
    ] = None,
    checkpoint: Annotated[
        Optional[Path],
        typer.Option(
            metavar="RUN", rich_help_panel=TABLE, help="Run folder or checkpoint of the models, for rows of PyTorch."
        ),
    ] = None,
    pairs: Annotated[
        Optional[Path],
        typer.Option(
            metavar="LIST",
            rich_help_panel=TABLE,
            help="List or folder of pairs to measure the accuracy on; one synthetic pair if absent.",
        ),
    ] = None,
    device: Annotated[
        Optional[BenchDevice],
        typer.Option(metavar=choices(BenchDevice), rich_help_panel=TABLE, help="Device; cpu if absent."),
    ] = None,
    plot: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", rich_help_panel=TABLE, help="Also draw speed against error (.png)."),
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="Also write the results as JSON.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: JsonOutput = False,
) -> None:
    """Measure the speed of models: with and without guidance, and next to optimisation of each pair at test time.

    With any option of the table: runtimes and precisions of one network, accuracy next to speed.
    """
    from ofg_deploy.bench.plan import TableOptions
    from ofg_deploy.bench.proof import ProofOptions
    from ofg_deploy.catalogue import model_path
    from ofg_deploy.cli.verbs import bench as on_terminal

    files = [model_path(text) for text in models]
    if not any(option is not None for option in (runtimes, precisions, checkpoint, pairs, device, plot)):
        steps = 5 if guidance_steps is None else guidance_steps
        with json_output(json) as answer:
            answer(on_terminal.bench_proof(files, ProofOptions(repeats, steps, threads, grid), out, overwrite))
        return
    if guidance_steps is not None:
        raise UsageError("--guidance-steps has no effect on a table of runtimes and precisions: leave it out")
    options = TableOptions(
        _names(runtimes), _names(precisions), checkpoint, pairs, grid, device or "cpu", repeats, threads
    )
    with json_output(json) as answer:
        answer(on_terminal.bench_table(files, options, out, plot, overwrite))


def _names(given: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in given.split(",")) if given else ()

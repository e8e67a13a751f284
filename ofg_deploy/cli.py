"""The ``ofg`` command: a verb per function, short bodies, heavy imports inside."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Optional

import typer

from ofg_deploy import __version__
from ofg_deploy.errors import Interrupted, OfgError

app = typer.Typer(
    name="ofg",
    help="Train registration networks with On-the-Fly Guidance, export only the network, register NIfTI pairs.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

InitOption = Literal["none", "affine"]
DeviceOption = Literal["auto", "cpu", "cuda"]
GuidanceOption = Literal["ofg", "none"]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]


def main() -> None:
    """Entry point: every expected error is one line and its own exit code."""
    try:
        code = app(prog_name="ofg", standalone_mode=False)
    except OfgError as error:
        _fail(str(error), error.exit_code)
    except MemoryError:
        _fail("out of memory: use a smaller grid or a machine with more", 1)
    except Exception as error:
        # Typer's own complaints about the command line; where their class lives differs between its versions.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            _fail(f"{error.format_message()} (see ofg --help)", error.exit_code)
        if os.environ.get("OFG_DEBUG"):
            raise
        _fail(f"internal error, {type(error).__name__}: {error} (set OFG_DEBUG=1 for the traceback)", 1)
    if code == Interrupted.exit_code:
        _fail("interrupted", code)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(f"ofg: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ofg {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def train(
    data: Annotated[
        Optional[Path], typer.Argument(help="Folder of NIfTI images, or a CSV or JSON list of pairs.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder.")] = Path("run"),
    labels: Annotated[Optional[Path], typer.Option(help="Folder of label maps, named like the images.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out as it was configured.")] = False,
    grid: Annotated[
        Optional[tuple[int, int, int]], typer.Option(help="Network grid in voxels; planned from the images if absent.")
    ] = None,
    spacing: Annotated[
        Optional[tuple[float, float, float]], typer.Option(help="Network spacing in mm; planned if absent.")
    ] = None,
    intensity: Annotated[
        str, typer.Option(help="percentile:LOW,HIGH, minmax, or window:LOW,HIGH.")
    ] = "percentile:0.5,99.5",
    init: Annotated[InitOption, typer.Option(help="Alignment before the network sees a pair.")] = "affine",
    network: Annotated[str, typer.Option(help="Architecture.")] = "voxelmorph",
    guidance: Annotated[GuidanceOption, typer.Option(help="ofg, or none for the unsupervised baseline.")] = "ofg",
    guidance_steps: Annotated[int, typer.Option(help="Inner Adam steps per training step (K).")] = 5,
    guidance_lr: Annotated[float, typer.Option(help="Inner learning rate in voxels.")] = 0.1,
    guidance_smoothness: Annotated[float, typer.Option(help="Diffusion weight of the inner energy.")] = 1.0,
    ncc_window: Annotated[int, typer.Option(help="Side of the local NCC window in voxels.")] = 9,
    smoothness: Annotated[
        Optional[float], typer.Option(help="Outer diffusion weight; 0.02 with OFG, 1 without, if absent.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Outer learning rate.")] = 1e-4,
    epochs: Annotated[int, typer.Option(help="Epochs.")] = 500,
    steps_per_epoch: Annotated[
        Optional[int], typer.Option(help="Pairs per epoch; every training pair once if absent.")
    ] = None,
    validate_every: Annotated[int, typer.Option(help="Epochs between validations.")] = 1,
    pairs: Annotated[int, typer.Option(help="Most training pairs drawn from a folder.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed of weights, pairs and their order.")] = 0,
    device: Annotated[DeviceOption, typer.Option(help="Where to train; auto says what it chose.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for all cores.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that prepare pairs; 0 for all cores.")] = 0,
    cache: Annotated[
        Optional[Path], typer.Option(help="Prepared pairs, reusable between runs; OUT/cache if absent.")
    ] = None,
) -> None:
    """Train a network: images -> run folder with checkpoints."""
    from ofg_deploy.train import command
    from ofg_deploy.train.config import TrainConfig

    if resume:
        command.resume(out, device, threads, workers)
        return
    pair_list = command.find(data, out, labels, pairs, seed)
    config = TrainConfig(
        expects=command.expects(pair_list, network, grid, spacing, intensity, init),
        network=network,
        guidance=guidance,
        guidance_steps=guidance_steps,
        guidance_lr=guidance_lr,
        guidance_smoothness=guidance_smoothness,
        ncc_window=ncc_window,
        smoothness=smoothness,
        lr=lr,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        validate_every=validate_every,
        seed=seed,
    )
    command.start(out, config, pair_list, cache or out / "cache", device, threads, workers)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="Run folder of ofg train, or a checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model file to write.")] = Path("model.onnx"),
    network: Annotated[Optional[str], typer.Option(help="Architecture of a bare checkpoint.")] = None,
    grid: Annotated[Optional[tuple[int, int, int]], typer.Option(help="Network grid of a bare checkpoint.")] = None,
    spacing: Annotated[tuple[float, float, float], typer.Option(help="Network spacing of a bare checkpoint in mm.")] = (
        1.0,
        1.0,
        1.0,
    ),
    intensity: Annotated[str, typer.Option(help="Intensity recipe of a bare checkpoint.")] = "minmax",
    init: Annotated[InitOption, typer.Option(help="Alignment a bare checkpoint expects.")] = "affine",
    pairs: Annotated[
        Optional[Path], typer.Option(help="Folder or list of real pairs to check a bare checkpoint on.")
    ] = None,
    atol_mm: Annotated[float, typer.Option(help="Largest field error allowed, in mm.")] = 0.01,
    overwrite: Overwrite = False,
) -> None:
    """Export only the network to ONNX; nothing is published unless it reproduces the network."""
    from ofg_deploy.export import command

    options = command.BareOptions(network, grid, spacing, intensity, init, pairs)
    command.export(source, out, options, atol_mm, overwrite)


@app.command()
def register(
    fixed: Annotated[Path, typer.Argument(help="Fixed image (.nii, .nii.gz): the result lies on its grid.")],
    moving: Annotated[Path, typer.Argument(help="Moving image: it is brought to the fixed one.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="Model made by ofg export.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the outputs.")],
    init: Annotated[
        Optional[InitOption], typer.Option(help="Alignment to start from; as the model was trained if absent.")
    ] = None,
    moving_labels: Annotated[Optional[Path], typer.Option(help="Label map of the moving image, warped too.")] = None,
    fixed_labels: Annotated[Optional[Path], typer.Option(help="Label map of the fixed image: Dice and HD95.")] = None,
    fill: Annotated[float, typer.Option(help="Warped value outside the moving field of view.")] = 0.0,
    device: Annotated[DeviceOption, typer.Option(help="Where to run; auto says what it chose.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads of the network; 0 for the runtime's choice.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Register FIXED MOVING: warped image, transform (ITK), optional labels and a JSON sidecar."""
    from ofg_deploy.serve import command
    from ofg_deploy.serve.register import Job

    job = Job(fixed, moving, out, init, moving_labels, fixed_labels, fill, overwrite, sys.argv)
    command.register(job, model, device, threads)


@app.command()
def bench(
    models: Annotated[list[Path], typer.Argument(help="One exported model, or two to compare.")],
    repeats: Annotated[int, typer.Option(help="Timed runs of each, interleaved.")] = 20,
    guidance_steps: Annotated[int, typer.Option(help="K of the test-time optimisation it replaces.")] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads of everything timed; 0 for all cores.")] = 0,
    json: Annotated[Optional[Path], typer.Option(help="Also write the figures here.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Zero-overhead proof: same graph and latency with and without guidance, next to optimising at test time."""
    from ofg_deploy import bench as command

    command.bench(models, repeats, guidance_steps, threads, json, overwrite)

"""``ofg train``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from ofg_deploy.cli.app import DeviceOption, InitOption, app
from ofg_deploy.errors import UsageError
from ofg_deploy.extras import need

GuidanceOption = Literal["ofg", "none"]
OptimiserOption = Literal["adam", "greedy", "multilevel"]
SimilarityOption = Literal["ncc", "mse", "mind"]
RegulariserOption = Literal["diffusion", "bending"]
PrecisionOption = Literal["fp32", "bf16", "fp16"]
StartsOption = Literal["frame", "pair"]


WITH_RESUME = {"out", "resume", "device", "threads", "workers", "loader_workers", "activation_checkpointing"}


def _refuse_others(context: typer.Context) -> None:
    """A resumed run is as it was configured: an option that would be dropped in silence is refused."""
    for name in context.params.keys() - WITH_RESUME:
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise UsageError(f"--{option} cannot change with --resume: a run goes on as it was configured")


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        Optional[Path],
        typer.Argument(
            help="dataset.json of ofg data, folder of NIfTI, or CSV or JSON list of pairs; if absent dataset.json or "
            "images (and labels) of the current folder."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder.")] = Path("run"),
    labels: Annotated[Optional[Path], typer.Option(help="Folder of label maps, named like the images.")] = None,
    recipe: Annotated[
        Optional[list[str]],
        typer.Option(
            help="Published defaults: of a data set, by name; of the method, paper. May be given twice; options win."
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out what cannot be used, with a warning.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out as it was configured.")] = False,
    grid: Annotated[
        Optional[tuple[int, int, int]], typer.Option(help="Network grid in voxels; planned from the images if absent.")
    ] = None,
    spacing: Annotated[
        Optional[tuple[float, float, float]], typer.Option(help="Network spacing in mm; planned if absent.")
    ] = None,
    axes: Annotated[
        Optional[str], typer.Option(help="Anatomical directions of --grid and --spacing; RAS if absent.")
    ] = None,
    intensity: Annotated[
        Optional[str],
        typer.Option(help="percentile:LOW,HIGH (default 0.5,99.5), minmax, window:LOW,HIGH, or linear:LOW,HIGH."),
    ] = None,
    init: Annotated[
        Optional[InitOption], typer.Option(help="Alignment before the network sees a pair; affine if absent.")
    ] = None,
    starts: Annotated[
        Optional[StartsOption],
        typer.Option(
            help="frame: align each subject once, with one of them, and compose the starts of training pairs; pair: "
            "align each pair; frame where that is less work if absent."
        ),
    ] = None,
    two_way: Annotated[
        Optional[bool], typer.Option("--two-way/--one-way", help="Also visit every pair with its images swapped.")
    ] = None,
    flip: Annotated[
        Optional[bool], typer.Option("--flip/--no-flip", help="Mirror both images along random axes.")
    ] = None,
    network: Annotated[
        Optional[str],
        typer.Option(help="Architecture; voxelmorph if absent, with --hours and without a GPU voxelmorph-half."),
    ] = None,
    diffeomorphic: Annotated[
        bool, typer.Option("--diffeomorphic", help="Predict a stationary velocity field and integrate it.")
    ] = False,
    guidance: Annotated[GuidanceOption, typer.Option(help="ofg, or none for the unsupervised baseline.")] = "ofg",
    guidance_start: Annotated[
        Optional[float],
        typer.Option(
            help="Share of the epochs without guidance before it begins; 0 with adam, 0.35 with greedy steps."
        ),
    ] = None,
    guidance_optimiser: Annotated[
        Optional[OptimiserOption],
        typer.Option(
            help="greedy (if absent): smoothed steps down the local NCC; multilevel: coarse too; adam: as published"
        ),
    ] = None,
    guidance_steps: Annotated[
        Optional[int], typer.Option(help="Inner steps per training step (K); greedy 6, multilevel 3, adam 5.")
    ] = None,
    guidance_levels: Annotated[
        Optional[int], typer.Option(help="Resolutions of multilevel, each half as fine as the next; 2 if absent.")
    ] = None,
    guidance_coarse_steps: Annotated[
        Optional[int], typer.Option(help="Steps of multilevel at each coarse resolution; 8 if absent.")
    ] = None,
    guidance_lr: Annotated[Optional[float], typer.Option(help="Inner learning rate of adam in voxels; 0.1.")] = None,
    guidance_smoothness: Annotated[
        Optional[float], typer.Option(help="Regulariser weight of adam's inner energy; 1.")
    ] = None,
    guidance_step_voxels: Annotated[
        Optional[float], typer.Option(help="Length of the longest vectors of a greedy step; 0.5.")
    ] = None,
    guidance_step_limit: Annotated[
        Optional[float],
        typer.Option(help="Vectors of a greedy step longer than so many mean lengths are shortened; 2."),
    ] = None,
    guidance_gradient_sigma: Annotated[
        Optional[float], typer.Option(help="Smoothing of a greedy step's gradient, voxels; 1.5.")
    ] = None,
    guidance_field_sigma: Annotated[
        Optional[float], typer.Option(help="Smoothing of the field at each greedy step, voxels; 0.5.")
    ] = None,
    guidance_sobolev: Annotated[
        Optional[float], typer.Option(help="Weight of the gradient of (prediction - target) in the loss; 10, adam 0.")
    ] = None,
    guidance_similarity: Annotated[
        Optional[float], typer.Option(help="Weight of the similarity loss itself beside the OFG loss; 0.")
    ] = None,
    similarity: Annotated[
        SimilarityOption, typer.Option(help="Local NCC; mean squared difference; MIND for unlike modalities.")
    ] = "ncc",
    ncc_window: Annotated[
        Optional[int], typer.Option(help="Side of the local NCC window in voxels; 5, and 9 with adam or no guidance.")
    ] = None,
    regulariser: Annotated[
        RegulariserOption, typer.Option(help="First (diffusion) or second differences (bending) of the field.")
    ] = "diffusion",
    smoothness: Annotated[
        Optional[float], typer.Option(help="Outer regulariser weight; 0.02 with OFG, 1 without, if absent.")
    ] = None,
    dice_weight: Annotated[
        float, typer.Option(help="Weight of the Dice loss of training labels (weak supervision).")
    ] = 0.0,
    lr: Annotated[
        Optional[float], typer.Option(help="Outer learning rate; 1e-4 if absent, with --hours as the length asks for.")
    ] = None,
    steady: Annotated[
        Optional[bool],
        typer.Option(
            "--steady/--no-steady",
            help="Clip gradients that are out of proportion; on if absent, off with --recipe paper.",
        ),
    ] = None,
    hours: Annotated[
        Optional[float],
        typer.Option(
            metavar="H",
            help="Plan a run that ends in so many hours on this machine: epochs, steps, learning rate and, without a "
            "GPU, a compact network. Options given win.",
        ),
    ] = None,
    epochs: Annotated[Optional[int], typer.Option(help="Epochs; 500 if absent.")] = None,
    steps_per_epoch: Annotated[
        Optional[int], typer.Option(help="Pairs per epoch; every training pair once if absent.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pairs at once, in each process.")] = 1,
    accumulate: Annotated[int, typer.Option(help="Batches averaged before an optimiser step.")] = 1,
    precision: Annotated[PrecisionOption, typer.Option(help="Of the network; energies stay in float32.")] = "fp32",
    validate_every: Annotated[Optional[int], typer.Option(help="Epochs between validations; 1 if absent.")] = None,
    picture_every: Annotated[int, typer.Option(help="Epochs between pictures of a validation pair; 0: none.")] = 10,
    pairs: Annotated[
        Optional[int], typer.Option(help="Most training pairs; if absent 400 of random ones, and all of others.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, pairs and their order.")] = 0,
    device: Annotated[DeviceOption, typer.Option(help="Where to train; auto says what it chose.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads of each process; 0 for all cores.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that prepare pairs; 0 for all cores.")] = 0,
    loader_workers: Annotated[
        Optional[int], typer.Option(help="Processes that read prepared pairs ahead; 2 on CUDA, 0 on a CPU if absent.")
    ] = None,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Less memory, more time: compute activations twice.")
    ] = False,
    cache: Annotated[
        Optional[Path], typer.Option(help="Prepared pairs, reusable between runs; OUT/cache if absent.")
    ] = None,
) -> None:
    """Train a network: images -> run folder with checkpoints.

    Several GPUs or machines: torchrun --nproc-per-node N -m ofg_deploy train ...
    """
    need("torch", "lightning_fabric", "tensorboard", "matplotlib", "filelock")
    from ofg_deploy.train import command
    from ofg_deploy.train.config import TrainConfig, settle_guidance
    from ofg_deploy.train.recipes import Options, split_recipes

    resources = command.Resources(device, threads, workers, loader_workers, activation_checkpointing)
    if resume:
        _refuse_others(context)
        command.resume(out, resources)
        return
    if data is None:
        data, labels = command.find_here(labels)
    of_data, published = split_recipes(recipe or [])
    given_guidance = {
        "guidance_start": guidance_start,
        "guidance_steps": guidance_steps,
        "guidance_levels": guidance_levels,
        "guidance_coarse_steps": guidance_coarse_steps,
        "guidance_lr": guidance_lr,
        "guidance_smoothness": guidance_smoothness,
        "guidance_step_voxels": guidance_step_voxels,
        "guidance_step_limit": guidance_step_limit,
        "guidance_gradient_sigma": guidance_gradient_sigma,
        "guidance_field_sigma": guidance_field_sigma,
        "guidance_sobolev": guidance_sobolev,
        "guidance_similarity": guidance_similarity,
        "ncc_window": ncc_window,
    }
    guided = settle_guidance(guidance, guidance_optimiser, similarity, given_guidance, published)
    given = Options(grid, spacing, intensity, init, two_way, flip, axes)
    of_length: dict[str, Any] = {
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "lr": lr,
        "validate_every": validate_every,
    }
    budget = command.budget_of(hours, of_length)
    network = network or command.default_network(budget, resources)
    pair_list = command.find(data, out, labels, pairs, seed, skip_bad, budget)
    expects, options, pair_list = command.settle(data, pair_list, network, of_data, given)
    config = TrainConfig(
        expects=expects,
        frame=command.frame_of(starts, pair_list, expects.init),
        network=network,
        diffeomorphic=diffeomorphic,
        **guided,
        similarity=similarity,
        regulariser=regulariser,
        smoothness=smoothness,
        dice_weight=dice_weight,
        **{name: value for name, value in of_length.items() if value is not None},
        steady=not published if steady is None else steady,
        batch_size=batch_size,
        accumulate=accumulate,
        precision=precision,
        picture_every=picture_every,
        seed=seed,
        two_way=bool(options.two_way),
        flip=bool(options.flip),
    )
    if lr is None and not published:
        config = command.with_rate(config, len(pair_list.training))
    command.start(out, config, pair_list, cache or out / "cache", resources, skip_bad, budget)

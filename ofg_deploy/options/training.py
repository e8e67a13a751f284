"""The options of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ofg_deploy.options import greedy
from ofg_deploy.options.value import option, options_of
from ofg_deploy.options.words import (
    COMPACT,
    MOST_PASSES,
    PAPER,
    Device,
    Guidance,
    Init,
    NetworkName,
    Optimiser,
    Precision,
    RecipeName,
    Regulariser,
    Similarity,
    Starts,
)

DEFAULT_OPTIMISER: Optimiser = "greedy"
_STEEPEST = {
    "guidance_start": 0.35,
    "guidance_step_voxels": greedy.DEFAULTS["step"],
    "guidance_step_limit": greedy.DEFAULTS["limit"],
    "guidance_gradient_sigma": greedy.DEFAULTS["gradient_sigma"],
    "guidance_field_sigma": greedy.DEFAULTS["field_sigma"],
    "guidance_sobolev": 10.0,
    "guidance_similarity": 0.0,
    "ncc_window": greedy.WINDOW,
}
# What each inner optimiser takes, and its defaults; without guidance the window is that of the unsupervised loss.
GUIDANCE_OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"guidance_steps": 6, **_STEEPEST},
    "multilevel": {"guidance_steps": 3, "guidance_levels": 2, "guidance_coarse_steps": 8, **_STEEPEST},
    "adam": {
        "guidance_start": 0.0,
        "guidance_steps": 5,
        "guidance_lr": 0.1,
        "guidance_smoothness": 1.0,
        "guidance_sobolev": 0.0,
        "guidance_similarity": 0.0,
        "ncc_window": 9,
    },
    "none": {"ncc_window": 9},
}
# The method as published, other than what follows from its inner optimiser.
PUBLISHED: dict[str, Any] = {"guidance_optimiser": "adam", "steady": False, "lr": 1e-4}

BASIC, DATA, NETWORK, GUIDANCE, RUNTIME = "Basic", "Data", "Network", "Guidance", "Runtime"
PANELS = (BASIC, DATA, NETWORK, GUIDANCE, RUNTIME)


def _of_guidance(name: str, help: str, **about: Any) -> Any:
    """A field whose default is that of the inner optimiser, where that takes it."""
    values = {kind: takes[name] for kind, takes in GUIDANCE_OPTIONS.items() if name in takes}
    same = len(set(values.values())) == 1
    words = f"{next(iter(values.values())):g}" if same else ", ".join(f"{v:g} ({k})" for k, v in values.items())
    return option(None, help, GUIDANCE, default=words, **about)


def _bounds(name: str) -> dict[str, float]:
    least, most = greedy.BOUNDS[name]
    return {"least": least} if math.isinf(most) else {"least": least, "most": most}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What decides the weights of a network, besides the data and the network's input."""

    epochs: int = option(500, "Number of epochs.", BASIC, shown=True, least=1)
    steps_per_epoch: int | None = option(
        None, "Training pairs per epoch.", BASIC, default="every training pair once", least=1
    )
    validate_every: int = option(1, "Epochs between validations; the last epoch is always validated.", BASIC, least=1)
    picture_every: int = option(
        10, "Epochs between pictures of the first validation pair; 0 draws none.", BASIC, least=0
    )
    seed: int = option(
        0, "Seed of the initial weights and of the selection and order of pairs.", BASIC, shown=True,
        least=0, most=2**32 - 1,
    )  # fmt: skip
    two_way: bool = option(
        False, "Visit every pair a second time with its images swapped.", DATA, flags=("--two-way/--one-way",)
    )
    flip: bool = option(False, "Mirror both images along random axes.", DATA, flags=("--flip/--no-flip",))
    synthesise: bool = option(
        False,
        "Render training pairs from label maps: DATA is a folder of label maps, or a data set that names them.",
        DATA,
        shown=True,
        flags=("--synthesise",),
    )
    contrasts: str = option(
        "t1:0.5,random:0.5",
        "Contrasts of rendered images and their shares, drawn for each image: t1, t2, flair (by FreeSurfer's label "
        "numbers) and random.",
        DATA,
    )
    skull: float = option(
        0.5, "Share of the rendered pairs with skull and skin around the brain.", DATA, least=0, most=1
    )
    network: str = option(
        "voxelmorph",
        f"Network architecture: {', '.join(get_args(NetworkName))}. With `hours` and without a GPU the default is "
        f"{COMPACT}.",
        NETWORK,
        shown=True,
        metavar="NAME",
    )
    diffeomorphic: bool = option(
        False, "Predict a stationary velocity field and integrate it.", NETWORK, shown=True, flags=("--diffeomorphic",)
    )
    passes: int = option(
        1,
        "Passes of the network over a pair, each with the moving image moved by the field so far: training steps begin "
        "after 0 to `passes` - 1 of them, in equal shares, and the exported model is run so many times.",
        NETWORK,
        least=1,
        most=MOST_PASSES,
    )
    lr: float | None = option(
        None,
        "Learning rate of the network at the first epoch; it decays as (1 - epoch / epochs)^0.9.",
        NETWORK,
        shown=True,
        default="depends on the length of the run; 1e-4 for 500 epochs of 400 pairs",
        above=0,
    )
    batch_size: int = option(1, "Pairs per batch, in each process.", NETWORK, shown=True, least=1)
    accumulate: int = option(1, "Batches whose gradients are averaged before an optimiser step.", NETWORK, least=1)
    steady: bool = option(
        True,
        "Clip gradients that are out of proportion to the previous ones; off with `recipe=paper`.",
        NETWORK,
        flags=("--steady/--no-steady",),
    )
    precision: Precision = option(
        "fp32", "Arithmetic of the network; losses and optimisers stay in float32.", NETWORK, shown=True
    )
    guidance: Guidance = option(
        "ofg",
        "ofg: On-the-Fly Guidance, refined fields are the targets; none: unsupervised baseline.",
        GUIDANCE,
        shown=True,
    )
    guidance_optimiser: Optimiser | None = option(
        None,
        "Inner optimiser: greedy (smoothed steps down the local NCC), multilevel (greedy steps, coarse to fine) or "
        "adam (as published).",
        GUIDANCE,
        default=f"{DEFAULT_OPTIMISER}; adam with `recipe=paper` or another similarity than ncc",
    )
    guidance_start: float | None = _of_guidance(
        "guidance_start", "Fraction of the epochs that train without guidance before it begins.", least=0, below=1
    )
    guidance_steps: int | None = _of_guidance(
        "guidance_steps", "Inner steps per training step (K), at full resolution.", least=1
    )
    guidance_levels: int | None = _of_guidance(
        "guidance_levels", "Resolutions of multilevel, each half as fine as the one before.", least=2
    )
    guidance_coarse_steps: int | None = _of_guidance(
        "guidance_coarse_steps", "Inner steps of multilevel at each of the coarse resolutions.", least=1
    )
    guidance_lr: float | None = _of_guidance(
        "guidance_lr", "Inner learning rate of adam at the first epoch, in voxels; it decays as `lr` does.", above=0
    )
    guidance_smoothness: float | None = _of_guidance(
        "guidance_smoothness", "Weight of the regulariser in the inner energy of adam.", least=0
    )
    guidance_step_voxels: float | None = _of_guidance(
        "guidance_step_voxels", "Length of the longest vectors of a greedy step, in voxels.", **_bounds("step")
    )
    guidance_step_limit: float | None = _of_guidance(
        "guidance_step_limit",
        "Vectors of a greedy step longer than this multiple of the mean length are shortened to it.",
        **_bounds("limit"),
    )
    guidance_gradient_sigma: float | None = _of_guidance(
        "guidance_gradient_sigma",
        "Smoothing of the gradient of a greedy step, standard deviation in voxels.",
        **_bounds("gradient_sigma"),
    )
    guidance_field_sigma: float | None = _of_guidance(
        "guidance_field_sigma",
        "Smoothing of the field after each greedy step, standard deviation in voxels.",
        **_bounds("field_sigma"),
    )
    guidance_sobolev: float | None = _of_guidance(
        "guidance_sobolev",
        "Weight of the squared gradient of (prediction - target) in the guidance loss, added to its square.",
        least=0,
    )
    guidance_similarity: float | None = _of_guidance(
        "guidance_similarity", "Weight of the similarity loss of the prediction, added to the guidance loss.", least=0
    )
    similarity: Similarity = option(
        "ncc",
        "Image similarity: ncc (local normalised cross-correlation), mse (mean squared difference; same scanner and "
        "contrast) or mind (different modalities).",
        GUIDANCE,
        shown=True,
    )
    ncc_window: int | None = _of_guidance("ncc_window", "Window size of the local NCC, in voxels.", least=3, odd=True)
    regulariser: Regulariser = option(
        "diffusion", "Penalty on the first (diffusion) or second differences (bending) of the field.", GUIDANCE
    )
    smoothness: float | None = option(
        None,
        "Weight of the regulariser in the loss of the network.",
        GUIDANCE,
        default="0.02 with guidance, 1 without and before it begins",
        least=0,
    )
    guides: bool = option(
        True,
        "Compare the guides of a pair instead of its images in the similarity loss and in the inner optimiser, where "
        "the data have them: other scans of the same subjects or, with `synthesise`, clean renderings. The network "
        "never sees them.",
        GUIDANCE,
        flags=("--guides/--no-guides",),
    )
    dice_weight: float = option(
        0.0,
        "Weight of the soft Dice loss of the training labels (weak supervision).",
        GUIDANCE,
        shown=True,
        least=0,
    )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which data a network is trained on, how its input is made, and how long it may take."""

    labels: Path | None = option(
        None,
        "Folder of label maps, named like the images. Data sets and lists name their own.",
        DATA,
        shown=True,
        metavar="DIR",
    )
    recipe: tuple[str, ...] = option(
        (),
        f"Published defaults of a data set ({', '.join(get_args(RecipeName))}) or of the method ({PAPER}). "
        "Repeatable, once for each; options given explicitly take precedence.",
        BASIC,
        shown=True,
        metavar="NAME",
    )
    hours: float | None = option(
        None,
        "Plan a run that takes so many hours on this machine: epochs, steps, learning rate and, without a GPU, a "
        "compact network. Options given explicitly take precedence.",
        BASIC,
        shown=True,
        metavar="H",
        above=0,
    )
    skip_bad: bool = option(False, "Leave out images that cannot be used, with a warning.", DATA, flags=("--skip-bad",))
    max_pairs: int | None = option(
        None,
        "Largest number of training pairs.",
        DATA,
        default="400 where pairs are drawn at random, otherwise all",
        least=1,
    )
    grid: tuple[int, int, int] | None = option(
        None, "Network grid in voxels, X Y Z.", DATA, shown=True, default="planned from the images"
    )
    spacing: tuple[float, float, float] | None = option(
        None, "Voxel size of the network grid in mm.", DATA, shown=True, default="planned from the images"
    )
    axes: str = option("RAS", "Anatomical directions of `grid` and `spacing`.", DATA, metavar="AXES")
    intensity: str = option(
        "percentile:0.5,99.5",
        "How intensities become 0..1: percentile:LOW,HIGH, minmax, window:LOW,HIGH or linear:LOW,HIGH.",
        DATA,
        metavar="RECIPE",
    )
    init: Init = option("affine", "Initial alignment of a pair, before the network.", DATA, shown=True)
    starts: Starts | None = option(
        None,
        "frame: align each subject once with a common image and compose the initial alignments of training pairs; "
        "pair: align each pair.",
        DATA,
        default="frame where that is less work",
    )
    cache: Path | None = option(
        None,
        "Folder of prepared pairs, which several runs can share.",
        RUNTIME,
        default="cache in the run folder",
        metavar="DIR",
    )


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What decides how fast a run goes, but not where it ends. Raises UsageError: a value out of range."""

    device: Device = option("auto", "Device to train on; auto: a GPU if there is one.", RUNTIME, shown=True)
    threads: int = option(0, "CPU threads of each process; 0: all cores.", RUNTIME, least=1, zero="all cores")
    workers: int = option(0, "Processes that prepare pairs; 0: all cores.", RUNTIME, least=1, zero="all cores")
    loader_workers: int | None = option(
        None,
        "Processes that read prepared pairs ahead; 0: none.",
        RUNTIME,
        default="2 on a GPU, none on a CPU",
        least=1,
        zero="none",
    )
    activation_checkpointing: bool = option(
        False,
        "Compute the network's activations twice instead of keeping them: less memory, more time.",
        RUNTIME,
        flags=("--activation-checkpointing",),
    )

    def __post_init__(self) -> None:
        for name, one in options_of(Resources).items():
            if getattr(self, name) is not None:
                one.check(getattr(self, name))


TRAINING = options_of(Selection, Weights, Resources)

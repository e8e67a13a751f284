"""Options of a training run. ``TrainConfig`` alone is the published recipe; the command has measured defaults."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.kernels.refine import Greedy, check_bound
from ofg_deploy.preprocess import NetworkInput
from ofg_deploy.records import fitted

Guidance = Literal["ofg", "none"]
Optimiser = Literal["adam", "greedy", "multilevel"]
Similarity = Literal["ncc", "mse", "mind"]
Regulariser = Literal["diffusion", "bending"]
Precision = Literal["fp32", "bf16", "fp16"]
CHOICES = {
    "guidance": Guidance,
    "guidance_optimiser": Optimiser,
    "similarity": Similarity,
    "regulariser": Regulariser,
    "precision": Precision,
}

DEFAULT_OPTIMISER: Optimiser = "greedy"
_GREEDY_NAMES = {
    "guidance_step_voxels": "step",
    "guidance_step_limit": "limit",
    "guidance_gradient_sigma": "gradient_sigma",
    "guidance_field_sigma": "field_sigma",
}
# Guidance and --refine step alike.
_STEP_OPTIONS: dict[str, Any] = {
    **{option: getattr(Greedy, name) for option, name in _GREEDY_NAMES.items()},
    "guidance_sobolev": 10.0,
    "guidance_similarity": 0.0,
    "ncc_window": Greedy.window,
}
# What each inner optimiser takes, and its defaults; without guidance the window is that of the unsupervised loss.
GUIDANCE_OPTIONS: dict[str, dict[str, Any]] = {
    "none": {"ncc_window": 9},
    "adam": {
        "guidance_start": 0.0,
        "guidance_steps": 5,
        "guidance_lr": 0.1,
        "guidance_smoothness": 1.0,
        "guidance_sobolev": 0.0,
        "guidance_similarity": 0.0,
        "ncc_window": 9,
    },
    "greedy": {"guidance_start": 0.35, "guidance_steps": 6, **_STEP_OPTIONS},
    "multilevel": {
        "guidance_start": 0.35,
        "guidance_steps": 3,
        "guidance_levels": 2,
        "guidance_coarse_steps": 8,
        **_STEP_OPTIONS,
    },
}


def settle_guidance(
    guidance: str, optimiser: str | None, similarity: str, given: dict[str, Any], published: bool = False
) -> dict[str, Any]:
    """The options of guidance with nothing left open, as arguments of ``TrainConfig``.

    The optimiser is the default one unless another was asked for; Adam where the recipe is the published one, and for
    another similarity than local NCC, which no other one knows.

    Args:
        given: options by field name; None was not given.
        published: whether the defaults are the paper's.

    Raises:
        UsageError: an option that would change nothing.
    """
    chosen = optimiser or ("adam" if published or similarity != "ncc" else DEFAULT_OPTIMISER)
    kind = chosen if guidance == "ofg" else "none"
    if guidance == "none" and optimiser is not None:
        raise UsageError(f"--guidance-optimiser {optimiser} has no effect with --guidance none: leave one of them out")
    takes = GUIDANCE_OPTIONS.get(kind, {})
    asked = {name: value for name, value in given.items() if value is not None}
    for name in asked:
        option, why = "--" + name.replace("_", "-"), None
        if name not in takes:
            why = "--guidance none" if kind == "none" else f"--guidance-optimiser {chosen}"
        elif name == "ncc_window" and similarity != "ncc":
            why = f"--similarity {similarity}"
        if why:
            raise UsageError(f"{option} has no effect with {why}: leave it out")
    return {"guidance": guidance, "guidance_optimiser": chosen, **takes, **asked}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, besides the data.

    Attributes:
        expects: grid, spacing, intensity recipe and initial alignment of the pairs.
        network: name of the architecture.
        diffeomorphic: the network predicts a stationary velocity, integrated to the field.
        guidance: ``ofg``: refined field as target; ``none``: unsupervised baseline in the same loop.
        guidance_start: share of the epochs that train without guidance before it begins, in whole epochs.
        guidance_optimiser: what refines the prediction: ``adam``, as published; ``greedy``, smoothed steps down the
            local NCC, with neither learning rate nor regulariser; ``multilevel``, greedy steps coarse to fine.
        guidance_steps: K, inner steps per training step, at full resolution.
        guidance_levels: resolutions of ``multilevel``, each half as fine as the one before.
        guidance_coarse_steps: its steps at each of the coarse ones.
        guidance_lr: inner learning rate at the first epoch, in voxels; decays like the outer one.
        guidance_smoothness: weight of the regulariser in the inner energy.
        guidance_step_voxels: length of the longest vectors of a greedy step.
        guidance_step_limit: times the mean length (``kernels.refine.Greedy``) beyond which vectors are shortened.
        guidance_gradient_sigma: smoothing of the gradient of a greedy step, standard deviation in voxels.
        guidance_field_sigma: smoothing of the field after each greedy step, likewise: how stiff the targets are.
        guidance_sobolev: weight of the squared gradient of (prediction - target) beside its square in the OFG loss.
        guidance_similarity: weight of the similarity loss of the prediction itself beside the OFG loss.
        similarity: what compares warped and fixed, in the inner energy as in the unsupervised loss: ``ncc`` (local
            NCC), ``mse`` (same scanner, same contrast), ``mind`` (other modalities).
        ncc_window: side of the local NCC window in voxels (odd).
        regulariser: of the field: ``diffusion`` (first differences) or ``bending`` (second differences).
        smoothness: weight of the regulariser of the prediction in the outer loss; None means 0.02 with OFG and 1.0
            without (before it begins, too), as published.
        dice_weight: weak supervision: weight of the soft Dice loss of warped moving and fixed labels.
        frame: image through whose space the starts of training pairs are composed, each subject aligned with it once;
            None aligns each pair by itself, as validation pairs and ``ofg register`` do.
        two_way: visit every pair a second time with its images swapped (the paper: OASIS, Abdomen CT).
        flip: mirror both images along random axes (the paper: IXI, LPBA40).
        lr: outer learning rate at the first epoch; both decay as (1 - epoch / epochs)^0.9.
        steady: gradients out of proportion are clipped (``steady_adam``); as published there is plain Adam alone.
        epochs, steps_per_epoch: length; steps count pairs, None means every training pair once.
        batch_size: pairs that go through the network at once, in each process.
        accumulate: batches whose gradients are averaged before an optimiser step.
        precision: of the network's own arithmetic; energies and optimisers stay in float32.
        validate_every: epochs between validations (the last epoch is always validated).
        picture_every: epochs between pictures of the first validation pair; 0 draws none.
        seed: of the initial weights and of the order of pairs.

    Raises:
        UsageError: a value out of range.
    """

    expects: NetworkInput
    network: str = "voxelmorph"
    diffeomorphic: bool = False
    guidance: Guidance = "ofg"
    guidance_start: float = 0.0
    guidance_optimiser: Optimiser = "adam"
    guidance_steps: int = 5
    guidance_levels: int = 2
    guidance_coarse_steps: int = 8
    guidance_lr: float = 0.1
    guidance_smoothness: float = 1.0
    guidance_step_voxels: float = Greedy.step
    guidance_step_limit: float = Greedy.limit
    guidance_gradient_sigma: float = Greedy.gradient_sigma
    guidance_field_sigma: float = Greedy.field_sigma
    guidance_sobolev: float = 0.0
    guidance_similarity: float = 0.0
    similarity: Similarity = "ncc"
    ncc_window: int = 9
    regulariser: Regulariser = "diffusion"
    smoothness: float | None = None
    dice_weight: float = 0.0
    frame: str | None = None
    two_way: bool = False
    flip: bool = False
    lr: float = 1e-4
    steady: bool = False
    epochs: int = 500
    steps_per_epoch: int | None = None
    batch_size: int = 1
    accumulate: int = 1
    precision: Precision = "fp32"
    validate_every: int = 1
    picture_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in get_args(choices):
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {value!r} is unknown: use {' or '.join(get_args(choices))}")
        if self.ncc_window < 3 or self.ncc_window % 2 == 0:
            raise UsageError(f"--ncc-window {self.ncc_window} must be odd and at least 3")
        self._check_guidance()
        positive = {
            "--guidance-steps": self.guidance_steps,
            "--guidance-coarse-steps": self.guidance_coarse_steps,
            "--guidance-lr": self.guidance_lr,
            "--lr": self.lr,
            "--epochs": self.epochs,
            "--steps-per-epoch": 1 if self.steps_per_epoch is None else self.steps_per_epoch,
            "--batch-size": self.batch_size,
            "--accumulate": self.accumulate,
            "--validate-every": self.validate_every,
        }
        for name, value in positive.items():
            if not value > 0:
                raise UsageError(f"{name} {value} must be above 0")
        numbers = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in numbers.items():
            if isinstance(value, float) and not math.isfinite(value):
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {value}: a finite number is needed")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed {self.seed} must be from 0 to 4294967295")
        for name, value in numbers.items():
            not_negative = name in ("smoothness", "dice_weight", "picture_every") or name.startswith("guidance_")
            if not_negative and isinstance(value, int | float) and value < 0:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {value} must not be negative")

    def _check_guidance(self) -> None:
        if self.guidance_optimiser != "adam" and self.similarity != "ncc":
            raise UsageError(
                f"--guidance-optimiser {self.guidance_optimiser} knows the local NCC only: use --similarity ncc or adam"
            )
        if not 0 <= self.guidance_start < 1:
            raise UsageError(f"--guidance-start {self.guidance_start} is a share of the epochs: at least 0, below 1")
        if self.guidance_levels < 2:
            raise UsageError(f"--guidance-levels {self.guidance_levels} must be at least 2: one level is greedy")
        for option, name in _GREEDY_NAMES.items():
            check_bound(name, getattr(self, option), f"--{option.replace('_', '-')}")

    def guided(self, epoch: int) -> bool:
        """Whether there is guidance in an epoch counted from 0; there always is in the last one."""
        return self.guidance == "ofg" and epoch >= int(self.guidance_start * self.epochs)

    def outer_smoothness(self, epoch: int) -> float:
        """The weight of the regulariser in the outer loss."""
        if self.smoothness is not None:
            return self.smoothness
        return 0.02 if self.guided(epoch) else 1.0

    def decay(self, epoch: int) -> float:
        """Factor of both learning rates in an epoch counted from 0."""
        return float((1 - epoch / self.epochs) ** 0.9)

    def to_record(self) -> dict[str, Any]:
        """JSON-ready; ``from_record`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any], what: str) -> TrainConfig:
        """The inverse of ``to_record``; ``what`` begins the error.

        Raises:
            InputError: options that are not those of this version (a default of today is not that of then), of
                another type, or out of range.
        """
        if others := {f.name for f in fields(cls)} ^ record.keys():
            raise InputError(
                f"{what}: another version of ofg train started this run ({', '.join(sorted(others))} not known to "
                "both): resume it with that version, or export its best.pt, which holds all it needs"
            )
        return fitted(record, cls, what, "restore the original", exactly=True)

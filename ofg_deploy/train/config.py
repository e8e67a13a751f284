"""The configuration of a training run: its options, with nothing left open but what the data decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.options.training import DEFAULT_OPTIMISER, GUIDANCE_OPTIONS, Weights
from ofg_deploy.options.value import options_of
from ofg_deploy.preprocess import NetworkInput
from ofg_deploy.records import fitted
from ofg_deploy.train.synthesis.contrasts import Contrasts

WEIGHTS = options_of(Weights)
# What the optimiser in use does not take has some value all the same.
_UNUSED = {name: value for takes in GUIDANCE_OPTIONS.values() for name, value in takes.items()}
_MAY_STAY_OPEN = ("smoothness", "steps_per_epoch")  # in a run; each epoch knows what None means


@dataclass(frozen=True)
class TrainConfig(Weights):
    """Everything that decides the weights, besides the data. ``TrainConfig()`` is what ``ofg train`` does by default.

    The options are described in ``options.training``. Those of guidance that are None get the default of the inner
    optimiser here. What only the data can tell is settled before a run begins:

    Attributes:
        expects: grid, spacing, intensity recipe and initial alignment of the pairs; None until they are planned.
        frame: image through whose space the starts of training pairs are composed, each subject aligned with it once;
            None aligns each pair by itself, as validation pairs and ``ofg register`` do.
        lr: None until the length of the run is known in steps.

    Raises:
        UsageError: a value out of range, or two that exclude each other.
    """

    expects: NetworkInput | None = None
    frame: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, one in WEIGHTS.items():
            if (value := getattr(self, name)) is not None or one.default is not None:
                object.__setattr__(self, name, one.check(value))
        Contrasts.parse(self.contrasts)
        optimiser = self.guidance_optimiser or default_optimiser(self.similarity)
        if optimiser != "adam" and self.similarity != "ncc":
            raise UsageError(
                f"`guidance_optimiser={optimiser}` knows the local NCC only: use `similarity=ncc` or "
                "`guidance_optimiser=adam`"
            )
        takes = GUIDANCE_OPTIONS[optimiser if self.guidance == "ofg" else "none"]
        for name, value in {**_UNUSED, **takes, "guidance_optimiser": optimiser}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

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
    def from_record(cls, record: dict[str, Any], what: str = "this configuration") -> TrainConfig:
        """The inverse of ``to_record``, for the configuration of a run, in which everything is settled.

        Args:
            what: begins the error.

        Raises:
            InputError: options that are not those of this version (a default of today is not that of then), of
                another type, or out of range.
        """
        if others := {f.name for f in fields(cls)} ^ record.keys():
            raise InputError(
                f"{what}: another version of ofg train started this run ({', '.join(sorted(others))} not known to "
                "both): resume it with that version, or export its best.pt, which holds all it needs"
            )
        for name, option in WEIGHTS.items():
            if record[name] is None and name not in _MAY_STAY_OPEN:
                raise InputError(f"{what}: {name} is null, expected {option.kind}: restore the original")
        return fitted(record, cls, what, "restore the original", exactly=True)


def default_optimiser(similarity: str) -> str:
    """The inner optimiser where none is named: only adam knows another similarity than local NCC."""
    return DEFAULT_OPTIMISER if similarity == "ncc" else "adam"


def check_effects(given: Mapping[str, Any], config: TrainConfig) -> None:
    """Refuse an option of guidance that was given and changes nothing.

    Args:
        given: options by name, as the user named them.
        config: what they led to.

    Raises:
        UsageError: names it and why.
    """
    for name in ("contrasts", "skull"):
        if name in given and not config.synthesise:
            raise UsageError(f"`{name}` has no effect without `synthesise=True`: leave it out, or add that")
    unguided = config.guidance == "none"
    if unguided and (optimiser := given.get("guidance_optimiser")):
        raise UsageError(f"`guidance_optimiser={optimiser}` has no effect with `guidance=none`: leave one of them out")
    takes = GUIDANCE_OPTIONS["none" if unguided else str(config.guidance_optimiser)]
    for name in given.keys() & _UNUSED.keys():
        why = None
        if name not in takes:
            why = "guidance=none" if unguided else f"guidance_optimiser={config.guidance_optimiser}"
        elif name == "ncc_window" and config.similarity != "ncc":
            why = f"similarity={config.similarity}"
        if why:
            raise UsageError(f"`{name}` has no effect with `{why}`: leave it out")

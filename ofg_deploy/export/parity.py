"""Does the exported model reproduce its network? Measured on real pairs, in voxels, mm, intensity, Dice and folding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ofg_deploy import metrics
from ofg_deploy.errors import ParityError
from ofg_deploy.field import Field, jacobian_determinant, sample
from ofg_deploy.geometry import lattice
from ofg_deploy.preprocess import PreparedPair

Predict = Callable[[Any, Any], Field]  # (moving, fixed), (X, Y, Z) each -> (3, X, Y, Z) voxels


@dataclass(frozen=True)
class Tolerance:
    """Largest differences between a network and its export that may be published.

    ``field_mm_max`` bounds the largest field error; the others bound the worst pair. ``field_mm_p99`` is a hundredth
    of it because rounding, unlike a mistake, shows in few voxels.
    """

    field_mm_max: float = 0.01
    warped: float = 1e-3
    dice: float = 1e-3
    folding_percent: float = 0.01

    @property
    def field_mm_p99(self) -> float:
        """Bound on the 99th percentile of the field error."""
        return self.field_mm_max / 10


@dataclass(frozen=True)
class Parity:
    """Differences over all pairs. ``dice_difference`` is None where no pair has labels."""

    pairs: int
    field_vox_mean: float
    field_vox_p99: float
    field_vox_max: float
    field_mm_mean: float
    field_mm_p99: float
    field_mm_max: float
    warped_difference_max: float
    dice_difference: float | None
    folding_difference_percent: float

    def check(self, tolerance: Tolerance) -> None:
        """Raises ParityError naming every figure beyond its tolerance; a figure that is not a number is beyond."""
        bounds = {
            "field_mm_p99": tolerance.field_mm_p99,
            "field_mm_max": tolerance.field_mm_max,
            "warped_difference_max": tolerance.warped,
            "dice_difference": tolerance.dice,
            "folding_difference_percent": tolerance.folding_percent,
        }
        figures = {name: value for name, value in asdict(self).items() if value is not None}
        beyond = [f"{n} {figures[n]:.3g} > {b:g}" for n, b in bounds.items() if n in figures and not figures[n] <= b]
        if beyond:
            raise ParityError(f"the exported model does not reproduce its network ({'; '.join(beyond)}): not published")


def compare(
    network: Predict,
    exported: Predict,
    pairs: list[PreparedPair],
    dice: list[Callable[[Field], float] | None],
) -> Parity:
    """Run both on every pair.

    Args:
        dice: per pair, mean Dice of a field, or None without labels.
    """
    errors, warped, dice_gaps, folding = [], [], [], []
    for pair, score in zip(pairs, dice, strict=True):
        a, b = network(pair.moving, pair.fixed), exported(pair.moving, pair.fixed)
        errors.append((b - a).reshape(3, -1))
        warped.append(np.abs(_warp(pair, a) - _warp(pair, b)).max())
        folds = [metrics.folding_percent(jacobian_determinant(f)) for f in (a, b)]
        folding.append(abs(folds[0] - folds[1]))
        if score:
            dice_gaps.append(abs(score(a) - score(b)))
    difference = np.concatenate(errors, axis=1)
    # Grid axes are orthogonal, so a length in mm needs only the spacing.
    in_mm = difference * np.array(pairs[0].grid.spacing_mm, dtype=np.float32)[:, None]
    vox, mm = (np.linalg.norm(values, axis=0) for values in (difference, in_mm))
    return Parity(
        pairs=len(pairs),
        field_vox_mean=float(vox.mean()),
        field_vox_p99=float(np.percentile(vox, 99)),
        field_vox_max=float(vox.max()),
        field_mm_mean=float(mm.mean()),
        field_mm_p99=float(np.percentile(mm, 99)),
        field_mm_max=float(mm.max()),
        warped_difference_max=float(max(warped)),
        dice_difference=float(max(dice_gaps)) if dice_gaps else None,
        folding_difference_percent=float(max(folding)),
    )


def _warp(pair: PreparedPair, field: Field) -> Any:
    """Moving image under a field, edge values held: at the edge itself rounding must not decide between value and 0."""
    upper = np.array(pair.grid.shape, dtype=np.float64).reshape(3, 1, 1, 1) - 1
    return sample(pair.moving, np.clip(lattice(pair.grid.shape) + field, 0, upper))

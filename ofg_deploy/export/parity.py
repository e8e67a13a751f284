"""Does the exported model reproduce its network? Measured on real pairs, in voxels, mm, intensity, Dice and folding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from ofg_deploy import metrics
from ofg_deploy.errors import ParityError
from ofg_deploy.field import Field, jacobian_determinant
from ofg_deploy.geometry import Grid
from ofg_deploy.passes import moved
from ofg_deploy.preprocess import NetworkInput, PreparedPair

Predict = Callable[[Any, Any], Field]  # (moving, fixed), (X, Y, Z) each -> (3, X, Y, Z) voxels


@dataclass(frozen=True)
class Bounds:
    """Largest differences between a network and its export that may be published, over all pairs.

    Attributes:
        field_mm_max: of the field's error anywhere, in mm; its 99th percentile may be a fifth of that:
            rounding errors were two to five times larger in single voxels.
        field_vox_p999: of its 99.9th percentile, in voxels; None where the bound in mm was given.
        warped: of the warped image, 0..1.
        dice: of the mean Dice.
        folding_percent: of the share of folded voxels, in percentage points.
    """

    field_mm_max: float
    field_vox_p999: float | None
    warped: float
    dice: float
    folding_percent: float

    @property
    def field_mm_p99(self) -> float:
        """Bound on the 99th percentile of the field error."""
        return self.field_mm_max / 5


# Two to ten times the most that trained networks of all architectures showed (docs/precision.md), and below what a
# registration is good for: a voxel is 0.5 to 2 mm, and Dice moves by 0.01 from one training to the next. In float32
# only the order of sums differs: far less than a thousandth of a voxel, except in TransMorph. A
# layer in a type of b bits errs by 2^-b of its values: float16 (11) and bfloat16 (8) are a factor 8 apart, and so were
# the errors. int8 has one scale for a whole tensor, so its errors are larger in single voxels (docs/runtimes.md).
BOUNDS = {
    "fp32": Bounds(0.01, 1e-3, 1e-3, 1e-3, 0.01),
    "fp16": Bounds(0.05, 0.01, 0.01, 2e-3, 0.02),
    "bf16": Bounds(0.3, 0.1, 0.1, 5e-3, 0.1),
    "int8": Bounds(0.5, 0.2, 0.1, 5e-3, 0.1),
}


@dataclass(frozen=True)
class Tolerance:
    """What was asked: the bounds of each precision, the field's replaced by ``atol_mm`` where that is given."""

    atol_mm: float | None = None

    def bounds(self, precision: str) -> Bounds:
        """Of one precision."""
        usual = BOUNDS[precision]
        return usual if self.atol_mm is None else replace(usual, field_mm_max=self.atol_mm, field_vox_p999=None)


@dataclass(frozen=True)
class Parity:
    """Differences over all pairs. ``dice_difference`` is None where no pair has labels.

    ``emulated``: not the file itself was run but the same graph with the rounding of its types in float32 arithmetic.
    """

    pairs: int
    field_vox_mean: float
    field_vox_p99: float
    field_vox_p999: float
    field_vox_max: float
    field_mm_mean: float
    field_mm_p99: float
    field_mm_p999: float
    field_mm_max: float
    warped_difference_max: float
    dice_difference: float | None
    folding_difference_percent: float
    emulated: bool = False

    def beyond(self, bounds: Bounds) -> list[str]:
        """Every figure beyond its bound; one that is not a number is beyond."""
        limits = {
            "field_mm_p99": bounds.field_mm_p99,
            "field_mm_max": bounds.field_mm_max,
            "field_vox_p999": bounds.field_vox_p999,
            "warped_difference_max": bounds.warped,
            "dice_difference": bounds.dice,
            "folding_difference_percent": bounds.folding_percent,
        }
        figures = asdict(self)
        pairs = ((name, figures[name], most) for name, most in limits.items())
        return [f"{n} {v:.3g} > {most:g}" for n, v, most in pairs if None not in (v, most) and not v <= most]

    def check(self, tolerance: Tolerance, precision: str = "fp32") -> None:
        """Raises ParityError naming every figure beyond its bound."""
        if found := self.beyond(tolerance.bounds(precision)):
            raise ParityError(f"the exported model does not reproduce its network ({'; '.join(found)}): not published")


@dataclass(frozen=True, eq=False)
class Reference:
    """What an artefact must reproduce, and on which pairs.

    Attributes:
        name: in words, for records.
        predict: its field.
        dice: per pair, mean Dice of a field, or None without labels.
    """

    name: str
    predict: Predict
    pairs: list[PreparedPair]
    dice: list[Callable[[Field], float] | None]
    tolerance: Tolerance

    def check(self, exported: Predict, precision: str) -> Parity:
        """Raises ParityError as ``Parity.check``."""
        found = compare(self.predict, exported, self.pairs, self.dice)
        found.check(self.tolerance, precision)
        return found


def synthetic_pair(expects: NetworkInput) -> PreparedPair:
    """Two different smooth random images in 0..1 on the network's grid, always the same ones."""
    rng = np.random.default_rng(0)
    smooth = [gaussian_filter(rng.standard_normal(expects.shape), 2.0) for _ in range(2)]
    fixed, moving = (((s - s.min()) / (s.max() - s.min())).astype(np.float32) for s in smooth)
    grid = Grid(expects.shape, np.diag([*expects.spacing_mm, 1.0]))
    return PreparedPair(fixed, moving, grid, np.eye(4), overlap=1.0, outside=0.0)


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
        field_vox_p999=float(np.percentile(vox, 99.9)),
        field_vox_max=float(vox.max()),
        field_mm_mean=float(mm.mean()),
        field_mm_p99=float(np.percentile(mm, 99)),
        field_mm_p999=float(np.percentile(mm, 99.9)),
        field_mm_max=float(mm.max()),
        warped_difference_max=float(max(warped)),
        dice_difference=float(max(dice_gaps)) if dice_gaps else None,
        folding_difference_percent=float(max(folding)),
    )


def _warp(pair: PreparedPair, field: Field) -> Any:
    """Moving image under a field, edge values held: at the edge itself rounding must not decide between value and 0."""
    return moved(pair.moving, field)

"""What a registration is judged by: the numbers of a sidecar, and which direction of each is bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NONE = "\N{EN DASH}"  # in place of a number


@dataclass(frozen=True)
class Measure:
    """A column of the report.

    Attributes:
        key: of ``Registration.numbers``, and the name a limit goes by.
        title: heading, with the unit.
        form: how a value is shown.
        worse: the direction that is bad; None for a number that only describes, has no limit and makes no outlier.
        about: what it is, in a line.
    """

    key: str
    title: str
    form: str
    worse: Literal["low", "high"] | None
    about: str

    @property
    def unit(self) -> float:
        """The last digit that is shown."""
        return float(10.0 ** -int(self.form[1:-1]))

    def is_worse(self, value: float, than: float) -> bool:
        """Whether ``value`` lies beyond ``than`` in the bad direction; being equal is not worse."""
        return value > than if self.worse == "high" else value < than

    def show(self, value: float | None) -> str:
        """As text; ``NONE`` where there is none."""
        return NONE if value is None else minus(format(value, self.form))


OUTLIER = Measure(
    "outlier_z",
    "outlier (z)",
    ".1f",
    "high",
    "largest robust z of any judged measure, counted towards its bad side: 0.6745 (x - median) / MAD over the pairs, "
    "with a last digit shown as the smallest spread",
)
MEASURES = (
    Measure("dice_before", "Dice before", ".3f", None, "mean Dice of the labels, by the headers alone"),
    Measure("dice_after", "Dice after", ".3f", "low", "mean Dice of the labels after registration"),
    Measure("dice_gain", "Dice gain", ".3f", "low", "Dice after minus Dice before"),
    Measure("hd95_mm", "HD95 (mm)", ".2f", "high", "mean 95th percentile Hausdorff distance of the labels"),
    Measure("ncc_before", "NCC before", ".3f", None, "correlation of the intensities, by the headers alone"),
    Measure("ncc_after", "NCC after", ".3f", "low", "correlation of fixed and warped intensities"),
    Measure("ncc_gain", "NCC gain", ".3f", "low", "NCC after minus NCC before"),
    Measure("mi_before", "MI before", ".3f", None, "mutual information, by the headers alone"),
    Measure("mi_after", "MI after", ".3f", "low", "mutual information of fixed and warped image"),
    Measure("mi_gain", "MI gain", ".3f", "low", "MI after minus MI before"),
    Measure("folding_percent", "folding (%)", ".3f", "high", "voxels whose Jacobian determinant is not positive"),
    Measure("min_jacobian", "smallest Jacobian", ".3f", "low", "smallest Jacobian determinant of the total map"),
    Measure("sdlogj", "SDlogJ", ".3f", "high", "spread of the logarithm of the Jacobian determinant"),
    Measure("displacement_mm_max", "largest shift (mm)", ".1f", "high", "largest displacement of the total map"),
    Measure("overlap", "overlap", ".2f", "low", "share of the fixed field of view that the moving one covers"),
    Measure(
        "inverse_mean_mm", "inverse (mm)", ".3f", None, "how far points are from home after going there and back, mean"
    ),
    Measure("inverse_p99_mm", "inverse 99 % (mm)", ".3f", "high", "the same, 99th percentile"),
    Measure("seconds", "seconds", ".2f", None, "time of all stages of the registration"),
)
JUDGED = {measure.key: measure for measure in (*MEASURES, OUTLIER) if measure.worse}
GAINS = {"dice_gain": "dice", "ncc_gain": "ncc", "mi_gain": "mi"}  # of what is there as _before and _after


def minus(text: str) -> str:
    """A number with a minus sign as wide as a digit."""
    return text.replace("-", "\N{MINUS SIGN}")

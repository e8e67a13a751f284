"""What a registration is judged by: the numbers of a sidecar, and which direction of each is bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NONE = "\N{EN DASH}"  # in place of a number
CUT = 3.5  # z above which a value is an outlier: the customary one of Iglewicz and Hoaglin, and the default limit


@dataclass(frozen=True)
class Measure:
    """A column of the report.

    Attributes:
        key: of ``Registration.numbers``, and the name a limit goes by.
        title: heading, with the unit.
        form: how a value is shown.
        worse: the direction that is bad; None for a number that only describes, has no limit and makes no outlier.
        about: what it is, in a line.
        floor: a pair is no outlier while it is at most this far from the median, in the measure's unit.
        relative_floor: the same as a share of the median, for measures whose scale depends on the anatomy.
    """

    key: str
    title: str
    form: str
    worse: Literal["low", "high"] | None
    about: str
    floor: float = 0.0
    relative_floor: float = 0.0

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
    "largest robust z of any judged measure, counted towards its bad side: 0.6745 (x - median) / MAD over the pairs; "
    "deviations too small to matter do not reach the warning limit",
)
# The floors are deviations that nobody would look at a pair for, whatever the spread of the cohort: where most pairs
# fold nowhere, the spread of the folding is nearly zero, and 0.2 % of folded voxels is still a good registration.
MEASURES = (
    Measure("dice_before", "Dice before", ".3f", None, "mean Dice of the labels, by the headers alone"),
    Measure("dice_start", "Dice start", ".3f", None, "mean Dice of the labels after the initial alignment"),
    Measure("dice_after", "Dice after", ".3f", "low", "mean Dice of the labels after registration", 0.03),
    Measure("dice_gain", "Dice gain", ".3f", "low", "Dice after minus Dice before", 0.1),
    Measure("dice_over_start", "Dice over start", ".3f", "low", "Dice after minus Dice of the initial alignment", 0.05),
    Measure("hd95_before_mm", "HD95 before (mm)", ".2f", None, "mean HD95 of the labels, by the headers alone"),
    Measure("hd95_start_mm", "HD95 start (mm)", ".2f", None, "mean HD95 of the labels after the initial alignment"),
    Measure("hd95_mm", "HD95 (mm)", ".2f", "high", "mean 95th percentile Hausdorff distance of the labels", 0.0, 0.3),
    Measure("ncc_before", "NCC before", ".3f", None, "correlation of the intensities, by the headers alone"),
    Measure("ncc_start", "NCC start", ".3f", None, "correlation of the intensities after the initial alignment"),
    Measure("ncc_after", "NCC after", ".3f", "low", "correlation of fixed and warped intensities", 0.05),
    Measure("ncc_gain", "NCC gain", ".3f", "low", "NCC after minus NCC before", 0.2),
    Measure("mi_before", "MI before", ".3f", None, "mutual information, by the headers alone"),
    Measure("mi_start", "MI start", ".3f", None, "mutual information after the initial alignment"),
    Measure("mi_after", "MI after", ".3f", "low", "mutual information of fixed and warped image", 0.0, 0.2),
    Measure("mi_gain", "MI gain", ".3f", "low", "MI after minus MI before", 0.1, 0.5),
    Measure("mi_over_start", "MI over start", ".3f", "low", "MI after minus MI of the initial alignment", 0.1, 0.5),
    Measure("folding_percent", "folding (%)", ".3f", "high", "voxels whose Jacobian determinant is not positive", 0.5),
    Measure("min_jacobian", "smallest Jacobian", ".3f", "low", "smallest Jacobian determinant of the total map", 0.5),
    Measure("sdlogj", "SDlogJ", ".3f", "high", "spread of the logarithm of the Jacobian determinant", 0.1, 0.3),
    Measure(
        "displacement_mm_max", "largest shift (mm)", ".1f", "high", "largest displacement of the total map", 1.0, 1.0
    ),
    Measure("overlap", "overlap", ".2f", "low", "share of the fixed field of view that the moving one covers", 0.1),
    Measure("inverse_mean_mm", "inverse (mm)", ".3f", None, "inverse consistency error: mean distance after both maps"),
    Measure("inverse_p99_mm", "inverse 99 % (mm)", ".3f", "high", "the same, 99th percentile", 0.25),
    Measure("seconds", "seconds", ".2f", None, "time of all stages of the registration"),
)
JUDGED = {measure.key: measure for measure in (*MEASURES, OUTLIER) if measure.worse}
# Each gain: what is subtracted from the value after registration.
GAINS = {
    "dice_gain": ("dice_after", "dice_before"),
    "ncc_gain": ("ncc_after", "ncc_before"),
    "mi_gain": ("mi_after", "mi_before"),
    "dice_over_start": ("dice_after", "dice_start"),
    "mi_over_start": ("mi_after", "mi_start"),
}


def minus(text: str) -> str:
    """A number with a minus sign as wide as a digit."""
    return text.replace("-", "\N{MINUS SIGN}")

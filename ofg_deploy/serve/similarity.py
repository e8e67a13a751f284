"""What the steps on a pair follow, ``similarity``: chosen by what the two images show of one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.field import Field
from ofg_deploy.kernels.refine import Measure
from ofg_deploy.options.words import StepSimilarity

LIMIT_PERCENT = 2.5  # pairs of one contrast had 1.1 at most, of others 3.1 or more: benchmarks/NOTES.md
# Rendered heads and brains of one contrast had 0.35 at most, FLAIR to T1 0.9 or more: benchmarks/NOTES.md. Small grids
# show few structures, and there it is not measured.
CURVED_PERCENT, CURVED_FROM = 0.6, 64
LOOKED_AT = (8, 40)  # voxels along the shortest axis of the level at which images are compared

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Chosen:
    """The similarity of one pair.

    Attributes:
        asked: what the user wants; ``auto`` takes ``mind`` where the contrasts differ.
        taken: what the steps follow.
        opposite_percent: of the clear local relations between the images where the steps start, those against the
            others (``kernels.contrast.opposite_share``).
        curved_percent: of what the intensities of one image say of the other's, what no monotone curve says
            (``kernels.contrast.curved_share``); None on grids with an axis below ``CURVED_FROM`` voxels.
    """

    asked: StepSimilarity
    taken: Measure
    opposite_percent: float
    curved_percent: float | None = None

    @property
    def differs(self) -> bool:
        """The images show different contrasts: either share is above its limit."""
        return differ(self.opposite_percent, self.curved_percent)

    def comparable(self, moving: Image, fixed: Image, field: Field) -> Image:
        """``moving`` as the local NCC can be taken of it: with ``mind`` in the contrast of ``fixed``."""
        from ofg_deploy.kernels.contrast import in_contrast_of

        return in_contrast_of(fixed, moving, warped(moving, field)) if self.taken == "mind" else moving

    def warnings(self) -> list[str]:
        """What a user should know, one line each."""
        if not (self.differs and self.taken == "ncc"):
            return []
        return [
            f"the images show different contrasts ({self._why()}), for which `similarity=ncc` can lead away from the "
            "anatomy: use auto or mind"
        ]

    def _why(self) -> str:
        if self.opposite_percent > LIMIT_PERCENT:
            return f"{self.opposite_percent:.3g} % of their clear local relations run against the others"
        return f"{self.curved_percent:.3g} % of the relation of their intensities is not monotone"

    def record(self) -> dict[str, Any]:
        """For the sidecar."""
        return {
            "asked": self.asked,
            "taken": self.taken,
            "opposite_percent": self.opposite_percent,
            "limit_percent": LIMIT_PERCENT,
            "curved_percent": self.curved_percent,
            "curved_limit_percent": CURVED_PERCENT,
        }


def choose(asked: StepSimilarity, field: Field, moving: Image, fixed: Image) -> Chosen:
    """What the steps on a pair follow.

    The images are compared where the steps start from, at half the resolution or less: the first level whose shortest
    axis has at most 40 voxels. There noise is small, and structures that two people share still lie upon each other.

    Args:
        field: (3, X, Y, Z) voxels, from which the steps start.
        moving, fixed: (X, Y, Z) float32, NaN where unknown.
    """
    from ofg_deploy.kernels.contrast import curved_share, opposite_share

    moved = warped(moving, field)
    opposite = round(100 * opposite_share(*(_coarse(image) for image in (moved, fixed))), 4)
    curved = None
    if min(fixed.shape) >= CURVED_FROM:
        curved = round(100 * curved_share(moved[::2, ::2, ::2], fixed[::2, ::2, ::2]), 4)
    taken: Measure = "mind" if asked == "mind" or (asked == "auto" and differ(opposite, curved)) else "ncc"
    return Chosen(asked, taken, opposite, curved)


def differ(opposite_percent: float, curved_percent: float | None) -> bool:
    """Whether images with these shares show different contrasts."""
    return opposite_percent > LIMIT_PERCENT or (curved_percent or 0) > CURVED_PERCENT


def warped(moving: Image, field: Field) -> Image:
    """``moving`` on the grid of the field, NaN where unknown; not copied where the field is 0."""
    from ofg_deploy.kernels.warp import warp

    if not field.any():
        return moving
    out = np.empty_like(moving)
    warp(moving, field, out, np.empty_like(field), np.nan)
    return out


def _coarse(image: Image) -> Image:
    from ofg_deploy.kernels import levels

    least, most = LOOKED_AT
    coarsen = levels.coarsen_known if np.isnan(image).any() else levels.coarsen
    for level in range(image.size):
        shape = levels.coarser_shape(image.shape)
        if (level and min(image.shape) <= most) or min(shape) < least:
            break
        out = np.empty(shape, np.float32)
        coarsen(image, out)
        image = out
    return image
